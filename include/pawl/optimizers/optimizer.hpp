#pragma once

#include <concepts>

#include "../engine/arena.hpp"
#include "../engine/pieces.hpp"

namespace pawl {
inline namespace v0 {

/// Applies the gradient of a step to the active parameters of an arena.
///
/// Optional: `void set_learning_rate(double)`, for schedules; `void prepare(Arena&)`, called before
/// a step asks for the learning rate; `bool only_adds_gradient() const`, whether a step is no more
/// than one `arena.add_gradient_to` for every active parameter.
template <class O>
concept Optimizer = requires(O o, O const& c, Arena& arena, Archive& archive) {
  o.step(arena);
  o.reset();
  o.state(archive);
  { c.learning_rate() } -> std::convertible_to<double>;
};

/// An optimizer whose step can be planned: `step` is `count`, what the host does (it may `upload`),
/// and then `apply`, work for the device that is the same in every step (see `rate_is_uploaded`).
template <class O>
concept PlannedOptimizer = Optimizer<O> && requires(O o, Arena& arena) {
  o.count(arena);
  o.apply(arena);
};

/// An optimizer that can also update one block of the weights after another, once the step is
/// counted: `apply` for all blocks is `apply`. Its gradient is `block.gradient(arena)`.
template <class O>
concept BlockOptimizer = PlannedOptimizer<O> && requires(O o, Arena& arena, Block const& block) {
  o.apply(arena, block);
};

/// Lets an optimizer get ready for a step, where it has something to do before.
template <class O>
void prepare(O& optimizer, Arena& arena) {
  if constexpr (requires { optimizer.prepare(arena); }) optimizer.prepare(arena);
}

/// Whether the steps of an optimizer can be planned.
template <class O>
bool is_planned(O const& optimizer) {
  if constexpr (requires { optimizer.planned(); }) return optimizer.planned();
  return PlannedOptimizer<O>;
}

/// Whether `count` uploads the learning rate, so that a planned step serves every rate. True of an
/// optimizer for which it is specialised; one that is derived from it has to say so itself.
template <class O>
inline constexpr bool rate_is_uploaded = false;

/// The same of an optimizer whose type may be known at run time alone.
template <class O>
bool uploads_rate(O const& optimizer) {
  if constexpr (requires { optimizer.uploads_rate(); }) return optimizer.uploads_rate();
  return rate_is_uploaded<O>;
}

/// Whether an optimizer can update one block of the weights after another.
template <class O>
bool works_in_blocks(O const& optimizer) {
  if constexpr (requires { optimizer.works_in_blocks(); }) return optimizer.works_in_blocks();
  return BlockOptimizer<O>;
}

/// Sets the learning rate of an optimizer; throws where it cannot be set.
template <class O>
void set_learning_rate(O& optimizer, double rate) {
  if constexpr (requires { optimizer.set_learning_rate(rate); }) {
    optimizer.set_learning_rate(rate);
  } else {
    fail(
        "a learning rate that changes with the epochs needs an optimizer whose rate can be set; "
        "give yours a member  void set_learning_rate(double)");
  }
}

}  // namespace v0
}  // namespace pawl
