#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "../torch.hpp"

namespace pawl {
inline namespace v0 {

// The three matrix products of a linear layer, for the few rows of a training step. LibTorch's are
// made for large products: on one AVX2 core those below are 1.5 times as fast at 10 rows, 1.25 at
// 20, as fast at 128, and three times where a layer has few outputs. They sum in a fixed order, so
// that a row's outputs do not depend on the other rows of its batch.

/// Where a product goes: y = product, or y += factor * product, rounded once.
struct Destination {
  float* y = nullptr;
  std::int64_t stride = 0;  ///< between rows of y
  bool add = false;
  float factor = 1;
};

/// Longer sums are added up in pieces of this length.
constexpr std::int64_t depth_at_once = 512;

#if defined(__x86_64__) && defined(__GNUC__) && defined(__OPTIMIZE__)
#define PAWL_PRODUCTS 1
#define PAWL_AVX2 [[gnu::target("avx2,fma"), gnu::always_inline]] inline

/// Kernels for processors with AVX2, whatever the compiler was asked to build for.
namespace avx2 {

using Eight = float __attribute__((vector_size(32)));
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

/// Eight columns of a row of the destination.
PAWL_AVX2 void put(float* y, Eight v, Destination const& to) {
  store(y, to.add ? fma(all(to.factor), v, load(y)) : v);
}

/// A left factor [rows, depth] of any strides.
struct Left {
  float const* a = nullptr;
  std::int64_t rows = 0, row_stride = 0, stride = 0;
};

/// A part of the right factor [depth, columns], columns <= 8 W, copied to rows of 8 W columns.
struct Panel {
  float const* b = nullptr;
  std::int64_t depth = 0, columns = 0;
};

/// Up to sizeof...(R) rows times a panel; the sums stay in registers.
template <int W, std::size_t... R>
PAWL_AVX2 void tile(Left const& left, Panel const& panel, Destination const& to,
                    std::index_sequence<R...>) {
  auto const last = left.rows - 1;
  float const* a[] = {left.a + std::min<std::int64_t>(R, last) * left.row_stride...};
  Eight low[] = {all(0.0f * R)...}, high[] = {all(0.0f * R)...};
  (__builtin_prefetch(to.y + std::min<std::int64_t>(R, last) * to.stride, 1), ...);
  auto const* b = panel.b;
  for (std::int64_t i = 0; i < panel.depth; ++i, b += 8 * W) {
    auto const b0 = load(b), b1 = load(b + 8 * (W - 1));
    ((low[R] = fma(all(*a[R]), b0, low[R]), high[R] = fma(all(*a[R]), b1, high[R]),
      a[R] += left.stride),
     ...);
  }
  if (panel.columns == 8 * W) {
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
    for (std::int64_t c = 0; c < panel.columns; ++c) {
      auto& y = to.y[r * to.stride + c];
      y = to.add ? __builtin_fmaf(to.factor, sums[r][c], y) : sums[r][c];
    }
  }
}

/// All rows times a panel, in tiles of 6, 5 or 4 rows: as many as leave the fewest idle.
template <int W>
PAWL_AVX2 void tiles(Left left, Panel const& panel, Destination to) {
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

/// [rows, depth] times [depth, columns], whose rows lie one behind the other.
[[gnu::target("avx2,fma")]] inline void multiply(Left left, std::int64_t depth, float const* b,
                                                 std::int64_t columns, Destination to) {
  alignas(64) float panel[16 * depth_at_once];
  for (std::int64_t begin = 0; begin < depth; begin += depth_at_once) {
    auto const size = std::min(depth_at_once, depth - begin);
    for (std::int64_t j = 0; j < columns; j += 16) {
      auto const width = std::min<std::int64_t>(16, columns - j);
      auto const padded = width > 8 ? 16 : 8;
      for (std::int64_t i = 0; i < size; ++i) {
        auto const* from = b + (begin + i) * columns + j;
        auto* const p = panel + i * padded;
        if (width == 16) {
          store(p, load(from)), store(p + 8, load(from + 8));
        } else {
          std::fill(std::copy(from, from + width, p), p + padded, 0.0f);
        }
      }
      auto here = to;
      here.y += j;
      if (padded == 16) {
        tiles<2>(left, {panel, size, width}, here);
      } else {
        tiles<1>(left, {panel, size, width}, here);
      }
    }
    left.a += depth_at_once * left.stride;
    to.factor = to.add ? to.factor : 1;
    to.add = true;
  }
}

/// Up to sizeof...(R) rows of x with up to four rows of w, inner products over `depth`, plus bias.
template <std::size_t... R>
PAWL_AVX2 void inner_products(float const* x, std::int64_t rows, float const* w,
                              std::int64_t outputs, std::int64_t depth, float const* bias,
                              Destination const& to, std::index_sequence<R...>) {
  auto const row = [&](std::int64_t r) { return x + std::min(r, rows - 1) * depth; };
  auto const output = [&](std::int64_t o) { return w + std::min(o, outputs - 1) * depth; };
  float const* const a[] = {row(R)...};
  float const* const b[] = {output(0), output(1), output(2), output(3)};
  Eight s0[] = {all(0.0f * R)...}, s1[] = {all(0.0f * R)...};
  Eight s2[] = {all(0.0f * R)...}, s3[] = {all(0.0f * R)...};
  std::int64_t i = 0;
  for (; i + 8 <= depth; i += 8) {
    auto const b0 = load(b[0] + i), b1 = load(b[1] + i), b2 = load(b[2] + i), b3 = load(b[3] + i);
    Eight v;
    ((v = load(a[R] + i), s0[R] = fma(v, b0, s0[R]), s1[R] = fma(v, b1, s1[R]),
      s2[R] = fma(v, b2, s2[R]), s3[R] = fma(v, b3, s3[R])),
     ...);
  }
  Four sum[] = {sums(s0[R], s1[R], s2[R], s3[R])...};
  for (; i < depth; ++i) {
    Four const rest{b[0][i], b[1][i], b[2][i], b[3][i]};
    ((sum[R] += rest * a[R][i]), ...);
  }
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t o = 0; o < outputs; ++o) {
      to.y[r * to.stride + o] = sum[r][o] + (bias ? bias[o] : 0.0f);
    }
  }
}

/// [rows, depth] times the transpose of [outputs, depth], plus bias [outputs] or null.
[[gnu::target("avx2,fma")]] inline void multiply_transposed(float const* x, std::int64_t rows,
                                                            std::int64_t depth, float const* w,
                                                            std::int64_t outputs, float const* bias,
                                                            Destination to) {
  for (std::int64_t o = 0; o < outputs; o += 4) {
    auto here = to;
    here.y += o;
    for (std::int64_t r = 0; r < rows; r += 3, here.y += 3 * to.stride) {
      inner_products(x + r * depth, std::min<std::int64_t>(3, rows - r), w + o * depth,
                     std::min<std::int64_t>(4, outputs - o), depth, bias ? bias + o : nullptr, here,
                     std::make_index_sequence<3>());
    }
  }
}

}  // namespace avx2

#undef PAWL_AVX2
#endif

/// Shows a product of the kernels above to LibTorch's profilers, where one listens: as `pawl::mm`
/// of a [n, k] and b [k, m], either of which may be given transposed.
class ShownProduct {
 public:
  ShownProduct(Tensor const& a, bool transpose_a, Tensor const& b, bool transpose_b) {
    if (!call_.isActive()) return;
    inputs_.emplace_back(transpose_a ? a.t() : a);
    inputs_.emplace_back(transpose_b ? b.t() : b);
    call_.before("pawl::mm", &inputs_);
  }
  ShownProduct(ShownProduct const&) = delete;
  ShownProduct& operator=(ShownProduct const&) = delete;

