#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "avx512.hpp"

#ifdef PAWL_PRODUCTS
#define PAWL_AVX512 [[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]]

namespace pawl {
inline namespace v0 {
namespace products {
namespace avx512 {

/// The kernels of sparse.hpp for AVX-512.
struct Sparse {
  static constexpr std::int64_t lanes = 16;

  /// The masks of rows of up to 64 numbers.
  PAWL_AVX512 static void mask(Rectangle rows, std::uint64_t* masks) {
    auto const n = rows.columns;
    Mask const m[] = {first(n), first(n - 16), first(n - 32), first(n - 48)};
    for (; rows.rows > 0; --rows.rows, rows.a += rows.stride, ++masks) {
      *masks = std::uint64_t{not_zero(load(rows.a, m[0]))} |
               std::uint64_t{not_zero(load(rows.a + 16, m[1]))} << 16 |
               std::uint64_t{not_zero(load(rows.a + 32, m[2]))} << 32 |
               std::uint64_t{not_zero(load(rows.a + 48, m[3]))} << 48;
    }
  }

  /// Puts numbers, or adds `factor` times them, to [rows, columns].
  PAWL_AVX512 static void put(Rectangle from, Destination to) {
    for (; from.rows > 0; --from.rows, from.a += from.stride, to.y += to.stride) {
      for (std::int64_t c = 0; c < from.columns; c += lanes) {
        auto const mask = first(from.columns - c);
        avx512::put(to.y + c, load(from.a + c, mask), mask, to);
      }
    }
  }

  /// The same to [columns, rows].
  PAWL_AVX512 static void put_transposed(Rectangle from, Destination to) {
    for (std::int64_t r = 0; r < from.rows; r += lanes, to.y += lanes) {
      auto here = to;
      for (std::int64_t c = 0; c < from.columns; c += lanes, here.y += lanes * to.stride) {
        put_square({from.a + r * from.stride + c, from.rows - r, from.columns - c, from.stride},
                   here, std::make_index_sequence<lanes>(), std::make_index_sequence<4>());
      }
    }
  }

  /// Sums [rows, vectors] of masked rows times a panel of rows of sizeof...(V) vectors. Two rows at
  /// a time: first what is not zero in both, which takes half the loads, then the rest.
  template <std::size_t... V>
  PAWL_AVX512 static void add_rows(MaskedRows left, float const* panel, RowSums sums) {
    constexpr auto width = 16 * sizeof...(V);
    auto const begin = sums.go_on ? full : Mask{0};
    for (std::int64_t r = 0; r < left.rows; r += 2) {
      auto const is_last = r + 1 == left.rows;
      auto const *a = left.a + r * left.stride, *a2 = is_last ? a : a + left.stride;
      auto *y = sums.y + r * sums.stride, *y2 = is_last ? y : y + sums.stride;
      auto const mask = left.masks[r], mask2 = is_last ? 0 : left.masks[r + 1];
      Sixteen s[] = {load(y + 16 * V, begin)...}, t[] = {load(y2 + 16 * V, begin)...};
      for (auto rest = mask & mask2; rest != 0; rest &= rest - 1) {
        auto const i = __builtin_ctzll(rest);
        auto const* b = panel + i * static_cast<std::int64_t>(width);
        Sixteen v[] = {load(b + 16 * V)...};
        (keep(v[V]), ...);
        ((s[V] = fma(all(a[i]), v[V], s[V]), t[V] = fma(all(a2[i]), v[V], t[V])), ...);
      }
      for (auto rest = mask & ~mask2; rest != 0; rest &= rest - 1) {
        auto const i = __builtin_ctzll(rest);
        auto const* b = panel + i * static_cast<std::int64_t>(width);
        ((s[V] = fma(all(a[i]), load(b + 16 * V), s[V])), ...);
      }
      for (auto rest = mask2 & ~mask; rest != 0; rest &= rest - 1) {
        auto const i = __builtin_ctzll(rest);
        auto const* b = panel + i * static_cast<std::int64_t>(width);
        ((t[V] = fma(all(a2[i]), load(b + 16 * V), t[V])), ...);
      }
      (store(y2 + 16 * V, t[V], full), ...);
      (store(y + 16 * V, s[V], full), ...);
    }
  }

 private:
  /// A compiler would rather load a vector twice than keep it in a register.
  [[gnu::always_inline]] PAWL_AVX512 static inline void keep(Sixteen& v) { asm("" : "+v"(v)); }

  /// The first 16 rows and columns, as far as there are so many, transposed.
  template <std::size_t... I, std::size_t... Q>
  [[gnu::always_inline]] PAWL_AVX512 static inline void put_square(Rectangle const& from,
                                                                   Destination const& to,
                                                                   std::index_sequence<I...>,
                                                                   std::index_sequence<Q...>) {
    auto const row = [&](std::int64_t i) {
      return from.a + std::min(i, from.rows - 1) * from.stride;
    };
    auto const mask = first(from.columns);
    Sixteen v[] = {load(row(I), mask)...};
    (interleave(v[4 * Q], v[4 * Q + 1], v[4 * Q + 2], v[4 * Q + 3]), ...);
    (regroup(v[Q], v[Q + 4], v[Q + 8], v[Q + 12]), ...);
    ((static_cast<std::int64_t>(I) < from.columns
          ? avx512::put(to.y + I * to.stride, v[I], first(from.rows), to)
          : void()),
     ...);
  }

  /// Of four rows: the j-th gets, one behind the other, their columns j, 4 + j, 8 + j, 12 + j.
  [[gnu::always_inline]] PAWL_AVX512 static inline void interleave(Sixteen& a, Sixteen& b,
                                                                   Sixteen& c, Sixteen& d) {
    auto const ab =
        __builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
    auto const ab2 =
        __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    auto const cd =
        __builtin_shufflevector(c, d, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
    auto const cd2 =
        __builtin_shufflevector(c, d, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    a = __builtin_shufflevector(ab, cd, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
    b = __builtin_shufflevector(ab, cd, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    c = __builtin_shufflevector(ab2, cd2, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
    d = __builtin_shufflevector(ab2, cd2, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30,
                                31);
  }

  /// Four quarters of four vectors change places: row and column.
  [[gnu::always_inline]] PAWL_AVX512 static inline void regroup(Sixteen& a, Sixteen& b, Sixteen& c,
                                                                Sixteen& d) {
    auto const ab =
        __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
    auto const ab2 =
        __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    auto const cd =
        __builtin_shufflevector(c, d, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
    auto const cd2 =
        __builtin_shufflevector(c, d, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    a = __builtin_shufflevector(ab, cd, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
    b = __builtin_shufflevector(ab, cd, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    c = __builtin_shufflevector(ab2, cd2, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
    d = __builtin_shufflevector(ab2, cd2, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30,
                                31);
  }
};

}  // namespace avx512
}  // namespace products
}  // namespace v0
}  // namespace pawl

#undef PAWL_AVX512
#endif
