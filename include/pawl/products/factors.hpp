#pragma once

#include <algorithm>
#include <cstdint>

// Kernels of matrix products are compiled function by function for the instructions that they use,
// so that a program need not be; who calls them makes sure of the processor.
#if defined(__x86_64__) && defined(__GNUC__) && defined(__OPTIMIZE__)
#define PAWL_PRODUCTS 1
#endif

namespace pawl {
inline namespace v0 {
namespace products {

/// A left factor [rows, depth] of any strides.
struct Left {
  float const* a = nullptr;
  std::int64_t rows = 0, row_stride = 0, stride = 0;
};

/// Numbers [rows, columns], whose rows begin `stride` numbers apart.
struct Rectangle {
  float const* a = nullptr;
  std::int64_t rows = 0, columns = 0, stride = 0;
};

/// Rows of up to 64 numbers, and for each row a mask: a bit for each number that is not 0 or -0.
struct MaskedRows {
  float const* a = nullptr;
  std::int64_t rows = 0, stride = 0;
  std::uint64_t const* masks = nullptr;
};

/// Rows of sums, which begin at zero unless they go on.
struct RowSums {
  float* y = nullptr;
  std::int64_t stride = 0;
  bool go_on = false;
};

/// Where a product goes: y = product, or y += factor * product, rounded once.
struct Destination {
  float* y = nullptr;
  std::int64_t stride = 0;  ///< between rows of y
  bool add = false;
  float factor = 1;
};

/// Longer sums are added up in pieces of this length.
constexpr std::int64_t depth_at_once = 512;

/// Adds nothing to columns of y: they become 0, unless they hold something already.
inline void add_nothing(std::int64_t rows, std::int64_t width, Destination to) {
  if (to.add) return;
  for (std::int64_t r = 0; r < rows; ++r, to.y += to.stride) std::fill_n(to.y, width, 0.0f);
}

}  // namespace products
}  // namespace v0
}  // namespace pawl
