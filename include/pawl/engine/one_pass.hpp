#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "../products/in_parallel.hpp"
#include "../products/kernels.hpp"

namespace pawl {
inline namespace v0 {

/// What would be several operations of LibTorch on weights, in one pass over memory, for processors
/// with AVX2 or AVX-512. Each is rounded as LibTorch rounds it when they come one after another,
/// but for the root in Adam, which is the nearest float32 here, and may be its neighbour there.
namespace one_pass {

/// Whether it can be used on these weights, and whatever lies beside them.
inline bool suits(Tensor const& weights) {
  return weights.is_cpu() && weights.scalar_type() == torch::kFloat32 && weights.is_contiguous() &&
         products::kernels() != products::Kernels::none;
}

// Kinds of work on numbers [n] of each operand; `each` calls f with all that are read or written,
// `operands` of them.

/// A step of Adam.
struct Adam {
  float* w = nullptr;
  float const* g = nullptr;
  float *m = nullptr, *v = nullptr;

  float beta1 = 0, new1 = 0;  ///< m <- beta1 m + new1 g
  float beta2 = 0, new2 = 0;  ///< v <- beta2 v + new2 g^2
  float rate = 0;             ///< lr / (1 - beta1^t)
  float correction = 1;       ///< sqrt(1 - beta2^t)
  float eps = 0;
  float decay = 0;  ///< of the weights, added to the gradient
  float keep = 1;   ///< what decoupled decay leaves of the weights

  static constexpr std::size_t operands = 4;
  template <class F>
  void each(F&& f) {
    f(w), f(g), f(m), f(v);
  }
};

/// The gradient of a quadratic penalty: g <- g + strength importance (w - anchor).
struct Pull {
  float* g = nullptr;
  float const *w = nullptr, *anchor = nullptr, *importance = nullptr;

  float strength = 0;

  static constexpr std::size_t operands = 4;
  template <class F>
  void each(F&& f) {
    f(g), f(w), f(anchor), f(importance);
  }
};

/// A step of plain SGD on such a penalty: w <- w - rate strength importance (w - anchor).
struct PullDown {
  float* w = nullptr;
  products::AnchorPull pull{};

  /// The pull on numbers that begin at w, wherever that has gone.
  products::AnchorPull here() const {
    return {w, pull.anchor, pull.importance, pull.strength, pull.rate};
  }

  static constexpr std::size_t operands = 3;
  template <class F>
  void each(F&& f) {
    f(w), f(pull.anchor), f(pull.importance);
  }
};

#ifdef PAWL_PRODUCTS
#define PAWL_AVX512_ISA "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"
#define PAWL_AVX512 [[gnu::target(PAWL_AVX512_ISA), gnu::always_inline]] inline

/// Longest vector.
constexpr std::int64_t widest = 16;

namespace avx2 {

using products::avx2::all;
using products::avx2::Eight;
using products::avx2::fma;
using products::avx2::load;
using products::avx2::pulled;
using products::avx2::rounded;
using products::avx2::store;

[[gnu::target("avx2,fma")]] inline void run(Adam const& x, std::int64_t n) {
  for (std::int64_t i = 0; i < n; i += 8) {
    auto const w = rounded(load(x.w + i) * all(x.keep));
    auto const g = x.decay == 0 ? load(x.g + i) : fma(w, all(x.decay), load(x.g + i));
    auto const m = fma(g, all(x.new1), rounded(load(x.m + i) * all(x.beta1)));
    auto const v = fma(rounded(all(x.new2) * g), g, rounded(load(x.v + i) * all(x.beta2)));
    auto const root = __builtin_ia32_sqrtps256(v) / all(x.correction) + all(x.eps);
    store(x.m + i, m);
    store(x.v + i, v);
    store(x.w + i, w + rounded(rounded(all(-x.rate) * m) / root));
  }
}

[[gnu::target("avx2,fma")]] inline void run(Pull const& x, std::int64_t n) {
  for (std::int64_t i = 0; i < n; i += 8) {
    auto const way = load(x.w + i) - load(x.anchor + i);
    auto const weight = rounded(all(x.strength) * load(x.importance + i));
    store(x.g + i, fma(weight, way, load(x.g + i)));
  }
}

[[gnu::target("avx2,fma")]] inline void run(PullDown const& x, std::int64_t n) {
  auto const pull = x.here();
  for (auto* w = x.w; w < x.w + n; w += 8) store(w, pulled(load(w), w, pull));
}

}  // namespace avx2

namespace avx512 {

using products::avx512::all;
using products::avx512::fma;
using products::avx512::load;
using products::avx512::pulled;
using products::avx512::rounded;
using products::avx512::Sixteen;

PAWL_AVX512 void store(float* p, Sixteen v) { __builtin_memcpy(p, &v, sizeof v); }

PAWL_AVX512 Sixteen root_of(Sixteen a) {
  constexpr int as_ever = 4;  // the rounding that is set
#ifdef __clang__
  return __builtin_ia32_sqrtps512(a, as_ever);
#else
  return __builtin_ia32_sqrtps512_mask(a, a, products::avx512::full, as_ever);
#endif
}

[[gnu::target(PAWL_AVX512_ISA)]] inline void run(Adam const& x, std::int64_t n) {
  for (std::int64_t i = 0; i < n; i += 16) {
    auto const w = rounded(load(x.w + i) * all(x.keep));
    auto const g = x.decay == 0 ? load(x.g + i) : fma(w, all(x.decay), load(x.g + i));
    auto const m = fma(g, all(x.new1), rounded(load(x.m + i) * all(x.beta1)));
    auto const v = fma(rounded(all(x.new2) * g), g, rounded(load(x.v + i) * all(x.beta2)));
    auto const root = root_of(v) / all(x.correction) + all(x.eps);
    store(x.m + i, m);
    store(x.v + i, v);
    store(x.w + i, w + rounded(rounded(all(-x.rate) * m) / root));
  }
}

[[gnu::target(PAWL_AVX512_ISA)]] inline void run(Pull const& x, std::int64_t n) {
  for (std::int64_t i = 0; i < n; i += 16) {
    auto const way = load(x.w + i) - load(x.anchor + i);
    auto const weight = rounded(all(x.strength) * load(x.importance + i));
    store(x.g + i, fma(weight, way, load(x.g + i)));
  }
}

[[gnu::target(PAWL_AVX512_ISA)]] inline void run(PullDown const& x, std::int64_t n) {
  auto const pull = x.here();
  for (auto* w = x.w; w < x.w + n; w += 16) {
    store(w, pulled(load(w), w, products::avx512::full, pull));
  }
}

}  // namespace avx512

template <class Work>
void run_vectors(Work const& work, std::int64_t n) {
  if (products::kernels() == products::Kernels::avx512) {
    avx512::run(work, n);
  } else {
    avx2::run(work, n);
  }
}

/// The same work from number i on.
template <class Work>
Work later(Work work, std::int64_t i) {
  work.each([i](auto*& p) { p += i; });
  return work;
}

/// Does it to a few numbers, which do not fill a vector, in a place where they do.
template <class Work>
void run_rest(Work work, std::int64_t n) {
  float places[Work::operands][widest]{};
  auto there = work;
  std::size_t k = 0;
  there.each([&](auto*& p) {
    std::copy_n(p, n, places[k]);
    p = places[k++];
  });
  run_vectors(there, widest);
  k = 0;
  work.each([&](auto*& p) {
    if constexpr (std::is_same_v<decltype(p), float*&>) std::copy_n(places[k], n, p);
    ++k;
  });
}

/// Does it to n numbers of each, in as many of LibTorch's threads as get 32,768 of them.
template <class Work>
void run(Work const& work, std::int64_t n) {
  auto const vectors = n / widest, rest = n % widest;
  products::in_parallel(vectors, 1, n / 32768, [&](std::int64_t begin, std::int64_t end) {
    run_vectors(later(work, begin * widest), (end - begin) * widest);
  });
  if (rest > 0) run_rest(later(work, n - rest), rest);
}

#undef PAWL_AVX512
#undef PAWL_AVX512_ISA
#else

// For compilers without those instructions.

inline void run(Adam const& x, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    auto const w = x.w[i] * x.keep, g = std::fma(w, x.decay, x.g[i]);
    x.m[i] = std::fma(g, x.new1, x.m[i] * x.beta1);
    x.v[i] = std::fma(x.new2 * g, g, x.v[i] * x.beta2);
    x.w[i] = w - x.rate * x.m[i] / (std::sqrt(x.v[i]) / x.correction + x.eps);
  }
}

inline void run(Pull const& x, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    x.g[i] = std::fma(x.strength * x.importance[i], x.w[i] - x.anchor[i], x.g[i]);
  }
}

inline void run(PullDown const& x, std::int64_t n) {
  auto const pull = x.here();
  for (std::int64_t i = 0; i < n; ++i) x.w[i] = pull.pulled(x.w + i);
}

#endif

}  // namespace one_pass
}  // namespace v0
}  // namespace pawl
