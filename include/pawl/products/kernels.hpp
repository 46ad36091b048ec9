#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "../torch.hpp"
#include "avx2.hpp"
#include "avx512.hpp"
#include "in_parallel.hpp"
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

/// Outputs of a layer that has few of them.
constexpr std::int64_t few_outputs = 16;

/// Inputs of a layer that has few of them, whose inner products are short, and multiplications that
/// are over all the same before LibTorch's would have begun.
constexpr std::int64_t few_inputs = 32, few_multiplications = 1 << 14;

/// Whether the kernels outrun LibTorch's products of any number of rows. Those are MKL's, which
/// uses no AVX-512 on processors of AMD, and so half of a core that has it, from family 1Ah (Zen 5)
/// on.
inline bool outrun_libtorch() {
#ifdef PAWL_PRODUCTS
  static bool const do_so = [] {
    __builtin_cpu_init();
    auto const is_late = __builtin_cpu_is("amd") && !__builtin_cpu_is("amdfam19h");
    return kernels() == Kernels::avx512 && is_late && at::hasMKL();
  }();
  return do_so;
#else
  return false;
#endif
}

/// Rows from which on LibTorch's products are faster: of outputs (but few), of gradients of inputs
/// and of gradients of weights.
struct ManyRows {
  std::int64_t of_outputs = 65, of_inputs = 65, of_weights = 129;
};
inline ManyRows many_rows() {
  constexpr auto any = std::numeric_limits<std::int64_t>::max();
  if (outrun_libtorch()) return {any, any, any};
  return kernels() == Kernels::avx512 ? ManyRows{.of_inputs = 1} : ManyRows{};
}
/// The same of all of these where LibTorch may use bfloat16.
constexpr std::int64_t many_rows_in_bfloat16 = 33;

/// Numbers in a gradient of inputs up to which, from few outputs, LibTorch is hardly faster.
constexpr std::int64_t small_gradient = 8192;

/// Rows from which on zeros are looked for, one by one.
constexpr std::int64_t sparse_rows = 32;

inline bool may_use_bfloat16() {
  return at::globalContext().float32MatmulPrecision() == at::Float32MatmulPrecision::MEDIUM;
}

/// Whether the kernels are used, where they suit.
inline bool uses_own_products() { return kernels() != Kernels::none; }
/// Whether zeros are left out, where there are enough.
inline bool leaves_out_zeros() { return uses_own_products() && !may_use_bfloat16(); }

/// Whether the kernels can read and write these: contiguous, float32, on the host, and not empty.
inline bool suits(Tensor const& rows, Tensor const& a, Tensor const& b) {
  if (!uses_own_products()) return false;
  for (auto const* m : {&rows, &a, &b}) {
    if (!m->is_cpu() || m->scalar_type() != torch::kFloat32 || !m->is_contiguous()) return false;
    if (m->numel() == 0) return false;
  }
  return true;
}

/// Whether pawl forms a product of rows [n, ...], zeros and all: n is less than `many`.
inline bool is_small(Tensor const& rows, std::int64_t many, Tensor const& a, Tensor const& b) {
  auto const n = rows.size(0);
  if (n >= many || (n >= many_rows_in_bfloat16 && may_use_bfloat16())) return false;
  return suits(rows, a, b);
}

#ifdef PAWL_PRODUCTS
/// How many threads such a product is worth.
inline std::int64_t threads_for(std::int64_t rows, std::int64_t depth, std::int64_t columns) {
  return rows * depth * columns >> 18;
}

/// [rows, depth] times [depth, columns]; where it `looks`, blocks of columns that hold nothing but
/// zeros take no time. Threads share the rows or, where there are more of them, the columns.
inline void multiply(Left const& left, Rectangle const& right, bool looks, Destination const& to) {
  auto const f = kernels() == Kernels::avx512 ? avx512::multiply : avx2::multiply;
  auto const threads = threads_for(left.rows, right.rows, right.columns);
  if (right.columns < left.rows) {
    in_parallel(left.rows, 16, threads, [&](auto begin, auto end) {
      f(left.part(begin, end), right, looks, to.from_row(begin));
    });
  } else {
    in_parallel(right.columns, 16, threads, [&](auto begin, auto end) {
      f(left, right.columns_part(begin, end), looks, to.from_column(begin));
    });
  }
}

