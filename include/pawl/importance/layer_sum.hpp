#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>

#include "../core/data.hpp"
#include "../products/linear.hpp"
#include "layer_graph.hpp"
#include "patches.hpp"

namespace pawl {
inline namespace v0 {

/// Which scalars of each sample to differentiate, as gradients by the logits (cotangents).
struct Cotangents {
  std::int64_t count = 1;                  ///< scalars per sample
  std::function<Tensor(std::int64_t)> at;  ///< [n, C'] of scalar k
};

/// sum_n sum_k f(d l_nk / d th) with f a square or a magnitude.
struct PerSampleSum {
  enum class Of { square, magnitude };
  Of of = Of::square;
  std::int64_t unit = 1;  ///< rows whose mean counts as one sample; 1 but for the readings by batch

  /// From detached logits [n, C'], their rows, and the number of the first among the chosen
  /// samples.
  std::function<Cotangents(Tensor const& logits, Rows const& rows, std::int64_t first)> cotangents;

  Tensor f(Tensor const& t) const { return of == Of::square ? wide(t).square() : wide(t).abs(); }

  /// sum <- sum + f(t), in float at least; an undefined sum is 0.
  void add(Tensor& sum, Tensor const& t) const {
    if (!sum.defined()) {
      sum = f(t);
    } else if (of == Of::square) {
      sum.addcmul_(wide(t), wide(t));
    } else {
      sum.add_(f(t));
    }
  }

  /// sum <- sum + sum_n f(t_n), for t [n, ...] with one row per sample.
  void add_samples(Tensor& sum, Tensor const& t) const {
    auto const part = f(t).sum(0);
    sum.defined() ? sum.add_(part) : (sum = part);
  }

  static torch::Dtype wide_type(Tensor const& t) {
    return t.scalar_type() == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
  }
  static Tensor wide(Tensor const& t) { return t.to(wide_type(t)); }
};

/// sum_n f(d l_n / d th) of one layer, from the gradients g_n at its output, which come scalar by
/// scalar. With `own_products`, those of pawl may form it.
class LayerSum {
 public:
  LayerSum(LayerUse const& use, PerSampleSum const& what, bool own_products)
      : use_(use), what_(what), own_products_(own_products) {}

  /// Takes the gradients of one scalar per sample, as large as the layer's results.
  void take(Tensor const& g) {
    if (use_.kind == LayerUse::Kind::linear) return what_.add(spread_, g);
    if (use_.weight >= 0) {
      if (use_.kind == LayerUse::Kind::convolution) {
        take_patches(as_images(use_.input), as_images(g));
      } else {
        what_.add_samples(weight_, within(use_.input * g));
      }
    }
    if (use_.bias >= 0) what_.add_samples(bias_, within(g));
  }

  /// Adds to a sum [P].
  void add_to(Arena const& arena, Tensor const& sum) {
    if (spread_.defined()) return add_linear(arena, sum);
    if (weight_.defined()) place(arena, sum, use_.weight, weight_);
    if (bias_.defined()) place(arena, sum, use_.bias, bias_);
  }

 private:
  static void place(Arena const& arena, Tensor const& sum, std::int64_t parameter,
                    Tensor const& value) {
    auto const view = arena.parameter_view(sum, static_cast<std::size_t>(parameter));
    view.add_(value.view(view.sizes()));
  }

  /// d l_n / dW = g_n a_n^T, so f(d l_n / dW) = f(g_n) f(a_n)^T: a sum over samples is one product.
  void add_linear(Arena const& arena, Tensor const& sum) const {
    auto const part = [&](std::int64_t i) {
      return arena.parameter_view(sum, static_cast<std::size_t>(i));
    };
    if (use_.weight >= 0) {
      auto const a = what_.f(use_.input);
      auto w = part(use_.weight);
      if (own_products_ && use_.transposed) {
        LayerGradient{spread_, a}.add_to(w, 1);
      } else {
        use_.transposed ? w.addmm_(spread_.t(), a) : w.addmm_(a.t(), spread_);
      }
    }
    if (use_.bias >= 0) part(use_.bias).add_(spread_.sum(0));
  }

  /// d l_n / dW = g_n U_n^T, with U_n the patches under the kernel. Some samples at a time: on the
  /// host a few, so that gradients and patches stay in the caches.
  void take_patches(Tensor const& x, Tensor const& g) {
    auto const n = g.size(0), groups = use_.groups, positions = g.size(2) * g.size(3);
    auto const patch = x.size(1) * use_.kernel[0] * use_.kernel[1];
    auto const each = g.size(1) * patch / groups + patch * positions;  // numbers per sample
    auto const room = std::int64_t{1} << (g.is_cpu() ? 19 : 26);
    auto const some = std::max<std::int64_t>(1, room / each);
    Patches const patches(use_, x);
    for (std::int64_t begin = 0; begin < n; begin += some) {
      auto const count = std::min(some, n - begin);
      auto const under_kernel =
          patches.of(begin, count).view({count * groups, patch / groups, positions});
      auto const gradients = g.narrow(0, begin, count)
                                 .reshape({count * groups, g.size(1) / groups, positions})
                                 .bmm(under_kernel.transpose(1, 2));
      what_.add_samples(weight_, gradients.view({count, -1}));
    }
  }

  /// Signals [n, C, L] are images of one row.
  static Tensor as_images(Tensor const& t) { return t.dim() == 3 ? t.unsqueeze(2) : t; }

  /// Sums over the positions within each sample: what is left is as large as the parameter.
  Tensor within(Tensor const& t) const {
    if (use_.scaled_dimensions == 0) return t.dim() > 2 ? t.flatten(2).sum(2) : t;
    auto const end = t.dim() - use_.scaled_dimensions;
    return end > 1 ? t.flatten(1, end - 1).sum(1) : t;
  }

  LayerUse const& use_;
  PerSampleSum const& what_;
  bool own_products_;
  Tensor spread_;         ///< linear: sum_k f(g_nk) [n, out]
  Tensor weight_, bias_;  ///< the sums so far
};

}  // namespace v0
}  // namespace pawl
