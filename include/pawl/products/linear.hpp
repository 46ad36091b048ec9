#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels.hpp"

namespace pawl {
inline namespace v0 {
namespace products {

// The three matrix products of a linear layer, for the rows of a training step.
//
// LibTorch's are made for large products. Of few rows, those of avx2.hpp, on a core that has no
// more, are 1.4 times as fast at 10 rows, 1.2 at 20 and as fast at 64; those of avx512.hpp form
// outputs in three quarters of the time and add gradients to weights in half to two thirds, and
// leave gradients of inputs to LibTorch but where there are few numbers. Outputs of a layer that
// has few are formed one to three and a half times as fast; of those that have few inputs,
// LibTorch's are faster. On processors of AMD from Zen 5 on, whose AVX-512 LibTorch's products do
// not use, pawl's are twice as fast and more, of any number of rows. They sum in a fixed order, so
// that a row's outputs do not depend on the other rows of its batch.
//
// From 32 rows on, products of which enough is zero are those of sparse.hpp: at 128 rows 2.4 to 2.7
// times as fast where a fifth is not zero, 1.3 to 1.6 where half is not. Whether it is enough is
// seen in a few rows of the batch, so the other rows of a batch may change the last bits of a row's
// outputs there.

/// y [n, out] = x [n, in] times w [out, in] transposed, plus bias [out] where it is defined.
inline void linear(Tensor& y, Tensor const& x, Tensor const& w, Tensor const& bias) {
#ifdef PAWL_PRODUCTS
  if ((!bias.defined() || bias.is_contiguous()) && suits(x, w, y)) {
    auto const* b = bias.defined() ? bias.const_data_ptr<float>() : nullptr;
    Destination const to{y.mutable_data_ptr<float>(), y.size(1)};
    if (density(x, w.size(0)) < most_filled(x.size(0), 0)) {
      ShownProduct const shown(x, false, w, true);
      multiply_sparse(factor(x), factor_transposed(w), b, to);
      return;
    }
    auto const is_short = x.size(1) < few_inputs && x.numel() * w.size(0) > few_multiplications;
    auto const is_narrow = w.size(0) <= few_outputs;
    if (!is_short && (is_narrow || is_small(x, many_rows().of_outputs, w, y))) {
      ShownProduct const shown(x, false, w, true);
      products::multiply_transposed(rectangle(x), rectangle(w), b, to);
      return;
    }
  }
#endif
  if (bias.defined()) {
    at::addmm_out(y, bias, x, w.t());
  } else {
    at::mm_out(y, x, w.t());
  }
}

/// y [n, in] = d [n, out] times w [out, in].
inline void input_gradient(Tensor& y, Tensor const& d, Tensor const& w) {
#ifdef PAWL_PRODUCTS
  if (suits(d, w, y)) {
    Destination const to{y.mutable_data_ptr<float>(), y.size(1)};
    if (density(d, w.size(1)) < most_filled(d.size(0), 4)) {
      ShownProduct const shown(d, false, w, false);
      multiply_sparse(factor(d), factor(w), nullptr, to);
      return;
    }
    auto const is_little = d.size(1) <= few_outputs && y.numel() <= small_gradient;
    auto const many = many_rows();
    if (is_small(d, is_little ? many.of_outputs : many.of_inputs, w, y)) {
      ShownProduct const shown(d, false, w, false);
      products::multiply({d.const_data_ptr<float>(), d.size(0), d.size(1), 1}, rectangle(w), false,
                         to);
      return;
    }
  }
#endif
  at::mm_out(y, d, w);
}

/// The gradient of a layer's weight [out, in], d^T x, or of its bias [out], the sum of d's rows,
/// before it is formed: d [n, out] is the gradient of the layer's outputs, x [n, in] are its inputs
/// (undefined for a bias).
struct LayerGradient {
  Tensor d{}, x{};

  bool defined() const { return d.defined(); }

  /// Whether y += c d^T x in one pass gives the same bits as forming d^T x first and adding that.
  bool is_separable(Tensor const& y) const {
    if (!x.defined() || d.size(0) == 0) return false;
    if (zeros(y) != Zeros::not_used) return true;
    return d.size(0) <= depth_at_once && is_small(y);
  }

  /// y = gradient.
  void form(Tensor y) const {
    if (!x.defined()) {
      at::sum_out(y, d, {0});
    } else if (!multiply(y, false, 1)) {
      at::mm_out(y, d.t(), x);
    }
  }

  /// y += factor * gradient, after a pull on y, which needs `is_separable`.
  void add_to(Tensor y, double factor, AnchorPull const* pull = nullptr) const {
    if (x.defined() && multiply(y, true, factor, pull)) return;
    TORCH_INTERNAL_ASSERT(pull == nullptr);
    if (x.defined()) {
      y.addmm_(d.t(), x, 1, factor);
    } else {
      y.add_(d.sum(0), factor);
    }
  }

 private:
  /// Whether pawl forms it, zeros and all: few rows, which fit into the second cache, or any where
  /// that is faster.
  bool is_small(Tensor const& y) const {
    constexpr std::int64_t most = 1 << 18;
    if (x.numel() > most && !outrun_libtorch()) return false;
    return products::is_small(d, many_rows().of_weights, x, y);
  }

  enum class Zeros { not_used, of_d, of_x };

  /// Whose zeros a product leaves out. Those of more rows would need a large copy.
  Zeros zeros(Tensor const& y) const {
    auto const n = d.size(0);
    if (n > 1024 || !suits(d, x, y)) return Zeros::not_used;
    auto const of_d = density(d, x.size(1)), of_x = density(x, d.size(1));
    constexpr double turned = 0.05;  // it then takes longer to put the product where it belongs
    if (std::min(of_d, of_x + turned) >= most_filled(n, 12)) return Zeros::not_used;
    return of_d <= of_x + turned ? Zeros::of_d : Zeros::of_x;
  }

  bool multiply(Tensor& y, bool add, double factor, AnchorPull const* pull = nullptr) const {
#ifdef PAWL_PRODUCTS
    auto const left_out = zeros(y);
    if (left_out == Zeros::not_used && !is_small(y)) return false;
    ShownProduct const shown(d, true, x, false);
    Destination const to{y.mutable_data_ptr<float>(), y.size(1), add, static_cast<float>(factor),
                         pull};
    if (left_out == Zeros::not_used) {
      products::multiply({d.const_data_ptr<float>(), d.size(1), 1, d.size(1)}, rectangle(x), true,
                         to);
    } else {
      auto const turned = left_out == Zeros::of_x;
      auto const &left = turned ? x : d, &right = turned ? d : x;
      multiply_sparse(factor_transposed(left), products::factor(right), nullptr, to, turned);
    }
    y.unsafeGetTensorImpl()->bump_version();  // graphs that need the old values notice
    return true;
#else
    static_cast<void>(y), static_cast<void>(add), static_cast<void>(factor);
    static_cast<void>(pull);
    return false;
#endif
  }
};

}  // namespace products

using products::LayerGradient;

}  // namespace v0
}  // namespace pawl