/// x [rows, depth] times the transpose of w [outputs, depth], plus bias [outputs] or null. Longer
/// sums are added up in pieces, so many rows at a time that their pieces stay in the second cache.
inline void multiply_transposed_alone(Rectangle const& x, Rectangle const& w, float const* bias,
                                      Destination const& to) {
  constexpr std::int64_t piece = 1024, longest = 1536, rows_at_once = 128;
  auto const f =
      kernels() == Kernels::avx512 ? avx512::multiply_transposed : avx2::multiply_transposed;
  for (std::int64_t top = 0; top < x.rows; top += rows_at_once) {
    auto here = to.from_row(top);
    auto some = x.part(top, std::min(x.rows, top + rows_at_once));
    auto of_w = w;
    for (auto rest = x.columns; rest > 0 || !here.add; rest -= some.columns) {
      some.columns = of_w.columns = rest > longest ? piece : rest;
      f(some, of_w, bias, here);
      some.a += some.columns, of_w.a += some.columns;
      here.add = true;
    }
  }
}

/// The same: threads share the outputs or, where these are few, the rows.
inline void multiply_transposed(Rectangle const& x, Rectangle const& w, float const* bias,
                                Destination const& to) {
  auto const threads = threads_for(x.rows, x.columns, w.rows);
  if (w.rows > few_outputs) {
    in_parallel(w.rows, 16, threads, [&](auto begin, auto end) {
      multiply_transposed_alone(x, w.part(begin, end), bias ? bias + begin : nullptr,
                                to.from_column(begin));
    });
  } else {
    in_parallel(x.rows, 20, threads, [&](auto begin, auto end) {
      multiply_transposed_alone(x.part(begin, end), w, bias, to.from_row(begin));
    });
  }
}

/// Numbers [rows, columns] go to [columns, rows].
inline void put_transposed(Rectangle const& from, Destination const& to) {
  auto const f =
      kernels() == Kernels::avx512 ? avx512::Sparse::put_transposed : avx2::Sparse::put_transposed;
  f(from, to);
}

/// The sparse products of this thread, which keep their memory.
inline SparseProduct& sparse_product() {
  thread_local SparseProduct product(kernels() == Kernels::avx512 ? sparse_kernels<avx512::Sparse>()
                                                                  : sparse_kernels<avx2::Sparse>());
  return product;
}

/// A product that leaves out the zeros of its left factor, see `SparseProduct::run`. Threads share
/// the rows of the left factor or, where there are more of them, the columns of the right one, and
/// each packs all of the other factor. A part begins at an even row, since kernels add up what two
/// rows have in common first.
inline void multiply_sparse(Factor const& left, Factor const& right, float const* bias,
                            Destination const& to, bool transposed = false) {
  auto const threads = threads_for(left.rows, left.columns, right.columns) / 4;
  if (right.columns < left.rows) {
    in_parallel(left.rows, 16, threads, [&](auto begin, auto end) {
      auto const here = transposed ? to.from_column(begin) : to.from_row(begin);
      sparse_product().run(left.rows_part(begin, end), right, bias, here, transposed);
    });
  } else {
    in_parallel(right.columns, 16, threads, [&](auto begin, auto end) {
      auto const here = transposed ? to.from_row(begin) : to.from_column(begin);
      sparse_product().run(left, right.columns_part(begin, end), bias ? bias + begin : nullptr,
                           here, transposed);
    });
  }
}

inline Rectangle rectangle(Tensor const& m) {
  return {m.const_data_ptr<float>(), m.size(0), m.size(1), m.size(1)};
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
  return sparse_product().density(rectangle(rows));
#else
  return static_cast<void>(rows), static_cast<void>(outputs), 1;
#endif
}

}  // namespace products
}  // namespace v0
}  // namespace pawl
