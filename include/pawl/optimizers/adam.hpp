#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "../core/options.hpp"
#include "../device/step_table.hpp"
#include "../engine/arena.hpp"
#include "../engine/one_pass.hpp"
#include "../engine/pieces.hpp"
#include "optimizer.hpp"

namespace pawl {
inline namespace v0 {

/// Adam (Kingma and Ba, ICLR 2015), as `torch::optim::Adam` computes it:
///   m <- b1 m + (1 - b1) g;   v <- b2 v + (1 - b2) g^2
///   w <- w - lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps)
/// `decoupled` decay (AdamW; Loshchilov and Hutter, ICLR 2019) shrinks w by lr weight_decay instead
/// of adding weight_decay w to g. The step count t is kept per parameter.
///
/// The weights are those of `torch::optim` to the last bit, but in float32 on processors with AVX2
/// (in programs built with optimisation), where a learner updates in one pass over memory: there
/// the root is the nearest float32, and that of LibTorch may be its neighbour (1e-7 after 150
/// steps; not with engine = reference).
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
      "on the host, update in one pass over memory also where only LibTorch has a kernel for it, "
      "which is equal to rounding instead of to the last bit of torch::optim");
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
      if (decoupled) factors.push_back(1 - lr * weight_decay);
    }
    there = arena.device().is_cpu()
                ? Tensor()
                : upload(torch::tensor(factors, torch::kFloat64), arena.device());
  }

  void apply(Arena& arena) {
    torch::NoGradGuard no_grad;
    make_moments(arena);
    if (in_one_pass(arena)) return by_kernel(arena, nullptr);
    arena.gradient();
    each_block(arena.weights(), [&](Block const& block) { by_operations(arena, block); });
  }

  void apply(Arena& arena, Block const& block) {
    torch::NoGradGuard no_grad;
    make_moments(arena);
    in_one_pass(arena) ? by_kernel(arena, &block) : by_operations(arena, block);
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
  std::vector<double> factors{};      ///< of each run: lr / (1 - b1^t), sqrt(1 - b2^t), and what
                                      ///< decoupled decay leaves of the weights
  Tensor there{};  ///< the same on the device, where steps are planned; undefined on the host
  Tensor spare{};  ///< a buffer

 private:
  static constexpr std::size_t per_run = decoupled ? 3 : 2;  // factors

  void make_moments(Arena const& arena) {
    if (first.defined()) return;
    first = torch::zeros_like(arena.weights()), second = torch::zeros_like(arena.weights());
  }

  void by_operations(Arena& arena, Block const& block) {
    for (std::size_t i = 0; i < runs.size(); ++i) {
      auto const piece = runs[i].within(block);
      if (piece.empty()) continue;
      auto w = piece.of(arena.weights()), g = piece.gradient(arena);
      auto const here = per_run * i;
      auto const factor = [&](std::size_t k) {  // on the device
        return there.select(0, static_cast<std::int64_t>(here + k));
      };
      if (decoupled && weight_decay != 0) {
        there.defined() ? shrink(w, factor(2)) : static_cast<void>(w.mul_(factors[here + 2]));
      }
      auto scratch = buffer_like(w, spare);
      if (!decoupled && weight_decay != 0) g = at::add_out(scratch, g, w, weight_decay);
      auto m = piece.of(first).mul_(beta1).add_(g, 1 - beta1);
      auto v = piece.of(second).mul_(beta2).addcmul_(g, g, 1 - beta2);
      auto& root = at::sqrt_out(scratch, v);
      if (there.defined()) {
        root.div_(factor(1)).add_(eps);
        w.sub_(at::div_out(root, m, root).mul_(factor(0)));
      } else {
        root.div_(factors[here + 1]).add_(eps);
        w.addcdiv_(m, root, -factors[here]);
      }
    }
  }

  /// A factor near 1 would be lost in half precision.
  static void shrink(Tensor w, Tensor const& factor) {
    if (at::isReducedFloatingType(w.scalar_type())) {
      w.copy_(w.to(torch::kFloat32).mul_(factor));
    } else {
      w.mul_(factor);
    }
  }

  bool in_one_pass(Arena const& arena) const {
    auto const& w = arena.weights();
    return (fused && has_kernel(w)) || uses_own_kernel(arena);
  }

  static bool uses_own_kernel(Arena const& arena) {
    return !arena.by_operations() && one_pass::suits(arena.weights());
  }

  /// A block, or all weights.
  void by_kernel(Arena& arena, Block const* block) {
    if (uses_own_kernel(arena)) return by_own_kernel(arena, block);
    std::vector<Tensor> w, g, m, v, t;
    auto const take = [&](auto const& p, auto const& grad, auto const& of, auto taken) {
      w.push_back(p), g.push_back(grad.contiguous());
      m.push_back(of(first)), v.push_back(of(second));
      t.push_back(torch::full({}, static_cast<double>(taken + 1), torch::kFloat32));
    };
    block != nullptr ? each_piece(arena, runs, *block, take) : each_piece(arena, runs, steps, take);
    if constexpr (decoupled) {
      at::_fused_adamw_(w, g, m, v, {}, t, lr, beta1, beta2, weight_decay, eps, false, false);
    } else {
      at::_fused_adam_(w, g, m, v, {}, t, lr, beta1, beta2, weight_decay, eps, false, false);
    }
  }

  /// Without a view for every parameter.
  void by_own_kernel(Arena& arena, Block const* block) {
    auto* const w = arena.weights().mutable_data_ptr<float>();
    auto *const m = first.mutable_data_ptr<float>(), *const v = second.mutable_data_ptr<float>();
    auto const update = [&](std::int64_t at, std::int64_t n, Tensor const& g, std::int64_t taken) {
      auto work = scalars(taken);
      work.w = w + at, work.g = g.const_data_ptr<float>(), work.m = m + at, work.v = v + at;
      one_pass::run(work, n);
    };
    if (block != nullptr || arena.packed()) {
      for (auto const& run : runs) {
        auto const piece = block != nullptr ? run.within(*block) : run.all();
        if (piece.empty()) continue;
        update(piece.begin, piece.end - piece.begin, piece.gradient(arena), run.steps);
      }
    } else {
      for (std::size_t i = 0; i < steps.size(); ++i) {
        if (!arena.active()[i]) continue;
        auto const& place = arena.layout()[i];
        auto const g = arena.parameters()[i].grad().contiguous();
        update(place.offset, place.size, g, steps[i] - 1);
      }
    }
    for (auto const& p : arena.parameters()) p.unsafeGetTensorImpl()->bump_version();
  }

  one_pass::Adam scalars(std::int64_t taken) const {
    auto const t = static_cast<double>(taken + 1);
    one_pass::Adam s;
    s.beta1 = static_cast<float>(beta1), s.new1 = static_cast<float>(1 - beta1);
    s.beta2 = static_cast<float>(beta2), s.new2 = static_cast<float>(1 - beta2);
    s.rate = static_cast<float>(lr / (1 - std::pow(beta1, t)));
    s.correction = static_cast<float>(std::sqrt(1 - std::pow(beta2, t)));
    s.eps = static_cast<float>(eps);
    s.decay = decoupled ? 0.0f : static_cast<float>(weight_decay);
    s.keep = decoupled ? static_cast<float>(1 - lr * weight_decay) : 1.0f;
    return s;
  }
};
using Adam = AdamFamily<false>;
using AdamW = AdamFamily<true>;

template <bool decoupled>
inline constexpr bool rate_is_uploaded<AdamFamily<decoupled>> = true;

}  // namespace v0
}  // namespace pawl