 private:
  std::vector<c10::IValue> inputs_;
  at::RecordFunction call_{at::RecordScope::FUNCTION};
};

/// Whether the kernels above form the product of a layer [outputs, inputs] with rows [n, ...]:
/// where it is small enough, in float32 on the host, on one thread, where LibTorch itself would use
/// AVX2.
inline bool is_small(Tensor const& rows, std::int64_t outputs, Tensor const& a, Tensor const& b) {
#ifdef PAWL_PRODUCTS
  static bool const avx2 = at::get_cpu_capability() == "AVX2";
  if (!avx2 || at::get_num_threads() != 1) return false;
  if (rows.size(0) > 128 && outputs > 16) return false;
  for (auto const* m : {&rows, &a, &b}) {
    if (!m->is_cpu() || m->scalar_type() != torch::kFloat32 || !m->is_contiguous()) return false;
  }
  return true;
#else
  static_cast<void>(rows), static_cast<void>(outputs), static_cast<void>(a), static_cast<void>(b);
  return false;
#endif
}

/// y [n, out] = x [n, in] times w [out, in] transposed, plus bias [out] where it is defined.
inline void linear(Tensor& y, Tensor const& x, Tensor const& w, Tensor const& bias) {
#ifdef PAWL_PRODUCTS
  if (is_small(x, w.size(0), w, y)) {
    ShownProduct const shown(x, false, w, true);
    avx2::multiply_transposed(x.const_data_ptr<float>(), x.size(0), x.size(1),
                              w.const_data_ptr<float>(), w.size(0),
                              bias.defined() ? bias.const_data_ptr<float>() : nullptr,
                              {y.mutable_data_ptr<float>(), y.size(1)});
    return;
  }
#endif
  if (bias.defined()) {
    at::addmm_out(y, bias, x, w.t());
  } else {
    at::mm_out(y, x, w.t());
  }
}

/// y [n, in] = d [n, out] times w [out, in].
inline void input_gradient(Tensor& y, Tensor const& d, Tensor const& w) {
#ifdef PAWL_PRODUCTS
  if (is_small(d, d.size(1), w, y)) {
    ShownProduct const shown(d, false, w, false);
    avx2::multiply({d.const_data_ptr<float>(), d.size(0), d.size(1), 1}, d.size(1),
                   w.const_data_ptr<float>(), w.size(1), {y.mutable_data_ptr<float>(), y.size(1)});
    return;
  }
#endif
  at::mm_out(y, d, w);
}

/// The gradient of a layer's weight [out, in], d^T x, or of its bias [out], the sum of d's rows,
/// before it is formed: d [n, out] is the gradient of the layer's outputs, x [n, in] are its inputs
/// (undefined for a bias).
struct LayerGradient {
  Tensor d{}, x{};

