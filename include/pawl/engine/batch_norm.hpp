#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <vector>

#include "../products/kernels.hpp"

namespace pawl {
inline namespace v0 {

/// Batch normalisation (Ioffe and Szegedy, ICML 2015) of images that have their channels last, on a
/// processor with AVX2. Blocks of pixels are summed in float32, and blocks in double precision, in
/// their order, however many threads share them; LibTorch sums all pixels in float32 in that
/// layout.
namespace batch_norm {

#ifdef PAWL_PRODUCTS
namespace avx2 {

using products::avx2::Eight;
using products::avx2::fma;
using products::avx2::load;
using products::avx2::store;

// In rows [n, width] of several pixels, width a multiple of 8.

/// Sums over rows, which begin at a distance, of x - shift and of its square.
[[gnu::target("avx2,fma")]] inline void moments(float const* x, std::int64_t n,
                                                std::int64_t distance, std::int64_t width,
                                                float const* shift, float* sums, float* squares) {
  for (std::int64_t i = 0; i < width; i += 8) {
    auto const b = load(shift + i);
    auto const* at = x + i;
    Eight s[4]{}, q[4]{};
    std::int64_t row = 0;
    for (; row + 4 <= n; row += 4) {
      for (int k = 0; k < 4; ++k, at += distance) {
        auto const d = load(at) - b;
        s[k] = s[k] + d;
        q[k] = fma(d, d, q[k]);
      }
    }
    for (; row < n; ++row, at += distance) {
      auto const d = load(at) - b;
      s[0] = s[0] + d;
      q[0] = fma(d, d, q[0]);
    }
    store(sums + i, (s[0] + s[1]) + (s[2] + s[3]));
    store(squares + i, (q[0] + q[1]) + (q[2] + q[3]));
  }
}

/// Sums over rows of g, and of g (x - mean).
[[gnu::target("avx2,fma")]] inline void gradient_sums(float const* g, float const* x,
                                                      std::int64_t n, std::int64_t width,
                                                      float const* mean, float* sums,
                                                      float* products) {
  for (std::int64_t i = 0; i < width; i += 8) {
    auto const b = load(mean + i);
    auto const *of_g = g + i, *of_x = x + i;
    Eight s[4]{}, q[4]{};
    std::int64_t row = 0;
    for (; row + 4 <= n; row += 4) {
      for (int k = 0; k < 4; ++k, of_g += width, of_x += width) {
        auto const d = load(of_g);
        s[k] = s[k] + d;
        q[k] = fma(d, load(of_x) - b, q[k]);
      }
    }
    for (; row < n; ++row, of_g += width, of_x += width) {
      auto const d = load(of_g);
      s[0] = s[0] + d;
      q[0] = fma(d, load(of_x) - b, q[0]);
    }
    store(sums + i, (s[0] + s[1]) + (s[2] + s[3]));
    store(products + i, (q[0] + q[1]) + (q[2] + q[3]));
  }
}

/// y = x scale + shift.
[[gnu::target("avx2,fma")]] inline void scale(float const* x, std::int64_t n, std::int64_t width,
                                              float const* scales, float const* shifts, float* y) {
  for (std::int64_t row = 0; row < n; ++row, x += width, y += width) {
    for (std::int64_t i = 0; i < width; i += 8) {
      store(y + i, fma(load(x + i), load(scales + i), load(shifts + i)));
    }
  }
}

/// dx = (g - g_mean - (x - mean) slope) scale.
[[gnu::target("avx2,fma")]] inline void input_gradient(float const* g, float const* x,
                                                       std::int64_t n, std::int64_t width,
                                                       float const* g_mean, float const* mean,
                                                       float const* slope, float const* scales,
                                                       float* dx) {
  for (std::int64_t row = 0; row < n; ++row, g += width, x += width, dx += width) {
    for (std::int64_t i = 0; i < width; i += 8) {
      auto const way = load(x + i) - load(mean + i);
      auto const left = fma(-way, load(slope + i), load(g + i) - load(g_mean + i));
      store(dx + i, left * load(scales + i));
    }
  }
}

}  // namespace avx2

/// Numbers of the channels of pixels [P, C], float32.
using Numbers = std::vector<float>;

/// Pixels [P, C] as rows of as many pixels as fill vectors of 8 numbers, and a few that are left.
struct Pixels {
  explicit Pixels(Tensor const& x)
      : channels(x.size(1)),
        pixels(x.numel() / channels),
        width(std::lcm(channels, std::int64_t{8})),
        rows(x.numel() / width) {}

  /// What each channel has, for all pixels of a row.
  template <class F>
  Numbers across(F&& of_channel) const {
    Numbers all(static_cast<std::size_t>(width));
    auto const n = static_cast<std::size_t>(channels);
    for (std::size_t c = 0; c < n; ++c) all[c] = static_cast<float>(of_channel(c));
    for (auto i = n; i < all.size(); ++i) all[i] = all[i - n];
    return all;
  }

  /// Rows that are summed in float32.
  std::int64_t block() const { return std::max<std::int64_t>(4096 / width, 32); }

  /// Calls f(begin, n) for parts of the rows, n rows from number `begin` on, in several threads.
  template <class F>
  void share(F const& f) const {
    products::in_parallel(rows, block(), rows * width >> 15,
                          [&](auto begin, auto end) { f(begin * width, end - begin); });
  }

  /// Where the first pixel begins that is in no row.
  std::int64_t left() const { return rows * width; }
  std::int64_t end() const { return pixels * channels; }

  std::int64_t channels, pixels;
  std::int64_t width;  ///< numbers in a row
  std::int64_t rows;
};

/// Two sums for each channel.
struct Sums {
  explicit Sums(Pixels const& at)
      : first(static_cast<std::size_t>(at.channels)), second(first.size()) {}

  /// Adds those of a row, which lie pixel by pixel.
  void add_row(float const* firsts, float const* seconds, std::int64_t width) {
    auto const n = static_cast<std::int64_t>(first.size());
    for (std::int64_t i = 0; i < width; i += n) {
      for (std::size_t c = 0; c < first.size(); ++c) {
        first[c] += static_cast<double>(firsts[i + static_cast<std::int64_t>(c)]);
        second[c] += static_cast<double>(seconds[i + static_cast<std::int64_t>(c)]);
      }
    }
  }

  /// Adds those of all blocks, which of_block(begin, n, firsts, seconds) puts there.
  template <class OfBlock>
  void add_blocks(Pixels const& at, OfBlock const& of_block) {
    auto const block = at.block(), blocks = (at.rows + block - 1) / block;
    Numbers all(static_cast<std::size_t>(2 * blocks * at.width));
    auto* const firsts = all.data();
    auto* const seconds = firsts + blocks * at.width;
    at.share([&](std::int64_t begin, std::int64_t n) {
      for (; n > 0; n -= block, begin += block * at.width) {
        auto const place = begin / block;
        of_block(begin, std::min(block, n), firsts + place, seconds + place);
      }
    });
    for (std::int64_t i = 0; i < blocks * at.width; i += at.width) {
      add_row(firsts + i, seconds + i, at.width);
    }
  }

  std::vector<double> first, second;
};

/// Mean and variance (of the population) of each channel.
struct Moments {
  Moments(float const* x, Pixels const& at) : mean(static_cast<std::size_t>(at.channels)) {
    // Numbers are taken relative to a mean of a few, so that their squares cancel but little.
    Sums few(at);
    auto const n = std::min<std::int64_t>(at.rows, 32);
    if (n > 0) {
      auto const size = static_cast<std::size_t>(at.width);
      Numbers const zero(size);
      Numbers firsts(size), seconds(size);
      avx2::moments(x, n, at.rows / n * at.width, at.width, zero.data(), firsts.data(),
                    seconds.data());
      few.add_row(firsts.data(), seconds.data(), at.width);
    }
    auto const in_few = static_cast<double>(std::max<std::int64_t>(n * at.width / at.channels, 1));
    auto const shift = at.across([&](std::size_t c) { return few.first[c] / in_few; });
    Sums sums(at);
    sums.add_blocks(at, [&](std::int64_t begin, std::int64_t rows, float* firsts, float* seconds) {
      avx2::moments(x + begin, rows, at.width, at.width, shift.data(), firsts, seconds);
    });
    for (auto i = at.left(); i < at.end(); i += at.channels) {
      for (std::size_t c = 0; c < mean.size(); ++c) {
        double const d = x[i + static_cast<std::int64_t>(c)] - shift[c];
        sums.first[c] += d, sums.second[c] += d * d;
      }
    }
    auto const all = static_cast<double>(at.pixels);
    variance.reserve(mean.size());
    for (std::size_t c = 0; c < mean.size(); ++c) {
      auto const d = sums.first[c] / all;
      mean[c] = shift[c] + d;
      variance.push_back(std::max(sums.second[c] / all - d * d, 0.0));
    }
  }

  std::vector<double> mean, variance{};
};

/// y = x scale + shift, for each channel.
inline void scale(float const* x, Pixels const& at, Numbers const& scales, Numbers const& shifts,
                  float* y) {
  at.share([&](std::int64_t begin, std::int64_t n) {
    avx2::scale(x + begin, n, at.width, scales.data(), shifts.data(), y + begin);
  });
  for (auto i = at.left(); i < at.end(); ++i) {
    auto const c = static_cast<std::size_t>(i % at.channels);
    y[i] = std::fma(x[i], scales[c], shifts[c]);
  }
}

/// The sums of g and of g (x - mean), of each channel.
inline Sums gradient_sums(float const* g, float const* x, Pixels const& at, Numbers const& mean) {
  Sums sums(at);
  sums.add_blocks(at, [&](std::int64_t begin, std::int64_t n, float* firsts, float* seconds) {
    avx2::gradient_sums(g + begin, x + begin, n, at.width, mean.data(), firsts, seconds);
  });
  for (auto i = at.left(); i < at.end(); i += at.channels) {
    for (std::size_t c = 0; c < sums.first.size(); ++c) {
      auto const k = i + static_cast<std::int64_t>(c);
      sums.first[c] += g[k];
      sums.second[c] += static_cast<double>(g[k]) * (x[k] - mean[c]);
    }
  }
  return sums;
}

/// dx = (g - g_mean - (x - mean) slope) scale, for each channel.
inline void input_gradient(float const* g, float const* x, Pixels const& at, Numbers const& g_mean,
                           Numbers const& mean, Numbers const& slope, Numbers const& scales,
                           float* dx) {
  at.share([&](std::int64_t begin, std::int64_t n) {
    avx2::input_gradient(g + begin, x + begin, n, at.width, g_mean.data(), mean.data(),
                         slope.data(), scales.data(), dx + begin);
  });
  for (auto i = at.left(); i < at.end(); ++i) {
    auto const c = static_cast<std::size_t>(i % at.channels);
    dx[i] = std::fma(mean[c] - x[i], slope[c], g[i] - g_mean[c]) * scales[c];
  }
}
#endif

}  // namespace batch_norm
}  // namespace v0
}  // namespace pawl
