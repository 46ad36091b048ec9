#pragma once

#include <cmath>

#include "../core/error.hpp"

namespace pawl {
inline namespace v0 {

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
  require(p > 0 && p < 1 && df > 0,
          {"t quantile: p = ", p, " and df = ", df, " are not in (0, 1) and above 0"});
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

}  // namespace v0
}  // namespace pawl
