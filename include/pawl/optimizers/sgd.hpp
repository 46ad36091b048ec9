#pragma once

#include <cstdint>
#include <vector>

#include "../core/options.hpp"
#include "../device/step_table.hpp"
#include "../engine/arena.hpp"
#include "../engine/pieces.hpp"
#include "optimizer.hpp"

namespace pawl {
inline namespace v0 {

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
    runs = count_step(arena, steps);
    there = arena.device().is_cpu() ? Tensor() : upload(lr, arena.device());
  }

  void apply(Arena& arena) {
    torch::NoGradGuard no_grad;
    if (there.defined()) arena.gradient();  // packed, all parameters take a few kernels
    if (momentum != 0) {
      return with_momentum(arena, [&](auto&& f) { each_piece(arena, runs, steps, f); });
    }
    if (arena.packed() && !arena.has_unformed()) {
      each_piece(arena, runs, steps,
                 [&](auto const& w, auto const& g, auto&&...) { descend(w, decayed(g, w)); });
      return;
    }
    for (std::size_t i = 0; i < arena.parameters().size(); ++i) {  // steps do not matter
      if (!arena.active()[i]) continue;
      if (only_adds_gradient()) {
        arena.add_gradient_to(i, -lr);
      } else {
        auto const& w = arena.parameters()[i];
        descend(w, decayed(w.grad(), w));
      }
    }
  }

  void apply(Arena& arena, Block const& block) {
    torch::NoGradGuard no_grad;
    auto const pieces = [&](auto&& f) { each_piece(arena, runs, block, f); };
    if (momentum != 0) return with_momentum(arena, pieces);
    pieces([&](auto const& w, auto const& g, auto&&...) { descend(w, decayed(g, w)); });
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
  Tensor there{};                     ///< its rate on the device; undefined on the host

 private:
  Tensor decayed(Tensor const& g, Tensor const& w) const {
    return weight_decay == 0 ? g : g.add(w, weight_decay);
  }

  void descend(Tensor w, Tensor const& g) const {
    auto const half = at::isReducedFloatingType(w.scalar_type());  // which the rate must not become
    if (!there.defined()) {
      w.add_(g, -lr);
    } else if (half) {
      w.copy_(w.to(torch::kFloat32).addcmul_(g.to(torch::kFloat32), there, -1));
    } else {
      w.addcmul_(g, there, -1);
    }
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
    g = decayed(g, w);
    if (first) {
      v.copy_(g);
    } else {
      v.mul_(momentum).add_(g, 1 - dampening);
    }
    descend(w, nesterov ? g.add(v, momentum) : v);
  }
};

template <>
inline constexpr bool rate_is_uploaded<Sgd> = true;

}  // namespace v0
}  // namespace pawl
