#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "../core/error.hpp"
#include "student_t.hpp"

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
  require(n >= 2, {"a spread over ", n, " runs says nothing; give n >= 2"});
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
  require(n >= 1 && N >= 2, {"half width: n = ", n, " new and N = ", N,
                             " published runs; it needs n >= 1 and N >= 2"});
  return t_quantile((1 + level) / 2, static_cast<double>(N - 1)) * s *
             std::sqrt(1 / static_cast<double>(n) + 1 / static_cast<double>(N)) +
         tolerance;
}

}  // namespace v0
}  // namespace pawl
