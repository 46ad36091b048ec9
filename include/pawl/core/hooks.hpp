#pragma once

#include <concepts>
#include <cstdint>
#include <string>
#include <typeinfo>
#include <utility>
#include <vector>

#include "context.hpp"

namespace pawl {
inline namespace v0 {

// The hooks that a strategy may implement. Each is optional; a member of the right name and the
// wrong signature is refused by `check_strategy`.

template <class S>
concept HasBegin = requires(S s, Context& c, Experience const& e) {
  { s.begin(c, e) } -> std::same_as<void>;
};
/// What the experience trains on: the data set given, or a larger one. A function of the strategy's
/// state, so that a resumed run comes to the same.
template <class S>
concept HasEnlarge = requires(S s, Context& c, Dataset d) {
  { s.enlarge(c, std::move(d)) } -> std::same_as<Dataset>;
};
template <class S>
concept HasExtend = requires(S s, Context& c, Batch b) {
  { s.extend(c, std::move(b)) } -> std::same_as<Batch>;
};
template <class S>
concept HasLoss = requires(S s, Context& c) {
  { s.loss(c) } -> std::same_as<Tensor>;
};
template <class S>
concept HasPenalty = requires(S s, Context& c) {
  { s.penalty(c) } -> std::same_as<Tensor>;
};
template <class S>
concept HasEditGradient = requires(S s, Context& c) {
  { s.edit_gradient(c) } -> std::same_as<void>;
};
template <class S>
concept HasAfterStep = requires(S s, Context& c) {
  { s.after_step(c) } -> std::same_as<void>;
};
template <class S>
concept HasEnd = requires(S s, Context& c, Experience const& e) {
  { s.end(c, e) } -> std::same_as<void>;
};
template <class S>
concept HasScores = requires(S s, Context& c, Tensor x) {
  { s.scores(c, x) } -> std::same_as<Tensor>;
};
/// The value [] of a penalty whose gradient `edit_gradient` adds in closed form; asked for by
/// observers.
template <class S>
concept HasPenaltyValue = requires(S s, Context& c) {
  { s.penalty_value(c) } -> std::same_as<Tensor>;
};
/// Called before `edit_gradient`, once per step: marks parameters that got no gradient from the
/// loss (heads of other tasks) but will get one from this strategy, so that the optimizer moves
/// them.
template <class S>
concept HasWake = requires(S s, Context& c) {
  { s.wake(c) } -> std::same_as<void>;
};
template <class S>
concept HasState = requires(S s, Archive& a) {
  s.state(a);
};

/// Strategies that read `context.task_gradient` say `static constexpr bool needs_task_gradient =
/// true`.
template <class S>
concept NeedsTaskGradient = requires {
  requires S::needs_task_gradient;
};

/// Strategies that say `static constexpr bool elementwise = true` change weight i, in
/// `edit_gradient` and `after_step`, through values at index i alone. These hooks may then be
/// called once per block of the weights, which stays in the cache from the first hook to the last,
/// or once for a whole layer:
/// they look at the weights through `context.weights()`, `gradient()` and `task_gradient` alone,
/// and at flat tensors of their own through `context.here(flat)`.
template <class S>
concept Elementwise = requires {
  requires S::elementwise;
};

/// Strategies that are `Elementwise`, have no `after_step` and say `static constexpr bool only_adds
/// = true` do no more with the gradient than to add to it, in `edit_gradient`: it then need not be
/// formed where the optimizer only adds it to the weights, and hooks see zeros in its place.
template <class S>
concept OnlyAdds = Elementwise<S> && !HasAfterStep<S> && !NeedsTaskGradient<S> && requires {
  requires S::only_adds;
};

/// A strategy that says `bool capturable() const`: whether its hooks of a step (extend to
/// after_step) may be recorded on a device and replayed. They may where they ask for the same work
/// in all steps that are alike, keep tensors in place, and neither wait for the device nor copy to
/// it but by `upload` and `constant`.
template <class S>
concept SaysCapturable = requires(S const& s) {
  { s.capturable() } -> std::convertible_to<bool>;
};

/// Strategies that say `static constexpr bool plans_ahead = true` decide on the host in `extend`
/// and `after_step`: these are called to plan a step that a device replays, and ask the device for
/// nothing but through memories and `upload`. `extend` gives the same when it is called again.
template <class S>
concept PlansAhead = requires {
  requires S::plans_ahead;
};

/// Whether hooks of a strategy may look at the gradient of a step once it is there.
template <class S>
constexpr bool may_read_gradient = HasEditGradient<S> || NeedsTaskGradient<S> ||
                                   (HasAfterStep<S> && !PlansAhead<S>);

/// Of which strategies a hook is called.
enum class Of { all, elementwise, others };

namespace detail {

// A member of this name exists, whatever its signature.
template <class S>
concept NamesBegin = requires {
  &S::begin;
};
template <class S>
concept NamesEnlarge = requires {
  &S::enlarge;
};
template <class S>
concept NamesExtend = requires {
  &S::extend;
};
template <class S>
concept NamesLoss = requires {
  &S::loss;
};
template <class S>
concept NamesPenalty = requires {
  &S::penalty;
};
template <class S>
concept NamesEditGradient = requires {
  &S::edit_gradient;
};
template <class S>
concept NamesAfterStep = requires {
  &S::after_step;
};
template <class S>
concept NamesEnd = requires {
  &S::end;
};
template <class S>
concept NamesScores = requires {
  &S::scores;
};

}  // namespace detail

template <class S>
constexpr bool has_any_hook =
    HasBegin<S> || HasEnlarge<S> || HasExtend<S> || HasLoss<S> || HasPenalty<S> ||
    HasEditGradient<S> || HasAfterStep<S> || HasEnd<S> || HasScores<S>;

/// Refuses, in a sentence each, types that cannot be strategies.
template <class S>
constexpr void check_strategy() {
  static_assert(HasBegin<S> || !detail::NamesBegin<S>,
                "pawl: the hook must be  void begin(Context&, Experience const&)");
  static_assert(HasEnlarge<S> || !detail::NamesEnlarge<S>,
                "pawl: the hook must be  Dataset enlarge(Context&, Dataset)");
  static_assert(HasExtend<S> || !detail::NamesExtend<S>,
                "pawl: the hook must be  Batch extend(Context&, Batch)");
  static_assert(HasLoss<S> || !detail::NamesLoss<S>,
                "pawl: the hook must be  Tensor loss(Context&)");
  static_assert(HasPenalty<S> || !detail::NamesPenalty<S>,
                "pawl: the hook must be  Tensor penalty(Context&)");
  static_assert(HasEditGradient<S> || !detail::NamesEditGradient<S>,
                "pawl: the hook must be  void edit_gradient(Context&)");
  static_assert(HasAfterStep<S> || !detail::NamesAfterStep<S>,
                "pawl: the hook must be  void after_step(Context&)");
  static_assert(HasEnd<S> || !detail::NamesEnd<S>,
                "pawl: the hook must be  void end(Context&, Experience const&)");
  static_assert(HasScores<S> || !detail::NamesScores<S>,
                "pawl: the hook must be  Tensor scores(Context&, Tensor)");
  static_assert(has_any_hook<S>,
                "pawl: a strategy needs at least one hook: begin, enlarge, extend, loss, penalty, "
                "edit_gradient, after_step, end or scores; check the spelling");
}

/// The name of a strategy in messages and records: `S::name`, else the name of its type.
template <class S>
std::string strategy_name() {
  if constexpr (requires { S::name; }) {
    return S::name;
  } else {
    return c10::demangle(typeid(S).name());
  }
}

/// The hooks a strategy was found to have, so that a misspelt one shows by its absence.
template <class S>
std::vector<std::string> hooks_of() {
  std::vector<std::string> found;
  if (HasBegin<S>) found.emplace_back("begin");
  if (HasEnlarge<S>) found.emplace_back("enlarge");
  if (HasExtend<S>) found.emplace_back("extend");
  if (HasLoss<S>) found.emplace_back("loss");
  if (HasPenalty<S>) found.emplace_back("penalty");
  if (HasEditGradient<S>) found.emplace_back("edit_gradient");
  if (HasAfterStep<S>) found.emplace_back("after_step");
  if (HasEnd<S>) found.emplace_back("end");
  if (HasScores<S>) found.emplace_back("scores");
  return found;
}

}  // namespace v0
}  // namespace pawl
