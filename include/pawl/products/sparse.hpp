#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

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
};

/// Products that leave out the zeros of their left factor, number by number: those of images on a
/// black ground, and what a ReLU has closed, on its way forward and back. A row of the product is a
/// sum of rows of the right factor, of which a panel stays in the first cache; sums run through
/// depth from the first number on. What a zero leaves out is not looked at, be it infinite.
template <class Instructions>
class SparseProduct {
 public:
  /// The share of numbers that are not zero in some rows of [rows, columns].
  static double density(Rectangle const& all) {
    auto const some = std::min<std::int64_t>(all.rows, 8);
    std::int64_t filled = 0;
    for (std::int64_t i = 0; i < some; ++i) {
      auto const* row = all.a + i * all.rows / some * all.stride;
      for (std::int64_t c = 0; c < all.columns; c += depth_at_once) {
        std::uint64_t mask;
        Instructions::mask({row + c, 1, std::min(depth_at_once, all.columns - c), 0}, &mask);
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
    auto const vectors = (right.columns + lanes - 1) / lanes;
    auto const panels = (vectors + widest - 1) / widest;
    for (auto rest = left.rows; rest > 0; rest -= rows_at_once) {
      left.rows = std::min(rest, rows_at_once);
      mask(left);
      for (std::int64_t p = 0; p < panels; ++p) {
        auto const begin = vectors * p / panels, width = vectors * (p + 1) / panels - begin;
        first_ = begin * lanes, width_ = width * lanes;
        columns_ = std::min(width_, right.columns - first_);
        auto const add = add_rows[static_cast<std::size_t>(width - 1)];
        auto here = to;
        here.y += first_ * (transposed ? to.stride : 1);
        if (!transposed && !to.add && columns_ == width_) {  // sums may lie where they belong
          sum_up(add, right, bias, {here.y, here.stride});
          continue;
        }
        auto* const sums = room(sums_, left.rows * width_);
        sum_up(add, right, bias, {sums, width_});
        auto const put = transposed ? Instructions::put_transposed : Instructions::put;
        put({sums, left.rows, columns_, width_}, here);
      }
      left.a += rows_at_once * left.row_stride;
      to.y += rows_at_once * (transposed ? 1 : to.stride);
    }
  }

 private:
  static constexpr std::int64_t lanes = Instructions::lanes;
  static constexpr std::int64_t depth_at_once = 64;  // a bit of a mask each; a panel's rows
  static constexpr std::int64_t rows_at_once = 512;
  static constexpr std::int64_t widest = 9;  // vectors of a panel's row: they fit into registers

  using AddRows = void (*)(MaskedRows, float const* panel, RowSums sums);
  template <std::size_t... V>
  static constexpr AddRows for_vectors(std::index_sequence<V...>) {
    return Instructions::template add_rows<V...>;
  }
  template <std::size_t... W>
  static constexpr std::array<AddRows, widest> for_widths(std::index_sequence<W...>) {
    return {for_vectors(std::make_index_sequence<W + 1>())...};
  }
  static constexpr auto add_rows = for_widths(std::make_index_sequence<widest>());

  struct alignas(64) Line {
    float numbers[16];
  };
  /// Memory for n numbers, at the beginning of a line of the cache.
  static float* room(std::vector<Line>& lines, std::int64_t n) {
    auto const size = static_cast<std::size_t>((n + 15) / 16);
    if (lines.size() < size) lines.resize(size);
    return lines.data()->numbers;
  }

  /// Rows of 64 numbers of the left factor, one block of depth after another, and their masks.
  void mask(Factor const& left) {
    auto const blocks = (left.columns + depth_at_once - 1) / depth_at_once;
    masks_.resize(static_cast<std::size_t>(blocks * left.rows));
    blocks_.clear();
    auto* copy =
        left.column_stride == 1 ? nullptr : room(left_, blocks * left.rows * depth_at_once);
    for (std::int64_t begin = 0; begin < left.columns; begin += depth_at_once) {
      auto const depth = std::min(depth_at_once, left.columns - begin);
      auto* const masks = masks_.data() + begin / depth_at_once * left.rows;
      MaskedRows rows{left.at(0, begin), left.rows, left.row_stride, masks};
      if (copy) {
        Instructions::put_transposed({rows.a, depth, rows.rows, left.column_stride},
                                     {copy, depth_at_once});
        rows.a = copy, rows.stride = depth_at_once;
        copy += rows.rows * depth_at_once;
      }
      Instructions::mask({rows.a, rows.rows, depth, rows.stride}, masks);
      blocks_.push_back(rows);
    }
  }

  /// The present panel's columns of the product.
  void sum_up(AddRows add, Factor const& right, float const* bias, RowSums sums) {
    auto* const panel = room(panel_, depth_at_once * width_);
    if (bias) {
      Instructions::put({bias + first_, blocks_.front().rows, columns_, 0}, {sums.y, sums.stride});
      sums.go_on = true;
    }
    std::int64_t begin = 0;
    for (auto const& block : blocks_) {
      auto const depth = std::min(depth_at_once, right.rows - begin);
      auto const* b = right.at(begin, first_);
      if (right.column_stride == 1) {
        Instructions::put({b, depth, columns_, right.row_stride}, {panel, width_});
      } else {
        Instructions::put_transposed({b, columns_, depth, right.column_stride}, {panel, width_});
      }
      add(block, panel, sums);
      sums.go_on = true;
      begin += depth_at_once;
    }
  }

  std::int64_t first_ = 0, columns_ = 0, width_ = 0;  // of the present panel
  std::vector<MaskedRows> blocks_;
  std::vector<std::uint64_t> masks_;
  std::vector<Line> left_, panel_, sums_;
};

}  // namespace products
}  // namespace v0
}  // namespace pawl
#endif
