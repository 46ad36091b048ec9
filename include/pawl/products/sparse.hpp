#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "../torch.hpp"

#include "sparse_avx2.hpp"
#include "sparse_avx512.hpp"

#ifdef PAWL_PRODUCTS

namespace pawl {
inline namespace v0 {
namespace products {

/// A factor [rows, columns] of any strides, of which one is 1.
struct Factor {
  float const* a = nullptr;
  std::int64_t rows = 0, columns = 0, row_stride = 0, column_stride = 1;

  float const* at(std::int64_t row, std::int64_t column) const {
    return a + row * row_stride + column * column_stride;
  }
  Factor rows_part(std::int64_t begin, std::int64_t end) const {
    return {at(begin, 0), end - begin, columns, row_stride, column_stride};
  }
  Factor columns_part(std::int64_t begin, std::int64_t end) const {
    return {at(0, begin), rows, end - begin, row_stride, column_stride};
  }
};

/// Vectors of a panel's row, at most: so many sums of a row fit into registers.
constexpr std::int64_t widest_panel = 9;

/// The kernels for a set of instructions: those of `avx2::Sparse`, or `avx512::Sparse`.
struct SparseKernels {
  using AddRows = void (*)(MaskedRows left, float const* panel, RowSums sums);

  std::int64_t lanes = 0;  ///< numbers of a vector
  void (*mask)(Rectangle rows, std::uint64_t* masks) = nullptr;
  void (*put)(Rectangle from, Destination to) = nullptr;
  void (*put_transposed)(Rectangle from, Destination to) = nullptr;
  std::array<AddRows, widest_panel> add_rows{};  ///< for panels of 1, 2, ... vectors
};

template <class Instructions, std::size_t... V>
constexpr SparseKernels::AddRows add_rows_of(std::index_sequence<V...>) {
  return Instructions::template add_rows<V...>;
}
template <class Instructions, std::size_t... W>
constexpr SparseKernels kernels_of(std::index_sequence<W...>) {
  return {Instructions::lanes,
          Instructions::mask,
          Instructions::put,
          Instructions::put_transposed,
          {add_rows_of<Instructions>(std::make_index_sequence<W + 1>())...}};
}
template <class Instructions>
constexpr SparseKernels sparse_kernels() {
  return kernels_of<Instructions>(std::make_index_sequence<widest_panel>());
}

/// Memory that grows, from the beginning of a line of the cache on. What it holds is gone when it
/// has grown.
class Room {
 public:
  template <class T>
  T* of(std::int64_t n) {
    auto const size = static_cast<std::size_t>(n) * sizeof(T);
    if (size > size_)
      memory_ = c10::GetAllocator(c10::DeviceType::CPU)->allocate(size), size_ = size;
    return static_cast<T*>(memory_.get());
  }

 private:
  c10::DataPtr memory_;
  std::size_t size_ = 0;
};

/// Products that leave out the zeros of their left factor, number by number: those of images on a
/// black ground, and what a ReLU has closed, on its way forward and back. A row of the product is a
/// sum of rows of the right factor, of which a panel stays in the first cache; sums run through
/// depth from the first number on. What a zero leaves out is not looked at, be it infinite.
class SparseProduct {
 public:
  explicit SparseProduct(SparseKernels const& kernels) : kernels_(kernels) {}

  /// The share of numbers that are not zero in some rows of [rows, columns].
  double density(Rectangle const& all) const {
    auto const some = std::min<std::int64_t>(all.rows, 8);
    std::int64_t filled = 0;
    for (std::int64_t i = 0; i < some; ++i) {
      auto const* row = all.a + i * all.rows / some * all.stride;
      for (std::int64_t c = 0; c < all.columns; c += panel_depth) {
        std::uint64_t mask;
        kernels_.mask({row + c, 1, std::min(panel_depth, all.columns - c), 0}, &mask);
        filled += __builtin_popcountll(mask);
      }
    }
    return static_cast<double>(filled) / static_cast<double>(some * all.columns);
  }

  /// A left factor [rows, depth] times a right one [depth, columns], plus bias [columns] where it
  /// is not null, goes to [rows, columns], or to [columns, rows]. A left factor whose column stride
  /// is not 1 is copied.
  void run(Factor left, Factor const& right, float const* bias, Destination to,
           bool transposed = false) {
    auto const lanes = kernels_.lanes, vectors = (right.columns + lanes - 1) / lanes;
    auto const panels = (vectors + widest_panel - 1) / widest_panel;
    for (auto rest = left.rows; rest > 0; rest -= rows_at_once) {
      left.rows = std::min(rest, rows_at_once);
      mask(left);
      for (std::int64_t p = 0; p < panels; ++p) {
        auto const begin = vectors * p / panels, width = vectors * (p + 1) / panels - begin;
        first_ = begin * lanes, width_ = width * lanes;
        columns_ = std::min(width_, right.columns - first_);
        auto const add = kernels_.add_rows[static_cast<std::size_t>(width - 1)];
        auto here = to;
        here.y += first_ * (transposed ? to.stride : 1);
        if (!transposed && !to.add && columns_ == width_) {  // sums may lie where they belong
          sum_up(add, right, bias, {here.y, here.stride});
          continue;
        }
        auto* const sums = sums_.of<float>(left.rows * width_);
        sum_up(add, right, bias, {sums, width_});
        auto const put = transposed ? kernels_.put_transposed : kernels_.put;
        put({sums, left.rows, columns_, width_}, here);
      }
      left.a += rows_at_once * left.row_stride;
      to.y += rows_at_once * (transposed ? 1 : to.stride);
    }
  }

 private:
  static constexpr std::int64_t panel_depth = 64;  // a bit of a mask each; a panel's rows
  static constexpr std::int64_t rows_at_once = 512;

  /// Rows of 64 numbers of the left factor, one block of depth after another, and their masks.
  void mask(Factor const& left) {
    auto const blocks = (left.columns + panel_depth - 1) / panel_depth;
    auto* masks = masks_.of<std::uint64_t>(blocks * left.rows);
    blocks_.clear();
    auto* copy =
        left.column_stride == 1 ? nullptr : left_.of<float>(blocks * left.rows * panel_depth);
    for (std::int64_t begin = 0; begin < left.columns; begin += panel_depth) {
      auto const depth = std::min(panel_depth, left.columns - begin);
      MaskedRows rows{left.at(0, begin), left.rows, left.row_stride, masks};
      if (copy) {
        kernels_.put_transposed({rows.a, depth, rows.rows, left.column_stride},
                                {copy, panel_depth});
        rows.a = copy, rows.stride = panel_depth;
        copy += rows.rows * panel_depth;
      }
      kernels_.mask({rows.a, rows.rows, depth, rows.stride}, masks);
      blocks_.push_back(rows);
      masks += left.rows;
    }
  }

  /// The present panel's columns of the product.
  void sum_up(SparseKernels::AddRows add, Factor const& right, float const* bias, RowSums sums) {
    auto* const panel = panel_.of<float>(panel_depth * width_);
    if (bias) {
      kernels_.put({bias + first_, blocks_.front().rows, columns_, 0}, {sums.y, sums.stride});
      sums.go_on = true;
    }
    std::int64_t begin = 0;
    for (auto const& block : blocks_) {
      auto const depth = std::min(panel_depth, right.rows - begin);
      auto const* b = right.at(begin, first_);
      if (right.column_stride == 1) {
        kernels_.put({b, depth, columns_, right.row_stride}, {panel, width_});
      } else {
        kernels_.put_transposed({b, columns_, depth, right.column_stride}, {panel, width_});
      }
      add(block, panel, sums);
      sums.go_on = true;
      begin += panel_depth;
    }
  }

  SparseKernels kernels_;
  std::int64_t first_ = 0, columns_ = 0, width_ = 0;  // of the present panel
  c10::SmallVector<MaskedRows, 4> blocks_;
  Room masks_, left_, panel_, sums_;
};

}  // namespace products
}  // namespace v0
}  // namespace pawl
#endif
