#pragma once

#include <algorithm>
#include <cstdint>

#include "layer_graph.hpp"

namespace pawl {
inline namespace v0 {

/// What lies under the kernel of a convolution, position by position, of images [n, C, H, W].
/// LibTorch's `im2col` does the same number by number and takes four times as long.
class Patches {
 public:
  Patches(LayerUse const& use, Tensor const& images)
      : use_(use), images_(images), height_(images.size(2)), width_(images.size(3)) {}

  /// Of some images, [count, C kernel, positions].
  Tensor of(std::int64_t begin, std::int64_t count) const {
    auto const x = images_.narrow(0, begin, count);
    if (x.is_cpu() && x.scalar_type() == torch::kFloat32) return copied<float>(x.contiguous());
    if (x.is_cpu() && x.scalar_type() == torch::kFloat64) return copied<double>(x.contiguous());
    return at::im2col(x, use_.kernel, use_.dilation, use_.padding, use_.stride);
  }

 private:
  template <class Number>
  Tensor copied(Tensor const& x) const {
    auto const rows = use_.positions(0, height_), columns = use_.positions(1, width_);
    auto const kernel = use_.kernel[0] * use_.kernel[1];
    auto const all = at::empty({x.size(0), x.size(1) * kernel, rows * columns}, x.options());
    auto const* channel = x.const_data_ptr<Number>();
    auto* to = all.template mutable_data_ptr<Number>();
    for (auto rest = x.size(0) * x.size(1); rest > 0; --rest, channel += height_ * width_) {
      for (std::int64_t k = 0; k < kernel; ++k, to += rows * columns) {
        auto const down = k / use_.kernel[1] * use_.dilation[0] - use_.padding[0];
        auto const right = k % use_.kernel[1] * use_.dilation[1] - use_.padding[1];
        for (std::int64_t r = 0; r < rows; ++r) {
          auto const y = r * use_.stride[0] + down;
          auto const inside = y >= 0 && y < height_;
          put_row(inside ? channel + y * width_ : nullptr, right, columns, to + r * columns);
        }
      }
    }
    return all;
  }

  /// What one number of the kernel sees along a row (null: above or below the image), from column
  /// `right` on.
  template <class Number>
  void put_row(Number const* row, std::int64_t right, std::int64_t columns, Number* to) const {
    if (row == nullptr) return std::fill(to, to + columns, Number{0});
    auto const stride = use_.stride[1];
    auto const begin = std::min(columns, up(-right, stride));
    auto const end = std::clamp(up(width_ - right, stride), begin, columns);
    std::fill(to, to + begin, Number{0});
    if (stride == 1 && begin < end) {
      std::copy(row + begin + right, row + end + right, to + begin);
    } else {
      for (auto i = begin; i < end; ++i) to[i] = row[i * stride + right];
    }
    std::fill(to + end, to + columns, Number{0});
  }

  /// The first position that is not before a number of columns.
  static std::int64_t up(std::int64_t columns, std::int64_t stride) {
    return columns <= 0 ? 0 : (columns + stride - 1) / stride;
  }

  LayerUse const& use_;
  Tensor images_;
  std::int64_t height_, width_;
};

}  // namespace v0
}  // namespace pawl
