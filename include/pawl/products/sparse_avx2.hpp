#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "avx2.hpp"

#ifdef PAWL_PRODUCTS
#define PAWL_AVX2 [[gnu::target("avx2,fma")]]

namespace pawl {
inline namespace v0 {
namespace products {
namespace avx2 {

/// The kernels of sparse.hpp for AVX2.
struct Sparse {
  static constexpr std::int64_t lanes = 8;

  /// The masks of rows of up to 64 numbers.
  PAWL_AVX2 static void mask(Rectangle rows, std::uint64_t* masks) {
    for (; rows.rows > 0; --rows.rows, rows.a += rows.stride, ++masks) {
      *masks = 0;
      for (std::int64_t i = 0; i < rows.columns; i += lanes) {
        auto const is = reinterpret_cast<Eight>(load_some(rows.a + i, rows.columns - i) != Eight{});
        *masks |= static_cast<std::uint64_t>(__builtin_ia32_movmskps256(is)) << i;
      }
    }
  }

  /// Puts numbers, or adds `factor` times them, to [rows, columns].
  PAWL_AVX2 static void put(Rectangle from, Destination to) {
    for (; from.rows > 0; --from.rows, from.a += from.stride, to.y += to.stride) {
      for (std::int64_t c = 0; c < from.columns; c += lanes) {
        auto const n = from.columns - c;
        avx2::put(to.y + c, load_some(from.a + c, n), n, to);
      }
    }
  }

  /// The same to [columns, rows].
  PAWL_AVX2 static void put_transposed(Rectangle from, Destination to) {
    for (std::int64_t r = 0; r < from.rows; r += lanes, to.y += lanes) {
      auto here = to;
      for (std::int64_t c = 0; c < from.columns; c += lanes, here.y += lanes * to.stride) {
        put_square({from.a + r * from.stride + c, from.rows - r, from.columns - c, from.stride},
                   here, std::make_index_sequence<lanes>(), std::make_index_sequence<4>());
      }
    }
  }

  /// Sums [rows, vectors] of masked rows times a panel of rows of sizeof...(V) vectors.
  template <std::size_t... V>
  PAWL_AVX2 static void add_rows(MaskedRows left, float const* panel, RowSums sums) {
    constexpr auto width = 8 * sizeof...(V);
    for (std::int64_t r = 0; r < left.rows; ++r, left.a += left.stride, sums.y += sums.stride) {
      Eight s[] = {sums.go_on ? load(sums.y + 8 * V) : Eight{}...};
      for (auto rest = left.masks[r]; rest != 0; rest &= rest - 1) {
        auto const i = __builtin_ctzll(rest);
        auto const a = all(left.a[i]);
        auto const* b = panel + static_cast<std::size_t>(i) * width;
        ((s[V] = fma(a, load(b + 8 * V), s[V])), ...);
      }
      (store(sums.y + 8 * V, s[V]), ...);
    }
  }

 private:
  /// The first n of eight numbers, where n is less, and zeros.
  [[gnu::always_inline]] PAWL_AVX2 static inline Eight load_some(float const* a, std::int64_t n) {
    if (n >= lanes) return load(a);
    float some[8] = {};
    for (std::int64_t i = 0; i < n; ++i) some[i] = a[i];
    return load(some);
  }

  /// The first eight rows and columns, as far as there are so many, transposed.
  template <std::size_t... I, std::size_t... Q>
  [[gnu::always_inline]] PAWL_AVX2 static inline void put_square(Rectangle const& from,
                                                                 Destination const& to,
                                                                 std::index_sequence<I...>,
                                                                 std::index_sequence<Q...>) {
    auto const row = [&](std::int64_t i) {
      return from.a + std::min(i, from.rows - 1) * from.stride;
    };
    Eight v[] = {load_some(row(I), from.columns)...};
    interleave(v[0], v[1], v[2], v[3]), interleave(v[4], v[5], v[6], v[7]);
    (regroup(v[Q], v[Q + 4]), ...);
    ((static_cast<std::int64_t>(I) < from.columns
          ? avx2::put(to.y + I * to.stride, v[I], from.rows, to)
          : void()),
     ...);
  }

  /// Of four rows: the j-th gets, one behind the other, their columns j and 4 + j.
  [[gnu::always_inline]] PAWL_AVX2 static inline void interleave(Eight& a, Eight& b, Eight& c,
                                                                 Eight& d) {
    auto const ab = __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13);
    auto const ab2 = __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
    auto const cd = __builtin_shufflevector(c, d, 0, 8, 1, 9, 4, 12, 5, 13);
    auto const cd2 = __builtin_shufflevector(c, d, 2, 10, 3, 11, 6, 14, 7, 15);
    a = __builtin_shufflevector(ab, cd, 0, 1, 8, 9, 4, 5, 12, 13);
    b = __builtin_shufflevector(ab, cd, 2, 3, 10, 11, 6, 7, 14, 15);
    c = __builtin_shufflevector(ab2, cd2, 0, 1, 8, 9, 4, 5, 12, 13);
    d = __builtin_shufflevector(ab2, cd2, 2, 3, 10, 11, 6, 7, 14, 15);
  }

  /// The second half of a and the first of b change places.
  [[gnu::always_inline]] PAWL_AVX2 static inline void regroup(Eight& a, Eight& b) {
    auto const low = __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11);
    b = __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
    a = low;
  }
};

}  // namespace avx2
}  // namespace products
}  // namespace v0
}  // namespace pawl

#undef PAWL_AVX2
#endif
