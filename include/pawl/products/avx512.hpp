#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "avx2.hpp"

#ifdef PAWL_PRODUCTS
#define PAWL_AVX512_ISA "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"
#define PAWL_AVX512 [[gnu::target(PAWL_AVX512_ISA), gnu::always_inline]] inline

namespace pawl {
inline namespace v0 {
namespace products {

/// The products of avx2.hpp for processors with AVX-512: vectors of 16 numbers, of which a mask can
/// leave out those that do not exist, and 32 registers.
namespace avx512 {

using Sixteen = float __attribute__((vector_size(64)));
using Mask = std::uint16_t;

constexpr Mask full = 0xffff;

/// The first n of 16, where n is less; none where it is negative.
constexpr Mask first(std::int64_t n) {
  return n < 16 ? static_cast<Mask>((1 << std::max<std::int64_t>(n, 0)) - 1) : full;
}

PAWL_AVX512 Sixteen load(float const* p) {
  Sixteen v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
PAWL_AVX512 Sixteen load(float const* p, Mask mask) {
  return __builtin_ia32_loadups512_mask(p, Sixteen{}, mask);
}
PAWL_AVX512 void store(float* p, Sixteen v, Mask mask) {
  __builtin_ia32_storeups512_mask(p, v, mask);
}
PAWL_AVX512 Sixteen all(float s) { return Sixteen{s, s, s, s, s, s, s, s, s, s, s, s, s, s, s, s}; }

/// a * b + c, rounded once.
PAWL_AVX512 Sixteen fma(Sixteen a, Sixteen b, Sixteen c) {
  constexpr int as_ever = 4;  // the rounding that is set
  return __builtin_ia32_vfmaddps512_mask(a, b, c, full, as_ever);
}

/// Those of these numbers that are not 0 or -0.
PAWL_AVX512 Mask not_zero(Sixteen v) {
  constexpr int not_equal = 4, no_exceptions = 8;
  return __builtin_ia32_cmpps512_mask(v, Sixteen{}, not_equal, full, no_exceptions);
}
PAWL_AVX512 bool any(Sixteen v) { return not_zero(v) != 0; }

/// The sums of a vector's halves.
PAWL_AVX512 avx2::Eight halves(Sixteen v) {
  return __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
         __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
}

/// Blocks of 16 among the first columns of [rows, stride]: those that hold anything but zeros, or
/// all of them. The last one may have fewer columns.
[[gnu::target(PAWL_AVX512_ISA)]] inline std::vector<std::int64_t> blocks(float const* b,
                                                                         std::int64_t rows,
                                                                         std::int64_t columns,
                                                                         std::int64_t stride,
                                                                         bool only_filled) {
  std::vector<std::int64_t> found;
  found.reserve(static_cast<std::size_t>(columns / 16 + 1));
  for (std::int64_t i = 0; i < columns; i += 16) {
    auto const mask = first(columns - i);
    auto filled = !only_filled;
    for (std::int64_t r = 0; r < rows && !filled; ++r) filled = any(load(b + r * stride + i, mask));
    if (filled) found.push_back(i);
  }
  return found;
}

/// A result that is not to become part of a fused operation.
PAWL_AVX512 Sixteen rounded(Sixteen a) {
  asm("" : "+v"(a));
  return a;
}

/// Numbers w, which lie at y, after they were pulled.
PAWL_AVX512 Sixteen pulled(Sixteen w, float const* y, Mask mask, AnchorPull const& pull) {
  auto const i = y - pull.y;
  auto const way = w - load(pull.anchor + i, mask);
  auto const weight = rounded(all(pull.strength) * load(pull.importance + i, mask));
  return fma(rounded(weight * way), all(-pull.rate), w);
}

/// Asks for the lines of the cache that `put` will read.
PAWL_AVX512 void fetch(float const* y, Destination const& to) {
  __builtin_prefetch(y, 1);
  if (to.pull == nullptr) return;
  auto const i = y - to.pull->y;
  __builtin_prefetch(to.pull->anchor + i);
  __builtin_prefetch(to.pull->importance + i);
}

/// Up to 16 columns of a row of the destination.
PAWL_AVX512 void put(float* y, Sixteen v, Mask mask, Destination const& to) {
  if (to.add) {
    auto const w = load(y, mask);
    v = fma(all(to.factor), v, to.pull != nullptr ? pulled(w, y, mask, *to.pull) : w);
  }
  store(y, v, mask);
}

/// Rows of a tile, at most.
constexpr std::int64_t highest_tile = 8;

/// Up to as many rows of a left factor as a tile has, packed [depth, rows of a tile] and filled up
/// with zeros.
struct PackedRows {
  float const* a = nullptr;
  std::int64_t rows = 0, depth = 0;
};

/// Some blocks of 16 columns, of which the last one may have fewer: where they begin in the right
/// factor and in the destination.
template <std::size_t width>
struct Blocks {
  float const* b[width];
  float* y[width];
  Mask mask[width];
};

template <std::size_t... B>
PAWL_AVX512 void add_products(Sixteen (&s)[sizeof...(B)], float a, Sixteen const (&b)[sizeof...(B)],
                              std::index_sequence<B...>) {
  ((s[B] = fma(all(a), b[B], s[B])), ...);
}

template <std::size_t... B>
PAWL_AVX512 void put_row(Blocks<sizeof...(B)> const& at, std::int64_t offset,
                         Sixteen const (&s)[sizeof...(B)], Destination const& to,
                         std::index_sequence<B...>) {
  (put(at.y[B] + offset, s[B], at.mask[B], to), ...);
}

/// Asks for the lines of one of the tile's vectors in the destination.
template <std::size_t width>
PAWL_AVX512 void fetch(Blocks<width> const& at, std::int64_t vector, Destination const& to) {
  constexpr auto n = static_cast<std::int64_t>(width);
  fetch(at.y[vector % n] + vector / n * to.stride, to);
}

/// Packed rows times blocks. The sums stay in registers; meanwhile the vectors of the destination
/// are asked for, one per step of depth.
template <std::size_t... R, std::size_t... B>
PAWL_AVX512 void tile(PackedRows left, Blocks<sizeof...(B)> at, std::int64_t stride, Destination to,
                      std::index_sequence<R...>, std::index_sequence<B...> each) {
  constexpr std::int64_t vectors = sizeof...(R) * sizeof...(B);
  Sixteen s[sizeof...(R)][sizeof...(B)] = {};
  std::int64_t asked = 0;
  while (asked < vectors - left.depth) fetch(at, asked++, to);
  for (auto i = left.depth; i > 0; --i, left.a += sizeof...(R)) {
    if (asked < vectors) fetch(at, asked++, to);
    Sixteen const v[] = {load(at.b[B], at.mask[B])...};
    ((at.b[B] += stride), ...);
    (add_products(s[R], left.a[R], v, each), ...);
  }
  ((static_cast<std::int64_t>(R) < left.rows ? put_row(at, R * to.stride, s[R], to, each) : void()),
   ...);
}

/// Packed rows times blocks of b.
template <std::int64_t height, std::size_t width>
[[gnu::target(PAWL_AVX512_ISA)]] inline void tiles(float const* packed, std::int64_t rows,
                                                   std::int64_t depth, Blocks<width> at,
                                                   std::int64_t stride, Destination const& to) {
  for (; rows > 0; rows -= height, packed += height * depth) {
    tile({packed, rows, depth}, at, stride, to, std::make_index_sequence<height>(),
         std::make_index_sequence<width>());
    for (auto& y : at.y) y += height * to.stride;
  }
}

/// Rows of a left factor in packs: [rows / height, depth, height].
inline void pack(Left const& left, std::int64_t depth, std::int64_t height, float* packed) {
  for (std::int64_t begin = 0; begin < left.rows; begin += height) {
    auto const rows = std::min(height, left.rows - begin);
    auto const* a = left.a + begin * left.row_stride;
    for (std::int64_t i = 0; i < depth; ++i, a += left.stride, packed += height) {
      if (rows == height && left.row_stride == 1) {
        std::copy_n(a, height, packed);
      } else {
        for (std::int64_t r = 0; r < height; ++r) packed[r] = r < rows ? a[r * left.row_stride] : 0;
      }
    }
  }
}

/// The blocks of b that begin at these columns.
template <std::size_t... B>
Blocks<sizeof...(B)> blocks_at(std::int64_t const* begins, Rectangle const& b, float* y,
                               std::index_sequence<B...>) {
  return {{b.a + begins[B]...}, {y + begins[B]...}, {first(b.columns - begins[B])...}};
}

/// Rows times the blocks of b that begin at these columns; the sum over depth stays in registers.
template <std::int64_t height>
void multiply_blocks(Left left, Rectangle const& b, std::vector<std::int64_t> const& begins,
                     Destination to) {
  constexpr std::int64_t space = 2 * highest_tile * depth_at_once;
  auto const depth = b.rows;
  alignas(64) float packed[space];
  auto const at_once = space / (height * depth) * height;
  for (auto rest = left.rows; rest > 0; rest -= at_once) {
    left.rows = std::min(rest, at_once);
    pack(left, depth, height, packed);
    auto const* next = begins.data();
    auto const* const end = next + begins.size();
    for (; end - next >= 3; next += 3) {
      tiles<height>(packed, left.rows, depth,
                    blocks_at(next, b, to.y, std::make_index_sequence<3>()), b.stride, to);
    }
    for (; next != end; ++next) {
      tiles<height>(packed, left.rows, depth,
                    blocks_at(next, b, to.y, std::make_index_sequence<1>()), b.stride, to);
    }
    left.a += at_once * left.row_stride;
    to.y += at_once * to.stride;
  }
}

/// The same in as few tiles as there have to be, of the height that leaves the fewest rows idle.
inline void multiply_blocks(Left const& left, Rectangle const& b,
                            std::vector<std::int64_t> const& begins, Destination const& to) {
  auto const tiles = (left.rows + highest_tile - 1) / highest_tile;
  auto const f = [height = (left.rows + tiles - 1) / tiles] {
    if (height <= 4) return multiply_blocks<4>;
    if (height == 5) return multiply_blocks<5>;
    if (height == 6) return multiply_blocks<6>;
    return height == 7 ? multiply_blocks<7> : multiply_blocks<8>;
  }();
  f(left, b, begins, to);
}

/// Adds nothing to the columns outside of these blocks: they become 0 or, where they hold something
/// already, are pulled at most.
[[gnu::target(PAWL_AVX512_ISA)]] inline void add_nothing_beside(
    std::vector<std::int64_t> const& begins, std::int64_t rows, std::int64_t columns,
    Destination const& to) {
  if (to.add && to.pull == nullptr) return;
  auto next = begins.begin();
  for (std::int64_t c = 0; c < columns; c += 16) {
    if (next != begins.end() && *next == c) {
      ++next;
      continue;
    }
    auto const mask = first(columns - c);
    for (std::int64_t r = 0; r < rows; ++r) put(to.y + r * to.stride + c, Sixteen{}, mask, to);
  }
}

/// [rows, depth] times [depth, columns]. Where it looks for them, 16 neighbouring columns that hold
/// nothing but zeros take no time.
inline void multiply(Left left, Rectangle const& right, bool looks, Destination to) {
  for (std::int64_t begin = 0; begin < right.rows; begin += depth_at_once) {
    auto const some = right.part(begin, std::min(right.rows, begin + depth_at_once));
    auto const begins = blocks(some.a, some.rows, some.columns, some.stride, looks);
    add_nothing_beside(begins, left.rows, some.columns, to);
    multiply_blocks(left, some, begins, to);
    left.a += depth_at_once * left.stride;
    to = to.rest();
  }
}

/// What the inner products of some rows with four more have summed.
template <std::size_t rows>
using Sums = Sixteen[4][rows];

/// Adds the products of 16 columns.
template <std::size_t... R>
PAWL_AVX512 void add_inner_products(Sums<sizeof...(R)>& s, Sixteen const (&a)[sizeof...(R)],
                                    Sixteen b0, Sixteen b1, Sixteen b2, Sixteen b3,
                                    std::index_sequence<R...>) {
  ((s[0][R] = fma(a[R], b0, s[0][R])), ...);
  ((s[1][R] = fma(a[R], b1, s[1][R])), ...);
  ((s[2][R] = fma(a[R], b2, s[2][R])), ...);
  ((s[3][R] = fma(a[R], b3, s[3][R])), ...);
}

/// Rows of inner products, which run over these whole blocks of 16 columns and over what comes
/// after the last one.
struct Rows {
  Rectangle x{};
  std::vector<std::int64_t> whole{};
};

/// sizeof...(R) rows of x from `begin` on, as far as there are so many, with up to four rows of w:
/// inner products, plus bias, or plus what is there.
template <std::size_t... R>
PAWL_AVX512 void inner_products(Rows const& rows, std::int64_t begin, Rectangle const& w,
                                float const* bias, Destination const& to,
                                std::index_sequence<R...> indices) {
  auto const& x = rows.x;
  auto const last = std::min<std::int64_t>(sizeof...(R), x.rows - begin) - 1;
  float const* const a[] = {x.a + (begin + std::min<std::int64_t>(R, last)) * x.stride...};
  auto const row = [&](std::int64_t o) { return w.a + std::min(o, w.rows - 1) * w.stride; };
  auto const *b0 = w.a, *b1 = row(1), *b2 = row(2), *b3 = row(3);
  Sums<sizeof...(R)> s = {};
  for (auto const i : rows.whole) {
    add_inner_products(s, {load(a[R] + i)...}, load(b0 + i), load(b1 + i), load(b2 + i),
                       load(b3 + i), indices);
  }
  if (auto const i = x.columns / 16 * 16; i < x.columns) {
    auto const m = first(x.columns - i);
    add_inner_products(s, {load(a[R] + i, m)...}, load(b0 + i, m), load(b1 + i, m), load(b2 + i, m),
                       load(b3 + i, m), indices);
  }
  avx2::Four const sum[] = {
      avx2::sums(halves(s[0][R]), halves(s[1][R]), halves(s[2][R]), halves(s[3][R]))...};
  for (std::int64_t r = 0; r <= last; ++r) {
    for (std::int64_t o = 0; o < w.rows; ++o) put_sum(sum[r][o], r, o, bias, to);
  }
}

/// [rows, depth] times the transpose of [outputs, depth], plus bias [outputs] or null, or plus what
/// is there. Columns that hold nothing but zeros take no time.
[[gnu::target(PAWL_AVX512_ISA)]] inline void multiply_transposed(Rectangle const& x,
                                                                 Rectangle const& w,
                                                                 float const* bias,
                                                                 Destination const& to) {
  auto const depth = x.columns;
  Rows const rows{x, blocks(x.a, x.rows, depth / 16 * 16, x.stride, true)};
  constexpr std::int64_t height = 5, width = 4;
  // So many outputs that their weights stay in the first cache while the rows pass by.
  auto const at_once =
      std::max<std::int64_t>(6144 / std::max<std::int64_t>(depth, 1) / width, 1) * width;
  for (std::int64_t begin = 0; begin < w.rows; begin += at_once) {
    auto const end = std::min(w.rows, begin + at_once);
    for (std::int64_t r = 0; r < x.rows; r += height) {
      for (auto o = begin; o < end; o += width) {
        auto here = to;
        here.y += r * to.stride + o;
        Rectangle const some{w.a + o * w.stride, std::min(width, w.rows - o), depth, w.stride};
        inner_products(rows, r, some, bias ? bias + o : nullptr, here,
                       std::make_index_sequence<height>());
      }
    }
  }
}

}  // namespace avx512

#undef PAWL_AVX512
#undef PAWL_AVX512_ISA

}  // namespace products
}  // namespace v0
}  // namespace pawl
#endif
