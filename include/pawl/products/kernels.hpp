#pragma once

#include <cstdint>
#include <vector>

#include "../torch.hpp"
#include "avx2.hpp"
#include "avx512.hpp"
#include "sparse.hpp"

namespace pawl {
inline namespace v0 {
namespace products {

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

/// The sparse products of this thread, which keep their memory.
inline SparseProduct& sparse_product() {
  thread_local SparseProduct product(kernels() == Kernels::avx512 ? sparse_kernels<avx512::Sparse>()
                                                                  : sparse_kernels<avx2::Sparse>());
  return product;
}

inline Factor factor(Tensor const& m) {
  return {m.const_data_ptr<float>(), m.size(0), m.size(1), m.size(1), 1};
}
inline Factor factor_transposed(Tensor const& m) {
  return {m.const_data_ptr<float>(), m.size(1), m.size(0), 1, m.size(1)};
}
#endif

/// The highest share of numbers other than zero at which a sparse product of n rows is the faster
/// one. `copies` is what its packing costs, in rows of the product.
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
  return sparse_product().density({rows.const_data_ptr<float>(), n, columns, columns});
#else
  return static_cast<void>(rows), static_cast<void>(outputs), 1;
#endif
}

}  // namespace products
}  // namespace v0
}  // namespace pawl
