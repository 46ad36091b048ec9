#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../torch.hpp"
#include "avx2.hpp"
#include "avx512.hpp"
#include "sparse.hpp"

namespace pawl {
inline namespace v0 {

// The three matrix products of a linear layer, for the rows of a training step.
//
// LibTorch's are made for large products. Of few rows, those of avx2.hpp, on a core that has no
// more, are 1.4 times as fast at 10 rows, 1.2 at 20 and as fast at 64; those of avx512.hpp form
// outputs in three quarters of the time and add gradients to weights in half to two thirds, and
// leave gradients of inputs to LibTorch but where outputs are few. Outputs of a layer that has few
// are formed two to four times as fast by both. They sum in a fixed order, so that a row's outputs
// do not depend on the other rows of its batch.
//
// From 32 rows on, products of which enough is zero are those of sparse.hpp: 2 times as fast where
// a fifth is not zero, 1.2 where half is not. Whether it is enough is seen in a few rows of the
// batch, so the other rows of a batch may change the last bits of a row's outputs there.

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

/// Rows from which on zeros are looked for, one by one.
constexpr std::int64_t sparse_rows = 32;

inline bool may_use_bfloat16() {
  return at::globalContext().float32MatmulPrecision() == at::Float32MatmulPrecision::MEDIUM;
}

/// Whether this thread uses the kernels, where they suit.
inline bool uses_own_products() { return kernels() != Kernels::none && at::get_num_threads() == 1; }
/// Whether it leaves out zeros, where there are enough.
inline bool leaves_out_zeros() { return uses_own_products() && !may_use_bfloat16(); }

/// Whether the kernels can read and write these: contiguous, float32, on the host.
inline bool suits(Tensor const& rows, Tensor const& a, Tensor const& b) {
  if (!uses_own_products()) return false;
  for (auto const* m : {&rows, &a, &b}) {
    if (!m->is_cpu() || m->scalar_type() != torch::kFloat32 || !m->is_contiguous()) return false;
  }
  return true;
}

/// Whether pawl forms the product of rows [n, ...] with a layer of so many outputs, zeros and all:
/// n is less than `many` or outputs are few.
inline bool is_small(Tensor const& rows, std::int64_t outputs, std::int64_t many, Tensor const& a,
                     Tensor const& b) {
  if (auto const n = rows.size(0); outputs > 16) {
    if (n >= many || (n >= many_rows_in_bfloat16 && may_use_bfloat16())) return false;
  }
  return suits(rows, a, b);
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

/// Calls f with the memory of this thread's sparse products.
template <class F>
auto with_sparse_product(F&& f) {
  if (kernels() == Kernels::avx512) {
    thread_local SparseProduct<avx512::Sparse> product;
    return f(product);
  }
  thread_local SparseProduct<avx2::Sparse> product;
  return f(product);
}

inline Factor factor(Tensor const& m) {
  return {m.const_data_ptr<float>(), m.size(0), m.size(1), m.size(1), 1};
}
inline Factor factor_transposed(Tensor const& m) {
  return {m.const_data_ptr<float>(), m.size(1), m.size(0), 1, m.size(1)};
}
#endif

/// The share of numbers other than zero up to which a sparse product of n rows is the faster one,
/// where the copies that it makes take as long as so many rows of it.
inline double most_filled(std::int64_t n, double copies) {
  auto const of_many = kernels() == Kernels::avx512 ? 0.75 : 0.65;
  return of_many - copies / static_cast<double>(n);
}

/// The share of numbers other than zero in rows [n, ...], as a few of them tell; 1 where no product
/// of these rows with a layer of so many outputs is a sparse one.
inline double density(Tensor const& rows, std::int64_t outputs) {
#ifdef PAWL_PRODUCTS
  constexpr std::int64_t few = 32;
  auto const n = rows.size(0), columns = rows.size(1);
  if (n < sparse_rows || columns < few || outputs < few || !leaves_out_zeros()) return 1;
  return with_sparse_product([&](auto const& product) {
    return product.density({rows.const_data_ptr<float>(), n, columns, columns});
  });
#else
  return static_cast<void>(rows), static_cast<void>(outputs), 1;
#endif
}

/// y [n, out] = x [n, in] times w [out, in] transposed, plus bias [out] where it is defined.
inline void linear(Tensor& y, Tensor const& x, Tensor const& w, Tensor const& bias) {
#ifdef PAWL_PRODUCTS
  if ((!bias.defined() || bias.is_contiguous()) && suits(x, w, y)) {
    auto const* b = bias.defined() ? bias.const_data_ptr<float>() : nullptr;
    Destination const to{y.mutable_data_ptr<float>(), y.size(1)};
    if (density(x, w.size(0)) < most_filled(x.size(0), 0)) {
      ShownProduct const shown(x, false, w, true);
      with_sparse_product([&](auto& p) { p.run(factor(x), factor_transposed(w), b, to); });
      return;
    }
    if (is_small(x, w.size(0), many_rows, w, y)) {
      ShownProduct const shown(x, false, w, true);
      pawl::multiply_transposed(x.const_data_ptr<float>(), x.size(0), x.size(1),
                                w.const_data_ptr<float>(), w.size(0), b, to);
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
      with_sparse_product([&](auto& p) { p.run(factor(d), factor(w), nullptr, to); });
      return;
    }
    if (is_small(d, d.size(1), many_rows_of_inputs(), w, y)) {
      ShownProduct const shown(d, false, w, false);
      pawl::multiply({d.const_data_ptr<float>(), d.size(0), d.size(1), 1}, d.size(1),
                     w.const_data_ptr<float>(), w.size(1), false, to);
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

  /// Whether it is all the same, to the last bit, to add it to y or to form it and add that.
  bool is_separable(Tensor const& y) const {
    if (!x.defined()) return false;
    if (zeros(y) != Zeros::not_used) return true;
    return d.size(0) <= depth_at_once && is_small(d, d.size(1), many_rows_of_weights, x, y);
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

  bool multiply(Tensor& y, bool add, double factor) const {
#ifdef PAWL_PRODUCTS
    auto const left_out = zeros(y);
    if (left_out == Zeros::not_used && !is_small(d, d.size(1), many_rows_of_weights, x, y)) {
      return false;
    }
    ShownProduct const shown(d, true, x, false);
    Destination const to{y.mutable_data_ptr<float>(), y.size(1), add, static_cast<float>(factor)};
    if (left_out == Zeros::not_used) {
      pawl::multiply({d.const_data_ptr<float>(), d.size(1), 1, d.size(1)}, d.size(0),
                     x.const_data_ptr<float>(), x.size(1), true, to);
    } else {
      auto const turned = left_out == Zeros::of_x;
      auto const &left = turned ? x : d, &right = turned ? d : x;
      with_sparse_product([&](auto& p) {
        p.run(factor_transposed(left), pawl::factor(right), nullptr, to, turned);
      });
    }
    y.unsafeGetTensorImpl()->bump_version();  // graphs that need the old values notice
    return true;
#else
    static_cast<void>(y), static_cast<void>(add), static_cast<void>(factor);
    return false;
#endif
  }
};

}  // namespace v0
}  // namespace pawl
