#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "../products/kernels.hpp"

namespace pawl {
inline namespace v0 {

/// The whole update of Adam in one pass over memory, for processors with AVX2 or AVX-512. Every
/// operation is rounded as LibTorch rounds it when it does one after another, but for the root,
/// which is the nearest float32 here, and may be its neighbour there.
namespace adam_kernel {

/// The scalars of an update.
struct Scalars {
  float beta1 = 0, new1 = 0;  ///< m <- beta1 m + new1 g
  float beta2 = 0, new2 = 0;  ///< v <- beta2 v + new2 g^2
  float rate = 0;             ///< lr / (1 - beta1^t)
  float correction = 1;       ///< sqrt(1 - beta2^t)
  float eps = 0;
  float decay = 0;  ///< of the weights, added to the gradient
  float keep = 1;   ///< what decoupled decay leaves of the weights
};

/// Numbers [n] of each.
struct Operands {
  float* w = nullptr;
  float const* g = nullptr;
  float *m = nullptr, *v = nullptr;
};

/// Whether it can be used on these weights.
inline bool suits(Tensor const& weights) {
  return weights.is_cpu() && weights.scalar_type() == torch::kFloat32 &&
         products::kernels() != products::Kernels::none;
}

#ifdef PAWL_PRODUCTS
#define PAWL_AVX2_ISA "avx2,fma"
#define PAWL_AVX512_ISA "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"

namespace avx2 {

using products::avx2::all;
using products::avx2::Eight;
using products::avx2::fma;
using products::avx2::load;
using products::avx2::store;

/// A product or quotient that is not to become part of a fused operation.
[[gnu::target(PAWL_AVX2_ISA), gnu::always_inline]] inline Eight rounded(Eight a) {
  asm("" : "+x"(a));
  return a;
}

/// Numbers in a vector.
constexpr std::int64_t width = 8;

[[gnu::target(PAWL_AVX2_ISA)]] inline void update(Operands const& x, std::int64_t n,
                                                  Scalars const& s) {
  for (std::int64_t i = 0; i < n; i += width) {
    auto const w = rounded(load(x.w + i) * all(s.keep));
    auto const g = s.decay == 0 ? load(x.g + i) : fma(w, all(s.decay), load(x.g + i));
    auto const m = fma(g, all(s.new1), rounded(load(x.m + i) * all(s.beta1)));
    auto const v = fma(rounded(all(s.new2) * g), g, rounded(load(x.v + i) * all(s.beta2)));
    auto const root = __builtin_ia32_sqrtps256(v) / all(s.correction) + all(s.eps);
    store(x.m + i, m);
    store(x.v + i, v);
    store(x.w + i, w + rounded(rounded(all(-s.rate) * m) / root));
  }
}

}  // namespace avx2

namespace avx512 {

using products::avx512::all;
using products::avx512::fma;
using products::avx512::load;
using products::avx512::Sixteen;

[[gnu::target(PAWL_AVX512_ISA), gnu::always_inline]] inline void store(float* p, Sixteen v) {
  __builtin_memcpy(p, &v, sizeof v);
}

[[gnu::target(PAWL_AVX512_ISA), gnu::always_inline]] inline Sixteen rounded(Sixteen a) {
  asm("" : "+v"(a));
  return a;
}

[[gnu::target(PAWL_AVX512_ISA), gnu::always_inline]] inline Sixteen root_of(Sixteen a) {
  constexpr int as_ever = 4;  // the rounding that is set
#ifdef __clang__
  return __builtin_ia32_sqrtps512(a, as_ever);
#else
  return __builtin_ia32_sqrtps512_mask(a, a, products::avx512::full, as_ever);
#endif
}

constexpr std::int64_t width = 16;

[[gnu::target(PAWL_AVX512_ISA)]] inline void update(Operands const& x, std::int64_t n,
                                                    Scalars const& s) {
  for (std::int64_t i = 0; i < n; i += width) {
    auto const w = rounded(load(x.w + i) * all(s.keep));
    auto const g = s.decay == 0 ? load(x.g + i) : fma(w, all(s.decay), load(x.g + i));
    auto const m = fma(g, all(s.new1), rounded(load(x.m + i) * all(s.beta1)));
    auto const v = fma(rounded(all(s.new2) * g), g, rounded(load(x.v + i) * all(s.beta2)));
    auto const root = root_of(v) / all(s.correction) + all(s.eps);
    store(x.m + i, m);
    store(x.v + i, v);
    store(x.w + i, w + rounded(rounded(all(-s.rate) * m) / root));
  }
}

}  // namespace avx512

/// Of whole vectors.
inline void update_vectors(Operands const& x, std::int64_t n, Scalars const& s) {
  if (products::kernels() == products::Kernels::avx512) {
    avx512::update(x, n, s);
  } else {
    avx2::update(x, n, s);
  }
}

/// Updates n weights and their moments, with as many threads as LibTorch would take.
inline void update(Operands const& x, std::int64_t n, Scalars const& s) {
  constexpr auto width = avx512::width;
  auto const from = [&](std::int64_t i) { return Operands{x.w + i, x.g + i, x.m + i, x.v + i}; };
  auto const vectors = n / width, rest = n % width;
  at::parallel_for(0, vectors, 32768 / width, [&](std::int64_t begin, std::int64_t end) {
    update_vectors(from(begin * width), (end - begin) * width, s);
  });
  if (rest == 0) return;
  float w[width]{}, g[width]{}, m[width]{}, v[width]{};
  auto const last = from(vectors * width);
  std::copy_n(last.w, rest, w), std::copy_n(last.g, rest, g);
  std::copy_n(last.m, rest, m), std::copy_n(last.v, rest, v);
  update_vectors({w, g, m, v}, width, s);
  std::copy_n(w, rest, last.w), std::copy_n(m, rest, last.m), std::copy_n(v, rest, last.v);
}

#undef PAWL_AVX2_ISA
#undef PAWL_AVX512_ISA
#else

/// For compilers without those instructions.
inline void update(Operands const& x, std::int64_t n, Scalars const& s) {
  for (std::int64_t i = 0; i < n; ++i) {
    auto const w = x.w[i] * s.keep, g = std::fma(w, s.decay, x.g[i]);
    x.m[i] = std::fma(g, s.new1, x.m[i] * s.beta1);
    x.v[i] = std::fma(s.new2 * g, g, x.v[i] * s.beta2);
    x.w[i] = w - s.rate * x.m[i] / (std::sqrt(x.v[i]) / s.correction + s.eps);
  }
}

#endif

}  // namespace adam_kernel
}  // namespace v0
}  // namespace pawl
