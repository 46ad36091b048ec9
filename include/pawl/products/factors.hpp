#pragma once

#include <cmath>
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

  Left part(std::int64_t begin, std::int64_t end) const {
    return {a + begin * row_stride, end - begin, row_stride, stride};
  }
};

/// Numbers [rows, columns], whose rows begin `stride` numbers apart.
struct Rectangle {
  float const* a = nullptr;
  std::int64_t rows = 0, columns = 0, stride = 0;

  /// Some of its rows.
  Rectangle part(std::int64_t begin, std::int64_t end) const {
    return {a + begin * stride, end - begin, columns, stride};
  }
  Rectangle columns_part(std::int64_t begin, std::int64_t end) const {
    return {a + begin, rows, end - begin, stride};
  }
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

/// A step down the gradient of a quadratic penalty: y <- y - rate strength importance (y - anchor).
struct AnchorPull {
  float const* y = nullptr;  ///< where these numbers begin
  float const *anchor = nullptr, *importance = nullptr;
  float strength = 0, rate = 0;

  /// What it makes of the number at `at`.
  float pulled(float const* at) const {
    auto const i = at - y;
    auto const pull = strength * importance[i] * (*at - anchor[i]);
    return std::fma(pull, -rate, *at);
  }
};

/// Where a product goes: y = product, or y += factor * product, rounded once, after a pull on y if
/// there is one.
struct Destination {
  float* y = nullptr;
  std::int64_t stride = 0;  ///< between rows of y
  bool add = false;
  float factor = 1;
  AnchorPull const* pull = nullptr;

  Destination from_row(std::int64_t row) const { return at(y + row * stride); }
  Destination from_column(std::int64_t column) const { return at(y + column); }

  /// For the next piece of a longer sum.
  Destination rest() const { return {y, stride, true, add ? factor : 1, nullptr}; }

  /// Puts a number of the product to `at`.
  void put(float* at, float product) const {
    *at = add ? std::fma(factor, product, pull != nullptr ? pull->pulled(at) : *at) : product;
  }

 private:
  Destination at(float* first) const {
    auto there = *this;
    there.y = first;
    return there;
  }
};

/// Longer sums are added up in pieces of this length.
constexpr std::int64_t depth_at_once = 512;

/// An inner product goes to a row and a column: plus bias, where there is one, or plus what is
/// there.
inline void put_sum(float sum, std::int64_t row, std::int64_t column, float const* bias,
                    Destination const& to) {
  auto& y = to.y[row * to.stride + column];
  y = sum + (to.add ? y : bias ? bias[column] : 0.0f);
}

}  // namespace products
}  // namespace v0
}  // namespace pawl