  bool defined() const { return d.defined(); }

  /// Whether it is all the same, to the last bit, to add it to y or to form it and add that.
  bool is_separable(Tensor const& y) const {
    return x.defined() && d.size(0) <= depth_at_once && is_small(d, d.size(1), x, y);
  }

  /// y = gradient.
  void form(Tensor y) const {
    if (!x.defined()) {
      at::sum_out(y, d, {0});
    } else if (!multiply(y, false, 1)) {
      at::mm_out(y, d.t(), x);
    }
  }

  /// y += factor * gradient.
  void add_to(Tensor y, double factor) const {
    if (!x.defined()) {
      y.add_(d.sum(0), factor);
    } else if (!multiply(y, true, factor)) {
      y.addmm_(d.t(), x, 1, factor);
    }
  }

 private:
  bool multiply(Tensor& y, bool add, double factor) const {
#ifdef PAWL_PRODUCTS
    if (is_small(d, d.size(1), x, y)) {
      ShownProduct const shown(d, true, x, false);
      avx2::multiply({d.const_data_ptr<float>(), d.size(1), 1, d.size(1)}, d.size(0),
                     x.const_data_ptr<float>(), x.size(1),
                     {y.mutable_data_ptr<float>(), y.size(1), add, static_cast<float>(factor)});
      y.unsafeGetTensorImpl()->bump_version();  // graphs that need the old values notice
      return true;
    }
#endif
    static_cast<void>(y), static_cast<void>(add), static_cast<void>(factor);
    return false;
  }
};

}  // namespace v0
}  // namespace pawl
