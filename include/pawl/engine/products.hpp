#pragma once

#include <cstdint>
#include <vector>

#include "../torch.hpp"
#include "avx2.hpp"
#include "avx512.hpp"

namespace pawl {
inline namespace v0 {

// The three matrix products of a linear layer, for the few rows of a training step. LibTorch's are
// made for large products: those of avx2.hpp, on a core that has no more, are 1.4 times as fast at
// 10 rows, 1.2 at 20 and as fast at 64; those of avx512.hpp form outputs in three quarters of the
// time and add gradients to weights in half to two thirds, and leave gradients of inputs to
// LibTorch but where outputs are few. Outputs of a layer that has few are formed two to four times
// as fast by both. They sum in a fixed order, so that a row's outputs do not depend on the other
// rows of its batch.

/// Shows a product of pawl to LibTorch's profilers, where one listens: as `pawl::mm` of a [n, k]
/// and b [k, m], either of which may be given transposed.
class ShownProduct {
 public:
  ShownProduct(Tensor const& a, bool transpose_a, Tensor const& b, bool transpose_b) {
    if (!call_.isActive()) return;
    inputs_.emplace_back(transpose_a ? a.t() : a);
    inputs_.emplace_back(transpose_b ? b.t() : b);
    call_.before("pawl::mm", &inputs_);
  }
  ShownProduct(ShownProduct const&) = delete;
  ShownProduct& operator=(ShownProduct const&) = delete;

 private:
  std::vector<c10::IValue> inputs_;
  at::RecordFunction call_{at::RecordScope::FUNCTION};
};

/// The kernels for the instructions that LibTorch itself would use on this processor.
enum class Kernels { none, avx2, avx512 };

inline Kernels kernels() {
#ifdef PAWL_PRODUCTS
  static Kernels const found = [] {
    auto const capability = at::get_cpu_capability();
    if (capability == "AVX512") return Kernels::avx512;
    return capability == "AVX2" ? Kernels::avx2 : Kernels::none;
  }();
  return found;
#else
  return Kernels::none;
#endif
}

/// Rows from which on LibTorch's products are faster: of outputs, of gradients of inputs and of
/// gradients of weights; of all of them where it may use bfloat16.
constexpr std::int64_t many_rows = 65, many_rows_of_weights = 129, many_rows_in_bfloat16 = 33;
inline std::int64_t many_rows_of_inputs() { return kernels() == Kernels::avx512 ? 1 : 65; }

inline bool may_use_bfloat16() {
  return at::globalContext().float32MatmulPrecision() == at::Float32MatmulPrecision::MEDIUM;
}

/// Whether pawl forms the product of rows [n, ...] with a layer of so many outputs: n is less than
/// `many` or outputs are few, in float32 on the host, on one thread, where there are kernels.
inline bool is_small(Tensor const& rows, std::int64_t outputs, std::int64_t many, Tensor const& a,
                     Tensor const& b) {
  if (kernels() == Kernels::none || at::get_num_threads() != 1) return false;
  if (auto const n = rows.size(0); outputs > 16) {
    if (n >= many || (n >= many_rows_in_bfloat16 && may_use_bfloat16())) return false;
  }
  for (auto const* m : {&rows, &a, &b}) {
    if (!m->is_cpu() || m->scalar_type() != torch::kFloat32 || !m->is_contiguous()) return false;
  }
  return true;
}

#ifdef PAWL_PRODUCTS
inline void multiply(Left const& left, std::int64_t depth, float const* b, std::int64_t columns,
                     bool looks, Destination const& to) {
  auto const f = kernels() == Kernels::avx512 ? avx512::multiply : avx2::multiply;
  f(left, depth, b, columns, looks, to);
}

inline void multiply_transposed(float const* x, std::int64_t rows, std::int64_t depth,
                                float const* w, std::int64_t outputs, float const* bias,
                                Destination const& to) {
  auto const f =
      kernels() == Kernels::avx512 ? avx512::multiply_transposed : avx2::multiply_transposed;
  f(x, rows, depth, w, outputs, bias, to);
}
#endif

/// y [n, out] = x [n, in] times w [out, in] transposed, plus bias [out] where it is defined.
inline void linear(Tensor& y, Tensor const& x, Tensor const& w, Tensor const& bias) {
#ifdef PAWL_PRODUCTS
  auto const plain_bias = !bias.defined() || bias.is_contiguous();
  if (plain_bias && is_small(x, w.size(0), many_rows, w, y)) {
    ShownProduct const shown(x, false, w, true);
    pawl::multiply_transposed(x.const_data_ptr<float>(), x.size(0), x.size(1),
                              w.const_data_ptr<float>(), w.size(0),
                              bias.defined() ? bias.const_data_ptr<float>() : nullptr,
                              {y.mutable_data_ptr<float>(), y.size(1)});
    return;
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
  if (is_small(d, d.size(1), many_rows_of_inputs(), w, y)) {
    ShownProduct const shown(d, false, w, false);
    pawl::multiply({d.const_data_ptr<float>(), d.size(0), d.size(1), 1}, d.size(1),
                   w.const_data_ptr<float>(), w.size(1), false,
                   {y.mutable_data_ptr<float>(), y.size(1)});
    return;
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

  /// Whether it is all the same, to the last bit, to add it to y or to form it and add that.
  bool is_separable(Tensor const& y) const {
    return x.defined() && d.size(0) <= depth_at_once &&
           is_small(d, d.size(1), many_rows_of_weights, x, y);
  }

  /// y = gradient.
  void form(Tensor y) const {
    if (!x.defined()) {
      at::sum_out(y, d, {0});
    } else if (!multiply(y, false, 1)) {
      at::mm_out(y, d.t(), x);
    }
  }

  /// y += factor * gradient.
  void add_to(Tensor y, double factor) const {
    if (!x.defined()) {
      y.add_(d.sum(0), factor);
    } else if (!multiply(y, true, factor)) {
      y.addmm_(d.t(), x, 1, factor);
    }
  }

 private:
  bool multiply(Tensor& y, bool add, double factor) const {
#ifdef PAWL_PRODUCTS
    if (is_small(d, d.size(1), many_rows_of_weights, x, y)) {
      ShownProduct const shown(d, true, x, false);
      pawl::multiply({d.const_data_ptr<float>(), d.size(1), 1, d.size(1)}, d.size(0),
                     x.const_data_ptr<float>(), x.size(1), true,
                     {y.mutable_data_ptr<float>(), y.size(1), add, static_cast<float>(factor)});
      y.unsafeGetTensorImpl()->bump_version();  // graphs that need the old values notice
      return true;
    }
#endif
    static_cast<void>(y), static_cast<void>(add), static_cast<void>(factor);
    return false;
  }
};

}  // namespace v0
}  // namespace pawl
