#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include "../core/error.hpp"
#include "statistics.hpp"
#include "student_t.hpp"

namespace pawl {
inline namespace v0 {

/// Outcome of a comparison a - b.
struct Comparison {
  double difference = 0;     ///< mean of a - mean of b
  double statistic = 0;      ///< t, or the sum of positive ranks
  double df = 0;             ///< degrees of freedom of t; for Wilcoxon the pairs that differ
  double p = 1;              ///< two-sided
  double low = 0, high = 0;  ///< interval of the difference; NaN for Wilcoxon
};

/// Comparison from a difference and its standard error. Without spread, t is infinite, or 0 for 0.
inline Comparison t_comparison(double difference, double error, double df, double level) {
  auto const t = error > 0 || std::isnan(error) ? difference / error
                 : difference == 0
                     ? 0
                     : std::copysign(std::numeric_limits<double>::infinity(), difference);
  auto const half = t_quantile((1 + level) / 2, df) * error;
  return {.difference = difference,
          .statistic = t,
          .df = df,
          .p = t_two_sided(t, df),
          .low = difference - half,
          .high = difference + half};
}

/// Differences a_i - b_i of runs with the same seeds.
inline std::vector<double> paired(std::vector<double> const& a, std::vector<double> const& b) {
  require(a.size() == b.size() && a.size() >= 2,
          {"paired comparison: ", a.size(), " and ", b.size(),
           " values; give both methods the same seeds, two at least"});
  std::vector<double> differences(a.size());
  for (std::size_t i = 0; i < a.size(); ++i) differences[i] = a[i] - b[i];
  return differences;
}

/// Paired t-test: the same seeds under two methods.
inline Comparison paired_t_test(std::vector<double> const& a, std::vector<double> const& b,
                                double level = .95) {
  auto const d = summarise(paired(a, b));
  return t_comparison(d.mean, d.standard_error, static_cast<double>(d.n - 1), level);
}

/// Welch's t-test: other seeds, unequal variances (Welch, Biometrika 1947).
inline Comparison welch_t_test(std::vector<double> const& a, std::vector<double> const& b,
                               double level = .95) {
  require(a.size() >= 2 && b.size() >= 2, {"welch: ", a.size(), " and ", b.size(),
                                           " values; give two runs of each method at least"});
  auto const square = [](double v) { return v * v; };
  auto const one = square(summarise(a).standard_error), two = square(summarise(b).standard_error);
  auto const n = static_cast<double>(a.size()), m = static_cast<double>(b.size());
  auto const df = one + two > 0
                      ? square(one + two) / (square(one) / (n - 1) + square(two) / (m - 1))
                      : n + m - 2;
  return t_comparison(mean(a) - mean(b), std::sqrt(one + two), df, level);
}

/// Positions of the values in ascending order; equal ones stay in the order given.
inline std::vector<std::size_t> ascending(std::vector<double> const& values) {
  auto const order = torch::tensor(values, torch::kFloat64).argsort(/*stable=*/true);
  auto const* first = order.data_ptr<std::int64_t>();
  return {first, first + order.numel()};
}

/// Wilcoxon's signed-rank test (Biometrics Bulletin 1945): paired, no normality; for n >= 6 (below,
/// no outcome can reach .05). Exact null distribution; zeros are dropped, ties share their average
/// rank.
inline Comparison wilcoxon(std::vector<double> const& a, std::vector<double> const& b) {
  auto const differences = paired(a, b);
  auto const centre = mean(differences);
  double scale = 0;
  for (std::size_t i = 0; i < differences.size(); ++i) {
    require(std::isfinite(differences[i]),
            {"wilcoxon: a value of pair ", i, " is not finite; drop that pair"});
    scale = std::max({scale, std::abs(a[i]), std::abs(b[i])});
  }
  auto const rounding = 1e-12 * scale;  // .9 - .8 and .8 - .7 are a tie
  std::vector<double> d, sizes;
  for (auto const v : differences) sizes.push_back(std::abs(v));
  for (auto const i : ascending(sizes)) {
    if (sizes[i] > rounding) d.push_back(differences[i]);
  }
  auto const n = d.size();
  std::vector<double> null(n * (n + 1) + 1,
                           0);  // probability of each doubled sum of positive ranks
  null[0] = 1;
  std::size_t positive = 0;
  for (std::size_t first = 0, last; first < n; first = last) {
    last = first + 1;
    while (last < n && std::abs(d[last]) - std::abs(d[first]) <= rounding) ++last;
    auto const doubled_rank = first + 1 + last;
    for (auto i = first; i < last; ++i) {
      if (d[i] > 0) positive += doubled_rank;
      for (auto s = null.size(); s-- > 0;) {
        null[s] = .5 * (null[s] + (s >= doubled_rank ? null[s - doubled_rank] : 0));
      }
    }
  }
  double below = 0, above = 0;
  for (std::size_t s = 0; s < null.size(); ++s) {
    if (s <= positive) below += null[s];
    if (s >= positive) above += null[s];
  }
  return {.difference = centre,
          .statistic = static_cast<double>(positive) / 2,
          .df = static_cast<double>(n),
          .p = std::min(1.0, 2 * std::min(below, above)),
          .low = std::numeric_limits<double>::quiet_NaN(),
          .high = std::numeric_limits<double>::quiet_NaN()};
}

/// Holm's adjusted p-values (Scandinavian Journal of Statistics 1979), in the order given:
/// comparing them with alpha keeps the chance of any false claim among all comparisons below alpha.
inline std::vector<double> holm(std::vector<double> const& p) {
  for (auto const value : p) {
    require(value >= 0 && value <= 1,
            {"holm: ", value, " is not a p-value; give numbers in [0, 1]"});
  }
  auto const order = ascending(p);
  std::vector<double> adjusted(p.size());
  double running = 0;
  for (std::size_t k = 0; k < order.size(); ++k) {
    running = std::max(running, std::min(1.0, static_cast<double>(p.size() - k) * p[order[k]]));
    adjusted[order[k]] = running;
  }
  return adjusted;
}

}  // namespace v0
}  // namespace pawl
