#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "factors.hpp"

#ifdef PAWL_PRODUCTS

namespace pawl {
inline namespace v0 {
namespace products {

#define PAWL_AVX2 [[gnu::target("avx2,fma"), gnu::always_inline]] inline

/// Kernels for processors with AVX2, whatever the compiler was asked to build for.
namespace avx2 {

using Eight = float __attribute__((vector_size(32)));
using EightBits = std::uint32_t __attribute__((vector_size(32)));
using Four = float __attribute__((vector_size(16)));

PAWL_AVX2 Eight load(float const* p) {
  Eight v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
PAWL_AVX2 void store(float* p, Eight v) { __builtin_memcpy(p, &v, sizeof v); }
PAWL_AVX2 Eight all(float s) { return Eight{s, s, s, s, s, s, s, s}; }

/// a * b + c, rounded once.
PAWL_AVX2 Eight fma(Eight a, Eight b, Eight c) { return __builtin_ia32_vfmaddps256(a, b, c); }

PAWL_AVX2 EightBits bits(Eight v) { return reinterpret_cast<EightBits>(v); }

/// Whether any of these numbers is not 0 or -0; several may be given by their bits, or'ed.
PAWL_AVX2 bool any(EightBits numbers) {
  auto found = numbers[0];
  for (int i = 1; i < 8; ++i) found |= numbers[i];
  return found << 1 != 0;
}

/// The sums of four vectors.
PAWL_AVX2 Four sums(Eight a, Eight b, Eight c, Eight d) {
  auto const ab = __builtin_shufflevector(a, b, 0, 2, 8, 10, 4, 6, 12, 14) +
                  __builtin_shufflevector(a, b, 1, 3, 9, 11, 5, 7, 13, 15);
  auto const cd = __builtin_shufflevector(c, d, 0, 2, 8, 10, 4, 6, 12, 14) +
                  __builtin_shufflevector(c, d, 1, 3, 9, 11, 5, 7, 13, 15);
  auto const s = __builtin_shufflevector(ab, cd, 0, 2, 8, 10, 4, 6, 12, 14) +
                 __builtin_shufflevector(ab, cd, 1, 3, 9, 11, 5, 7, 13, 15);
  return __builtin_shufflevector(s, s, 0, 1, 2, 3) + __builtin_shufflevector(s, s, 4, 5, 6, 7);
}

/// A result that is not to become part of a fused operation.
PAWL_AVX2 Eight rounded(Eight a) {
  asm("" : "+x"(a));
  return a;
}

/// Numbers w, which lie at y, after they were pulled.
PAWL_AVX2 Eight pulled(Eight w, float const* y, AnchorPull const& pull) {
  auto const i = y - pull.y;
  auto const way = w - load(pull.anchor + i);
  auto const weight = rounded(all(pull.strength) * load(pull.importance + i));
  return fma(rounded(weight * way), all(-pull.rate), w);
}

/// Asks for the lines of the cache that `put` will read.
PAWL_AVX2 void fetch(float const* y, Destination const& to) {
  __builtin_prefetch(y, 1);
  if (to.pull == nullptr) return;
  auto const i = y - to.pull->y;
  __builtin_prefetch(to.pull->anchor + i);
  __builtin_prefetch(to.pull->importance + i);
}

/// Eight columns of a row of the destination.
PAWL_AVX2 void put(float* y, Eight v, Destination const& to) {
  if (to.add) {
    auto const w = load(y);
    v = fma(all(to.factor), v, to.pull != nullptr ? pulled(w, y, *to.pull) : w);
  }
  store(y, v);
}

/// The first n of them, where n is less.
PAWL_AVX2 void put(float* y, Eight v, std::int64_t n, Destination const& to) {
  if (n >= 8) return put(y, v, to);
  for (std::int64_t i = 0; i < n; ++i) to.put(y + i, v[i]);
}

/// Up to 16 columns of the right factor: where they lie, or copied to rows of 16 and filled up with
/// zeros.
struct Panel {
  float const* b = nullptr;
  std::int64_t depth = 0, width = 0, stride = 16;
};

/// Up to sizeof...(R) rows times a panel; the sums stay in registers.
template <int W, std::size_t... R>
PAWL_AVX2 void tile(Left const& left, Panel const& panel, Destination const& to,
                    std::index_sequence<R...>) {
  auto const last = left.rows - 1;
  float const* a[] = {left.a + std::min<std::int64_t>(R, last) * left.row_stride...};
  Eight low[] = {all(0.0f * R)...}, high[] = {all(0.0f * R)...};
  (fetch(to.y + std::min<std::int64_t>(R, last) * to.stride, to), ...);
  auto const* b = panel.b;
  for (std::int64_t i = 0; i < panel.depth; ++i, b += panel.stride) {
    auto const b0 = load(b), b1 = load(b + 8 * (W - 1));
    ((low[R] = fma(all(*a[R]), b0, low[R]), high[R] = fma(all(*a[R]), b1, high[R]),
      a[R] += left.stride),
     ...);
  }
  if (panel.width == 8 * W) {
    ((static_cast<std::int64_t>(R) <= last
          ? (put(to.y + R * to.stride, low[R], to),
             W == 2 ? put(to.y + R * to.stride + 8, high[R], to) : void())
          : void()),
     ...);
    return;
  }
  float sums[sizeof...(R)][16];
  ((store(sums[R], low[R]), store(sums[R] + 8, high[R])), ...);
  for (std::int64_t r = 0; r <= last; ++r) {
    for (std::int64_t c = 0; c < panel.width; ++c) to.put(to.y + r * to.stride + c, sums[r][c]);
  }
}

/// All rows times a panel, in tiles of 6, 5 or 4 rows: as many as leave the fewest idle.
template <int W>
[[gnu::target("avx2,fma")]] void tiles(Left left, Panel const& panel, Destination to) {
  auto const idle = [n = left.rows](std::int64_t height) {
    return (n + height - 1) / height * height - n;
  };
  auto height = std::int64_t{6};
  for (auto const other : {5, 4}) {
    if (left.rows <= 30 && idle(other) < idle(height)) height = other;
  }
  for (auto rest = left.rows; rest > 0; rest -= height) {
    left.rows = std::min(rest, height);
    if (height == 6) tile<W>(left, panel, to, std::make_index_sequence<6>());
    if (height == 5) tile<W>(left, panel, to, std::make_index_sequence<5>());
    if (height == 4) tile<W>(left, panel, to, std::make_index_sequence<4>());
    left.a += height * left.row_stride;
    to.y += height * to.stride;
  }
}

/// Whether both halves of 16 numbers hold anything but zeros.
PAWL_AVX2 bool is_filled(float const* b) { return any(bits(load(b))) && any(bits(load(b + 8))); }

/// Which half of a panel holds anything but zeros.
struct Halves {
  bool low = false, high = false;
};

/// Copies up to 16 columns, which lie as `size` says, to rows of 16. Looks for zeros only where
/// told to.
PAWL_AVX2 Halves copy_columns(float const* b, Panel const& size, bool looks, float* panel) {
  EightBits low{}, high{};
  for (std::int64_t i = 0; i < size.depth; ++i, b += size.stride, panel += 16) {
    if (size.width == 16) {
      store(panel, load(b)), store(panel + 8, load(b + 8));
    } else {
      std::fill(std::copy(b, b + size.width, panel), panel + 16, 0.0f);
    }
    if (looks) low |= bits(load(panel)), high |= bits(load(panel + 8));
  }
  return {!looks || any(low), !looks || any(high)};
}

/// Adds nothing to up to eight columns: they become 0 or, where they hold something already, are
/// pulled at most.
PAWL_AVX2 void add_nothing(std::int64_t rows, std::int64_t width, Destination const& to) {
  if (to.add && to.pull == nullptr) return;
  for (std::int64_t r = 0; r < rows; ++r) put(to.y + r * to.stride, Eight{}, width, to);
}

/// [rows, depth] times [depth, columns]. Where it looks for them, eight neighbouring columns that
/// hold nothing but zeros take no time: images often have empty borders.
[[gnu::target("avx2,fma")]] inline void multiply(Left left, Rectangle const& right, bool looks,
                                                 Destination to) {
  alignas(64) float panel[16 * depth_at_once];
  auto const* b = right.a;
  for (std::int64_t begin = 0; begin < right.rows; begin += depth_at_once) {
    auto const size = std::min(depth_at_once, right.rows - begin);
    for (std::int64_t j = 0; j < right.columns; j += 16) {
      auto const width = std::min<std::int64_t>(16, right.columns - j);
      auto const first = std::min<std::int64_t>(8, width);
      auto low = to, high = to;
      low.y += j, high.y += j + first;
      auto const dense = width == 16 && (!looks || is_filled(b + j));
      if (dense && left.rows <= 24) {  // too few rows to make up for a copy
        tiles<2>(left, {b + j, size, width, right.stride}, low);
        continue;
      }
      auto const found = copy_columns(b + j, {nullptr, size, width, right.stride}, looks, panel);
      if (found.low && found.high) {
        tiles<2>(left, {panel, size, width}, low);
        continue;
      }
      if (found.low) {
        tiles<1>(left, {panel, size, first}, low);
      } else {
        add_nothing(left.rows, first, low);
      }
      if (found.high) {
        tiles<1>(left, {panel + 8, size, width - first}, high);
      } else {
        add_nothing(left.rows, width - first, high);
      }
    }
    b += depth_at_once * right.stride;
    left.a += depth_at_once * left.stride;
    to = to.rest();
  }
}

/// Rows without what is zero in all of them: inner products run over these blocks of eight columns,
/// and over the columns from `rest` on.
struct Filled {
  Rectangle x{};
  std::int64_t rest = 0;
  std::vector<std::int64_t> blocks{};
};

PAWL_AVX2 bool is_zero(float const* x, std::int64_t rows, std::int64_t stride) {
  for (std::int64_t r = 0; r < rows; ++r, x += stride) {
    if (any(bits(load(x)))) return false;
  }
  return true;
}

PAWL_AVX2 Filled filled(Rectangle const& x) {
  Filled f{x, x.columns / 8 * 8, {}};
  f.blocks.reserve(static_cast<std::size_t>(x.columns / 8));
  for (std::int64_t i = 0; i < f.rest; i += 8) {
    if (!is_zero(x.a + i, x.rows, x.stride)) f.blocks.push_back(i);
  }
  return f;
}

/// sizeof...(R) rows of x from `begin` on, as far as there are so many, with up to four rows of w:
/// inner products, plus bias, or plus what is there.
template <std::size_t... R>
PAWL_AVX2 void inner_products(Filled const& f, std::int64_t begin, Rectangle const& w,
                              float const* bias, Destination const& to, std::index_sequence<R...>) {
  auto const& x = f.x;
  auto const rows = std::min<std::int64_t>(sizeof...(R), x.rows - begin);
  auto const row = [&](std::int64_t r) { return x.a + (begin + std::min(r, rows - 1)) * x.stride; };
  auto const output = [&](std::int64_t o) { return w.a + std::min(o, w.rows - 1) * w.stride; };
  float const* const a[] = {row(R)...};
  float const* const b[] = {output(0), output(1), output(2), output(3)};
  Eight s0[] = {all(0.0f * R)...}, s1[] = {all(0.0f * R)...};
  Eight s2[] = {all(0.0f * R)...}, s3[] = {all(0.0f * R)...};
  for (auto const i : f.blocks) {
    Eight const v[] = {load(a[R] + i)...};
    auto const b0 = load(b[0] + i);
    ((s0[R] = fma(v[R], b0, s0[R])), ...);
    auto const b1 = load(b[1] + i);
    ((s1[R] = fma(v[R], b1, s1[R])), ...);
    auto const b2 = load(b[2] + i);
    ((s2[R] = fma(v[R], b2, s2[R])), ...);
    auto const b3 = load(b[3] + i);
    ((s3[R] = fma(v[R], b3, s3[R])), ...);
  }
  Four sum[] = {sums(s0[R], s1[R], s2[R], s3[R])...};
  for (auto i = f.rest; i < x.columns; ++i) {
    Four const rest{b[0][i], b[1][i], b[2][i], b[3][i]};
    ((sum[R] += rest * a[R][i]), ...);
  }
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t o = 0; o < w.rows; ++o) put_sum(sum[r][o], r, o, bias, to);
  }
}

/// [rows, depth] times the transpose of [outputs, depth], plus bias [outputs] or null, or plus what
/// is there. Columns that hold nothing but zeros take no time.
[[gnu::target("avx2,fma")]] inline void multiply_transposed(Rectangle const& x, Rectangle const& w,
                                                            float const* bias,
                                                            Destination const& to) {
  auto const f = filled(x);
  for (std::int64_t o = 0; o < w.rows; o += 4) {
    Rectangle const some{w.a + o * w.stride, std::min<std::int64_t>(4, w.rows - o), w.columns,
                         w.stride};
    auto here = to;
    here.y += o;
    for (std::int64_t r = 0; r < x.rows; r += 3, here.y += 3 * to.stride) {
      inner_products(f, r, some, bias ? bias + o : nullptr, here, std::make_index_sequence<3>());
    }
  }
}

}  // namespace avx2

#undef PAWL_AVX2

}  // namespace products
}  // namespace v0
}  // namespace pawl
#endif
