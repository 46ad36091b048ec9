#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>
#include <type_traits>
#include <vector>

#include "../core/error.hpp"
#include "../products/in_parallel.hpp"

namespace pawl {
inline namespace v0 {

/// What a rotated pixel is made of.
enum class Interpolation {
  bilinear,  ///< the four pixels around the point, by distance
  nearest    ///< the pixel whose square holds the point, halves going up: floor(p + 1/2), as in
             ///< Pillow
};

namespace detail {

/// Calls `visit(column, row)` with the point of the input that each output pixel reads, in row
/// order.
///   (column, row) = (x cos a - y sin a + cx, x sin a + y cos a + cy),  (x, y) = (j - cx, i - cy)
template <class F>
void for_rotated_points(std::int64_t height, std::int64_t width, double degrees, F&& visit) {
  require(std::isfinite(degrees), {"rotate: the angle is ", degrees, "; give degrees"});
  auto const turn = std::remainder(degrees, 360.0);
  auto cosine = std::cos(turn * std::numbers::pi / 180);
  auto sine = std::sin(turn * std::numbers::pi / 180);
  if (std::fmod(turn, 90) == 0) {  // exact at quarter turns, where points fall on pixels
    cosine = std::round(cosine);
    sine = std::round(sine);
  }
  auto const cx = static_cast<double>(width - 1) / 2;
  auto const cy = static_cast<double>(height - 1) / 2;
  for (std::int64_t i = 0; i < height; ++i) {
    for (std::int64_t j = 0; j < width; ++j) {
      auto const x = static_cast<double>(j) - cx, y = static_cast<double>(i) - cy;
      visit(x * cosine - y * sine + cx, x * sine + y * cosine + cy);
    }
  }
}

/// Element of a plane at (row, column), -1 outside.
inline std::int64_t plane_index(double row, double column, std::int64_t height,
                                std::int64_t width) {
  auto const inside = row >= 0 && column >= 0 && row < static_cast<double>(height) &&
                      column < static_cast<double>(width);
  return inside ? static_cast<std::int64_t>(row) * width + static_cast<std::int64_t>(column) : -1;
}

/// Which element of a [C, H, W] row each output element takes, -1 outside.
inline std::vector<std::int64_t> nearest_table(std::int64_t channels, std::int64_t height,
                                               std::int64_t width, double degrees) {
  std::vector<std::int64_t> table;
  for (std::int64_t c = 0; c < channels; ++c) {
    for_rotated_points(height, width, degrees, [&](double column, double row) {
      auto const j = plane_index(std::floor(row + 0.5), std::floor(column + 0.5), height, width);
      table.push_back(j < 0 ? -1 : c * height * width + j);
    });
  }
  return table;
}

/// The four elements that an output pixel mixes, with their weights; weight 0 outside.
struct Taps {
  std::int32_t index[4] = {};
  double weight[4] = {};
};
using TapsOfPixels = c10::SmallVector<Taps, 0>;

inline TapsOfPixels bilinear_taps(std::int64_t height, std::int64_t width, double degrees) {
  TapsOfPixels all;
  for_rotated_points(height, width, degrees, [&](double column, double row) {
    auto const left = std::floor(column), top = std::floor(row);
    Taps taps;
    for (int k = 0; k < 4; ++k) {
      auto const right = k % 2, below = k / 2;
      auto const j = plane_index(top + below, left + right, height, width);
      auto const across = right ? column - left : 1 - (column - left);
      auto const down = below ? row - top : 1 - (row - top);
      taps.index[k] = static_cast<std::int32_t>(j < 0 ? 0 : j);
      taps.weight[k] = j < 0 ? 0 : across * down;
    }
    all.push_back(taps);
  });
  return all;
}

template <class T>
void apply_taps(T const* from, T* to, std::int64_t planes, TapsOfPixels const& taps) {
  auto const area = static_cast<std::int64_t>(taps.size());
  products::in_parallel(planes, 64, planes, [&](std::int64_t begin, std::int64_t end) {
    for (auto p = begin; p < end; ++p) {
      auto const* const in = from + p * area;
      auto* out = to + p * area;
      for (auto const& t : taps) {
        double value = 0;
        for (int k = 0; k < 4; ++k) value += t.weight[k] * static_cast<double>(in[t.index[k]]);
        *out++ = static_cast<T>(std::is_integral_v<T> ? std::floor(value + 0.5) : value);
      }
    }
  });
}

}  // namespace detail

/// Rotates images [N, C, H, W] of any type, counter-clockwise as they are looked at, about their
/// centre, on a canvas of the same size with background 0. Integers are rounded to nearest, halves
/// going up. Multiples of 90 degrees are exact. Computed on the host, returned on the device of the
/// images.
inline Tensor rotate(Tensor const& images, double degrees,
                     Interpolation interpolation = Interpolation::bilinear) {
  require(images.dim() == 4, {"rotate: images are ", images.sizes(), "; give [N, C, H, W]"});
  auto const height = images.size(2), width = images.size(3);
  auto const planes = images.size(0) * images.size(1);
  auto const here = images.detach().to(torch::kCPU).contiguous();
  if (interpolation == Interpolation::nearest) {
    auto const table =
        torch::tensor(detail::nearest_table(1, height, width, degrees), torch::kInt64);
    auto turned = here.view({planes, height * width}).index_select(1, table.clamp_min(0));
    return turned.masked_fill_(table.lt(0), 0).view(images.sizes()).to(images.device());
  }
  auto const taps = detail::bilinear_taps(height, width, degrees);
  auto const apply = [&]<class T>(Tensor const& in, T) {
    auto out = torch::empty_like(in);
    detail::apply_taps(in.data_ptr<T>(), out.template data_ptr<T>(), planes, taps);
    return out.to(images.device(), images.scalar_type());
  };
  if (here.scalar_type() == torch::kUInt8) return apply(here, std::uint8_t{});
  if (here.scalar_type() == torch::kFloat32) return apply(here, float{});
  if (at::isIntegralType(here.scalar_type(), true))
    return apply(here.to(torch::kInt64), std::int64_t{});
  return apply(here.to(torch::kFloat64), double{});
}

}  // namespace v0
}  // namespace pawl
