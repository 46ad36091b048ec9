#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "../core/error.hpp"

namespace pawl {
inline namespace v0 {

/// Accuracies during training, one evaluation every s steps: what happens between the rows of an
/// `AccuracyMatrix` (De Lange, van de Ven, Tuytelaars, ICLR 2023; Caccia et al., ICLR 2022).
/// State s beside every number: a dip shorter than s steps is not seen.
struct AnytimeCurves {
  std::vector<std::vector<double>> accuracy;  ///< [task][evaluation] in [0, 1]; NaN: not evaluated
  std::vector<std::int64_t> experience;       ///< [evaluation] being learned then; never decreases

  std::int64_t evaluations() const { return static_cast<std::int64_t>(experience.size()); }
  double at(std::int64_t task, std::int64_t n) const {
    return accuracy[static_cast<std::size_t>(task)][static_cast<std::size_t>(n)];
  }
  std::int64_t current(std::int64_t n) const { return experience[static_cast<std::size_t>(n)]; }

  /// Throws unless the curves are of equal length and there is one for every experience.
  void check() const {
    require(!experience.empty(), "anytime curves: there is no evaluation; give at least one");
    require(std::is_sorted(experience.begin(), experience.end()) && experience.front() >= 0 &&
                experience.back() < static_cast<std::int64_t>(accuracy.size()),
            {"anytime curves: experiences must not decrease and stay in [0, ", accuracy.size(),
             "), the number of curves"});
    for (auto const& curve : accuracy) {
      require(curve.size() == experience.size(),
              {"anytime curves: a curve has ", curve.size(), " points for ", experience.size(),
               " evaluations; use NaN for those left out"});
    }
  }
};

/// Average anytime accuracy: (1/#evaluations) sum_n mean_{j seen} a(j, n). A task counts as seen
/// from the first evaluation in its experience.
inline double aaa(AnytimeCurves const& curves) {
  curves.check();
  double sum = 0;
  for (std::int64_t n = 0; n < curves.evaluations(); ++n) {
    double seen = 0;
    for (std::int64_t j = 0; j <= curves.current(n); ++j) seen += curves.at(j, n);
    sum += seen / static_cast<double>(curves.current(n) + 1);
  }
  return sum / static_cast<double>(curves.evaluations());
}

/// Worst accuracy after each finished experience, up to the last evaluation:
/// (1/k) sum_{j<k} min_{n_j < n <= now} a(j, n), k the current experience. NaN when k = 0.
inline double min_acc(AnytimeCurves const& curves) {
  curves.check();
  auto const k = curves.experience.back();
  double sum = 0;
  for (std::int64_t j = 0; j < k; ++j) {
    auto low = std::numeric_limits<double>::quiet_NaN();
    for (std::int64_t n = 0; n < curves.evaluations(); ++n) {
      if (curves.current(n) > j) low = std::fmin(low, curves.at(j, n));  // fmin passes NaN over
    }
    sum += low;
  }
  return sum / static_cast<double>(k);  // 0/0 = NaN
}

/// Worst-case accuracy: (1/(k+1)) a(k, now) + (k/(k+1)) min_acc. NaN when k = 0.
inline double wc_acc(AnytimeCurves const& curves) {
  auto const low = min_acc(curves);
  auto const k = static_cast<double>(curves.experience.back());
  auto const now = curves.at(curves.experience.back(), curves.evaluations() - 1);
  return now / (k + 1) + k / (k + 1) * low;
}

/// Largest change inside a window of d consecutive evaluations (distance at most d-1), mean over
/// all tasks and over the whole curve: sign +1 measures drops (earlier - later), -1 rises.
inline double worst_change(AnytimeCurves const& curves, std::int64_t d, double sign) {
  curves.check();
  require(d >= 1, {"anytime window is ", d, " evaluations but must be >= 1"});
  double sum = 0;
  for (std::size_t j = 0; j < curves.accuracy.size(); ++j) {
    auto worst = std::numeric_limits<double>::quiet_NaN();
    auto const& curve = curves.accuracy[j];
    for (std::size_t n = 0; n < curve.size(); ++n) {
      auto const first = n - std::min(n, static_cast<std::size_t>(d - 1));
      for (auto m = first; m <= n; ++m) worst = std::fmax(worst, sign * (curve[m] - curve[n]));
    }
    sum += worst;
  }
  return sum / static_cast<double>(curves.accuracy.size());
}

/// WF^d, windowed forgetting: the worst drop inside d evaluations, mean over tasks.
inline double wf(AnytimeCurves const& curves, std::int64_t d) { return worst_change(curves, d, 1); }

/// WP^d, windowed plasticity: the largest rise inside d evaluations, mean over tasks.
inline double wp(AnytimeCurves const& curves, std::int64_t d) {
  return worst_change(curves, d, -1);
}

/// Stability gap of experience j: the depth of the dip in the first w evaluations after its end,
/// a(j, n_j) - min_{n_j < n <= n_j + w} a(j, n); n_j is the last evaluation before a later
/// experience. NaN when j has no evaluation of its own or none follows.
inline double gap(AnytimeCurves const& curves, std::int64_t j, std::int64_t w) {
  curves.check();
  require(j >= 0 && j < static_cast<std::int64_t>(curves.accuracy.size()),
          {"gap: experience ", j, " is not among the ", curves.accuracy.size(), " curves"});
  auto low = std::numeric_limits<double>::quiet_NaN();
  auto end = low;
  std::int64_t after = 0;
  for (std::int64_t n = 0; n < curves.evaluations(); ++n) {
    if (curves.current(n) == j) end = curves.at(j, n);
    if (curves.current(n) > j && after++ < w) low = std::fmin(low, curves.at(j, n));
  }
  return end - low;
}

/// Learning-curve area (Chaudhry et al., ICLR 2019): (1/(b+1)) sum_{i=0..b} Z_i, Z_i the mean over
/// tasks of the accuracy after i batches of that task. `curves` [task][i], at least b+1 points
/// each.
inline double lca(std::vector<std::vector<double>> const& curves, std::int64_t b = 10) {
  require(b >= 0 && !curves.empty(), "lca: give b >= 0 and at least one curve");
  double sum = 0;
  for (auto const& curve : curves) {
    require(static_cast<std::int64_t>(curve.size()) > b,
            {"lca: a curve has ", curve.size(), " points but b = ", b, " needs ", b + 1,
             ", from before the first batch on"});
    for (std::int64_t i = 0; i <= b; ++i) sum += curve[static_cast<std::size_t>(i)];
  }
  return sum / static_cast<double>(b + 1) / static_cast<double>(curves.size());
}

}  // namespace v0
}  // namespace pawl
