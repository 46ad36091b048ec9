#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "../core/error.hpp"

namespace pawl {
inline namespace v0 {

/// Arithmetic mean; NaN of nothing.
inline double mean(std::vector<double> const& values) {
  double sum = 0;
  for (auto const v : values) sum += v;
  return sum / static_cast<double>(values.size());
}

/// Sample standard deviation, denominator n-1; NaN (undefined) for fewer than two values.
inline double deviation(std::vector<double> const& values) {
  if (values.size() < 2) return std::numeric_limits<double>::quiet_NaN();
  auto const centre = mean(values);
  double sum = 0;
  for (auto const v : values) sum += (v - centre) * (v - centre);
  return std::sqrt(sum / static_cast<double>(values.size() - 1));
}

/// Regularised incomplete beta function I_x(a, b), by its continued fraction (Lentz's method).
inline double incomplete_beta(double a, double b, double x) {
  if (x <= 0) return 0;
  if (x >= 1) return 1;
  if (x > (a + 1) / (a + b + 2)) return 1 - incomplete_beta(b, a, 1 - x);  // converges faster there
  auto const guard = [](double v) { return std::abs(v) < 1e-300 ? 1e-300 : v; };
  double c = 1, d = 1 / guard(1 - (a + b) * x / (a + 1)), value = d;
  for (int m = 1; m < 1000; ++m) {
    auto const even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m));
    d = 1 / guard(1 + even * d);
    c = guard(1 + even / c);
    value *= c * d;
    auto const odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1));
    d = 1 / guard(1 + odd * d);
    c = guard(1 + odd / c);
    value *= c * d;
    if (std::abs(c * d - 1) < 1e-16) break;
  }
  auto const log_front =
      std::lgamma(a + b) - std::lgamma(a) - std::lgamma(b) + a * std::log(x) + b * std::log1p(-x);
  return std::exp(log_front) * value / a;
}

/// P(|T| >= |t|) for Student's t with df > 0 degrees of freedom (any real number).
inline double t_two_sided(double t, double df) {
  return std::isnan(t) ? t : incomplete_beta(df / 2, .5, df / (df + t * t));
}

/// The t with P(T <= t) = p, 0 < p < 1.
inline double t_quantile(double p, double df) {
  require(p > 0 && p < 1 && df > 0, "t quantile: p = ", p, " and df = ", df,
          " are not in (0, 1) and above 0");
  if (p < .5) return -t_quantile(1 - p, df);
  double low = 0, high = 1;
  auto const tail = 2 * (1 - p);
  while (t_two_sided(high, df) > tail) high *= 2;
  for (int i = 0; i < 200 && low < high; ++i) {
    auto const middle = low + (high - low) / 2;
    if (middle == low || middle == high) break;
    (t_two_sided(middle, df) > tail ? low : high) = middle;
  }
  return high;
}

/// Numbers over seeds. Report mean, sample deviation, n and the interval mean +- half_width.
struct Summary {
  std::int64_t n = 0;
  double mean = 0;
  double deviation = 0;       ///< sample standard deviation (n-1); NaN when n < 2
  double standard_error = 0;  ///< deviation / sqrt(n); NaN when n < 2
  double half_width = 0;  ///< of the interval, t_{.975, n-1} deviation / sqrt(n); NaN when n < 2
};

/// Summarises one number per seed; `level` is the coverage of the interval.
inline Summary summarise(std::vector<double> const& values, double level = .95) {
  Summary s{.n = static_cast<std::int64_t>(values.size()),
            .mean = mean(values),
            .deviation = deviation(values),
            .standard_error = std::numeric_limits<double>::quiet_NaN(),
            .half_width = std::numeric_limits<double>::quiet_NaN()};
  if (s.n < 2) return s;
  s.standard_error = s.deviation / std::sqrt(static_cast<double>(s.n));
  s.half_width = t_quantile((1 + level) / 2, static_cast<double>(s.n - 1)) * s.standard_error;
  return s;
}

/// What a printed "+-" means.
enum class Spread {
  sample,         ///< standard deviation, denominator n-1
  population,     ///< standard deviation, denominator n (numpy's default)
  standard_error  ///< standard error of the mean
};

/// The sample standard deviation behind a printed spread over n runs, n >= 2.
inline double sample_deviation(double spread, Spread kind, std::int64_t n) {
  require(n >= 2, "a spread over ", n, " runs says nothing; give n >= 2");
  auto const runs = static_cast<double>(n);
  if (kind == Spread::population) return spread * std::sqrt(runs / (runs - 1));
  if (kind == Spread::standard_error) return spread * std::sqrt(runs);
  return spread;
}

/// Level at which a published mean over N runs is compared: .99 when N >= 10, else .95.
inline double agreement_level(std::int64_t N) { return N >= 10 ? .99 : .95; }

/// Does the mean of n new runs agree with a published (m, s, N)? It does when it lies within this
/// distance of m: t(level, N-1) s sqrt(1/n + 1/N) + tolerance, the half width of a prediction
/// interval. s is the sample deviation (see `sample_deviation`), the tolerance covers differences
/// of protocol.
inline double half_width(double level, double s, std::int64_t n, std::int64_t N, double tolerance) {
  require(n >= 1 && N >= 2, "half width: n = ", n, " new and N = ", N,
          " published runs; it needs n >= 1 and N >= 2");
  return t_quantile((1 + level) / 2, static_cast<double>(N - 1)) * s *
             std::sqrt(1 / static_cast<double>(n) + 1 / static_cast<double>(N)) +
         tolerance;
}

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
  require(a.size() == b.size() && a.size() >= 2, "paired comparison: ", a.size(), " and ", b.size(),
          " values; give both methods the same seeds, two at least");
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
  require(a.size() >= 2 && b.size() >= 2, "welch: ", a.size(), " and ", b.size(),
          " values; give two runs of each method at least");
  auto const square = [](double v) { return v * v; };
  auto const one = square(summarise(a).standard_error), two = square(summarise(b).standard_error);
  auto const n = static_cast<double>(a.size()), m = static_cast<double>(b.size());
  auto const df = one + two > 0
                      ? square(one + two) / (square(one) / (n - 1) + square(two) / (m - 1))
                      : n + m - 2;
  return t_comparison(mean(a) - mean(b), std::sqrt(one + two), df, level);
}

/// Wilcoxon's signed-rank test (Biometrics Bulletin 1945): paired, no normality; for n >= 6 (below,
/// no outcome can reach .05). Exact null distribution; zeros are dropped, ties share their average
/// rank.
inline Comparison wilcoxon(std::vector<double> const& a, std::vector<double> const& b) {
  auto d = paired(a, b);
  auto const centre = mean(d);
  double scale = 0;
  for (std::size_t i = 0; i < d.size(); ++i) {
    require(std::isfinite(d[i]), "wilcoxon: a value of pair ", i, " is not finite; drop that pair");
    scale = std::max({scale, std::abs(a[i]), std::abs(b[i])});
  }
  auto const rounding = 1e-12 * scale;  // .9 - .8 and .8 - .7 are a tie
  std::erase_if(d, [rounding](double v) { return std::abs(v) <= rounding; });
  std::sort(d.begin(), d.end(), [](double x, double y) { return std::abs(x) < std::abs(y); });
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
    require(value >= 0 && value <= 1, "holm: ", value, " is not a p-value; give numbers in [0, 1]");
  }
  std::vector<std::size_t> order(p.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&p](auto i, auto j) { return p[i] < p[j]; });
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
