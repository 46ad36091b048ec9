#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <numbers>
#include <string_view>
#include <utility>
#include <vector>

#include "../torch.hpp"

namespace pawl {
inline namespace v0 {

/// A counter-based generator: draw number n is a hash of (key, n), so the sequence depends on the
/// key alone, not on thread, device or platform. The hash is the finaliser of SplitMix64 (Steele,
/// Lea, Flood, OOPSLA 2014) over a Weyl sequence.
class Generator {
 public:
  Generator() = default;
  explicit Generator(std::uint64_t key, std::uint64_t counter = 0) : key_(key), counter_(counter) {}

  /// 64 uniform bits.
  std::uint64_t bits() { return mix(key_ + 0x9e3779b97f4a7c15ULL * ++counter_); }

  /// Uniform integer in [0, n), without bias (rejection); n >= 1.
  std::int64_t below(std::int64_t n) {
    auto const range = static_cast<std::uint64_t>(n);
    auto const limit = std::numeric_limits<std::uint64_t>::max() -
                       (std::numeric_limits<std::uint64_t>::max() % range + 1) % range;
    auto word = bits();
    while (word > limit) word = bits();
    return static_cast<std::int64_t>(word % range);
  }

  /// Uniform double in [0, 1) with 53 bits.
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1.0p-53; }
  double uniform(double low, double high) { return low + (high - low) * uniform(); }

  /// Standard normal deviate (Box and Muller, 1958; one of the pair is dropped).
  double normal() {
    auto const radius = std::sqrt(-2 * std::log(1 - uniform()));
    return radius * std::cos(2 * std::numbers::pi * uniform());
  }

  /// 0 .. n-1 in uniformly random order (Fisher and Yates).
  std::vector<std::int64_t> permutation(std::int64_t n) {
    std::vector<std::int64_t> order(static_cast<std::size_t>(n));
    for (std::int64_t i = 0; i < n; ++i) order[static_cast<std::size_t>(i)] = i;
    for (auto i = n - 1; i > 0; --i) {
      std::swap(order[static_cast<std::size_t>(i)], order[static_cast<std::size_t>(below(i + 1))]);
    }
    return order;
  }

  /// k different integers of [0, n), in random order, k <= n (Floyd's method with a final shuffle
  /// would cost as much: this is a partial Fisher-Yates over a sparse array).
  std::vector<std::int64_t> sample(std::int64_t k, std::int64_t n);

  /// An independent generator for item n of this one's sub-stream, whatever was drawn before.
  Generator fork(std::int64_t n) const {
    return Generator(mix(key_ ^ mix(static_cast<std::uint64_t>(n) + 0x632be59bd9b4e019ULL)));
  }

  std::uint64_t key() const { return key_; }
  std::uint64_t counter() const { return counter_; }

  static std::uint64_t mix(std::uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
  }

 private:
  std::uint64_t key_ = 0;
  std::uint64_t counter_ = 0;
};

inline std::vector<std::int64_t> Generator::sample(std::int64_t k, std::int64_t n) {
  if (n <= 4 * k) {
    auto order = permutation(n);
    order.resize(static_cast<std::size_t>(k));
    return order;
  }
  std::vector<std::int64_t> chosen;  // few of many: draw again on a repeat
  while (static_cast<std::int64_t>(chosen.size()) < k) {
    auto const candidate = below(n);
    bool repeated = false;
    for (auto const c : chosen) repeated = repeated || c == candidate;
    if (!repeated) chosen.push_back(candidate);
  }
  return chosen;
}

/// One seed feeds independent, named sub-streams: `init`, `stream`, `order`, `memory`, `draw`,
/// `model`, `aux`. A sub-stream depends on (seed, name, a, b) alone, so adding a strategy never
/// changes the draws of another.
struct Seed {
  std::uint64_t value = 0;

  Generator generator(std::string_view name, std::int64_t a = 0, std::int64_t b = 0) const {
    auto key = Generator::mix(value + 0x9e3779b97f4a7c15ULL);
    for (auto const c : name) key = Generator::mix(key ^ static_cast<unsigned char>(c)) + 1;
    key = Generator::mix(key ^ static_cast<std::uint64_t>(a)) + 2;
    return Generator(Generator::mix(key ^ static_cast<std::uint64_t>(b)));
  }
};

/// Fills a floating tensor with uniform draws of [low, high), row by row, the same on every
/// platform.
inline void fill_uniform(Tensor const& tensor, double low, double high, Generator generator) {
  std::vector<double> values(static_cast<std::size_t>(tensor.numel()));
  for (auto& value : values) value = generator.uniform(low, high);
  torch::NoGradGuard no_grad;
  tensor.copy_(torch::tensor(values, torch::kFloat64).view(tensor.sizes()));
}

/// Fills a floating tensor with normal draws, cut at two standard deviations when `truncated`.
inline void fill_normal(Tensor const& tensor, double mean, double deviation, Generator generator,
                        bool truncated = false) {
  std::vector<double> values(static_cast<std::size_t>(tensor.numel()));
  for (auto& value : values) {
    auto draw = generator.normal();
    while (truncated && std::abs(draw) > 2) draw = generator.normal();
    value = mean + deviation * draw;
  }
  torch::NoGradGuard no_grad;
  tensor.copy_(torch::tensor(values, torch::kFloat64).view(tensor.sizes()));
}

}  // namespace v0
}  // namespace pawl
