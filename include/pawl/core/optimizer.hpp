#pragma once

#include <cmath>
#include <concepts>
#include <cstdint>
#include <vector>

#include "../engine/arena.hpp"
#include "../engine/pieces.hpp"
#include "../engine/step_table.hpp"
#include "options.hpp"

namespace pawl {
inline namespace v0 {

/// Applies the gradient of a step to the active parameters of an arena.
///
/// Optional: `void set_learning_rate(double)`, for schedules; `void prepare(Arena&)`, called before
/// a step asks for the learning rate; `bool only_adds_gradient() const`, whether a step asks for no
/// more than `arena.add_gradient_to`.
template <class O>
concept Optimizer = requires(O o, O const& c, Arena& arena, Archive& archive) {
  o.step(arena);
  o.reset();
  o.state(archive);
  { c.learning_rate() } -> std::convertible_to<double>;
};

/// An optimizer whose step can be planned: `step` is `count`, what the host does (it may `upload`),
/// and then `apply`, work for the device that is the same in every step.
template <class O>
concept PlannedOptimizer = Optimizer<O> && requires(O o, Arena& arena) {
  o.count(arena);
  o.apply(arena);
};

/// An optimizer that can also update one block of the weights after another, once the gradient is
/// packed and the step counted: `apply` for all blocks is `apply`.
template <class O>
concept BlockOptimizer = PlannedOptimizer<O> && requires(O o, Arena& arena, Block const& block) {
  o.apply(arena, block);
};

/// Stochastic gradient descent, with momentum (Polyak, 1964) or Nesterov's form (Sutskever et al.,
/// ICML 2013), as `torch::optim::SGD` computes it from the same gradient, to the last bit:
///   g <- g + weight_decay w;   v <- momentum v + (1 - dampening) g;   w <- w - lr v  (or g +
///   momentum v)
struct Sgd {
  double lr = 0.01;
  double momentum = 0;
  double dampening = 0;
  double weight_decay = 0;
  bool nesterov = false;

  static constexpr char const* name = "sgd";
  static constexpr char const* about =
      "stochastic gradient descent with momentum (Polyak 1964; Sutskever et al., ICML 2013)";

  void describe(Options& o) {
    o("lr", lr, at_least(0), "learning rate");
    o("momentum", momentum, {.low = 0, .high = 1, .open_high = true}, "momentum factor");
    o("dampening", dampening, between(0, 1), "the new gradient enters the momentum times 1 - this");
    o("weight_decay", weight_decay, at_least(0), "L2 decay added to the gradient");
    o("nesterov", nesterov, "Nesterov's form of momentum");
  }

  void step(Arena& arena) {
    count(arena);
    apply(arena);
  }

  void count(Arena const& arena) {
    runs.clear();
    if (momentum != 0 || arena.packed()) runs = count_step(arena, steps);
  }

  void apply(Arena& arena) {
    torch::NoGradGuard no_grad;
    if (momentum != 0) {
      return with_momentum(arena, [&](auto&& f) { each_piece(arena, runs, steps, f); });
    }
    if (arena.packed() && !arena.has_unformed()) {
      each_piece(arena, runs, steps,
                 [&](auto const& w, auto const& g, auto&&...) { descend(w, g); });
      return;
    }
    for (std::size_t i = 0; i < arena.parameters().size(); ++i) {  // steps do not matter
      if (!arena.active()[i]) continue;
      if (only_adds_gradient()) {
        arena.add_gradient_to(i, -lr);
      } else {
        descend(arena.parameters()[i], arena.parameters()[i].grad());
      }
    }
  }

  void apply(Arena& arena, Block const& block) {
    torch::NoGradGuard no_grad;
    auto const pieces = [&](auto&& f) { each_piece(arena, runs, block, f); };
    if (momentum != 0) return with_momentum(arena, pieces);
    pieces([&](auto const& w, auto const& g, auto&&...) { descend(w, g); });
  }

  /// Whether a step is w <- w - lr g, for which the gradient need not be formed.
  bool only_adds_gradient() const { return momentum == 0 && weight_decay == 0; }

  double learning_rate() const { return lr; }
  void set_learning_rate(double rate) { lr = rate; }
  void reset() { velocity.reset(), steps.clear(); }
  void state(Archive& a) {
    a.flat("velocity", velocity);
    a("steps", steps);
  }

  // State: written by `step`.
  Tensor velocity{};                  ///< [P]
  std::vector<std::int64_t> steps{};  ///< taken by each parameter
  Runs runs{};                        ///< of the present step

 private:
  void descend(Tensor w, Tensor const& g) const {
    w.add_(weight_decay == 0 ? g : g.add(w, weight_decay), -lr);
  }

  template <class Pieces>
  void with_momentum(Arena const& arena, Pieces&& pieces) {
    if (!velocity.defined()) velocity = torch::zeros_like(arena.weights());
    std::vector<Tensor> w, g, v;  // of what one pass updates
    pieces([&](auto const& p, auto const& grad, auto const& of, auto taken) {
      auto const first = taken == 0;
      if (first || !in_one_pass(p)) return by_operations(p, grad, of(velocity), first);
      w.push_back(p), g.push_back(grad.contiguous()), v.push_back(of(velocity));
    });
    if (w.empty()) return;
    at::_fused_sgd_(w, g, v, weight_decay, momentum, lr, dampening, nesterov, /*maximize=*/false,
                    /*is_first_step=*/false);
  }

  /// Whether LibTorch's kernel for the whole update gives the bits of the operations one by one: it
  /// does where its vectors leave no rest.
  static bool in_one_pass(Tensor const& w) { return has_kernel(w) && w.numel() % 16 == 0; }

  void by_operations(Tensor w, Tensor g, Tensor v, bool first) const {
    if (weight_decay != 0) g = g.add(w, weight_decay);
    if (first) {
      v.copy_(g);
    } else {
      v.mul_(momentum).add_(g, 1 - dampening);
    }
    w.add_(nesterov ? g.add(v, momentum) : v, -lr);
  }
};

/// Adam (Kingma and Ba, ICLR 2015), as `torch::optim::Adam` computes it:
///   m <- b1 m + (1 - b1) g;   v <- b2 v + (1 - b2) g^2
///   w <- w - lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps)
/// `decoupled` decay (AdamW; Loshchilov and Hutter, ICLR 2019) shrinks w by lr weight_decay instead
/// of adding weight_decay w to g. The step count t is kept per parameter.
///
/// The weights are those of `torch::optim` to the last bit. With `fused` LibTorch's kernel for the
/// whole update is used on the host, which rounds differently (5e-7 after 150 steps).
template <bool decoupled>
struct AdamFamily {
  double lr = 0.001;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = decoupled ? 0.01 : 0.0;
  bool fused = false;

  static constexpr char const* name = decoupled ? "adamw" : "adam";
  static constexpr char const* about =
      decoupled ? "Adam with decoupled weight decay (Loshchilov and Hutter, ICLR 2019)"
                : "Adam (Kingma and Ba, ICLR 2015)";

  void describe(Options& o) {
    Range const fraction{.low = 0, .high = 1, .open_high = true};
    o("lr", lr, at_least(0), "learning rate");
    o("beta1", beta1, fraction, "decay of the first moment");
    o("beta2", beta2, fraction, "decay of the second moment");
    o("eps", eps, at_least(0), "added to the root of the second moment");
    o("weight_decay", weight_decay, at_least(0),
      decoupled ? "decay, times the learning rate" : "L2 decay added to the gradient");
    o("fused", fused,
      "on the host, update in one pass over memory: several times as fast, but equal to rounding "
      "instead of to the last bit of torch::optim");
  }

  void step(Arena& arena) {
    count(arena);
    apply(arena);
  }

  void count(Arena const& arena) {
    runs = count_step(arena, steps);
    factors.clear();
    if (in_one_pass(arena)) return;
    for (auto const& run : runs) {
      auto const t = static_cast<double>(run.steps + 1);
      factors.push_back(lr / (1 - std::pow(beta1, t)));
      factors.push_back(std::sqrt(1 - std::pow(beta2, t)));
    }
    there = arena.device().is_cpu()
                ? Tensor()
                : upload(torch::tensor(factors, torch::kFloat64), arena.device());
  }

  void apply(Arena& arena) {
    torch::NoGradGuard no_grad;
    make_moments(arena);
    if (in_one_pass(arena)) {
      return one_pass([&](auto&& f) { each_piece(arena, runs, steps, f); });
    }
    arena.gradient();
    each_block(arena.weights(), [&](Block const& block) { by_operations(arena, block); });
  }

  void apply(Arena& arena, Block const& block) {
    torch::NoGradGuard no_grad;
    make_moments(arena);
    if (!in_one_pass(arena)) return by_operations(arena, block);
    one_pass([&](auto&& f) { each_piece(arena, runs, block, f); });
  }

  double learning_rate() const { return lr; }
  void set_learning_rate(double rate) { lr = rate; }
  void reset() { first.reset(), second.reset(), steps.clear(); }
  void state(Archive& a) {
    a.flat("first", first);
    a.flat("second", second);
    a("steps", steps);
  }

  // State: written by `step`.
  Tensor first{}, second{};           ///< [P] moments
  std::vector<std::int64_t> steps{};  ///< taken by each parameter
  Runs runs{};                        ///< of the present step
  std::vector<double> factors{};      ///< of each run: lr / (1 - b1^t), sqrt(1 - b2^t)
  Tensor there{};  ///< the same on the device, where steps are planned; undefined on the host
  Tensor spare{};  ///< a buffer

 private:
  void make_moments(Arena const& arena) {
    if (first.defined()) return;
    first = torch::zeros_like(arena.weights()), second = torch::zeros_like(arena.weights());
  }

  void by_operations(Arena& arena, Block const& block) {
    for (std::size_t i = 0; i < runs.size(); ++i) {
      auto const piece = runs[i].within(block);
      if (piece.empty()) continue;
      auto w = piece.of(arena.weights()), g = piece.of(arena.gradient());
      if (decoupled && weight_decay != 0) w.mul_(1 - lr * weight_decay);
      auto scratch = buffer_like(w, spare);
      if (!decoupled && weight_decay != 0) g = at::add_out(scratch, g, w, weight_decay);
      auto m = piece.of(first).mul_(beta1).add_(g, 1 - beta1);
      auto v = piece.of(second).mul_(beta2).addcmul_(g, g, 1 - beta2);
      auto& root = at::sqrt_out(scratch, v);
      if (there.defined()) {
        root.div_(there.select(0, 2 * static_cast<std::int64_t>(i) + 1)).add_(eps);
        w.sub_(at::div_out(root, m, root).mul_(there.select(0, 2 * static_cast<std::int64_t>(i))));
      } else {
        root.div_(factors[2 * i + 1]).add_(eps);
        w.addcdiv_(m, root, -factors[2 * i]);
      }
    }
  }

  bool in_one_pass(Arena const& arena) const { return fused && has_kernel(arena.weights()); }

  template <class Pieces>
  void one_pass(Pieces&& pieces) {
    std::vector<Tensor> w, g, m, v, t;
    pieces([&](auto const& p, auto const& grad, auto const& of, auto taken) {
      w.push_back(p), g.push_back(grad.contiguous());
      m.push_back(of(first)), v.push_back(of(second));
      t.push_back(torch::full({}, static_cast<double>(taken + 1), torch::kFloat32));
    });
    if constexpr (decoupled) {
      at::_fused_adamw_(w, g, m, v, {}, t, lr, beta1, beta2, weight_decay, eps, false, false);
    } else {
      at::_fused_adam_(w, g, m, v, {}, t, lr, beta1, beta2, weight_decay, eps, false, false);
    }
  }
};
using Adam = AdamFamily<false>;
using AdamW = AdamFamily<true>;

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
