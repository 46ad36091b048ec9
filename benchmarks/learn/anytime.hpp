#pragma once

// Accuracy during training: an observer that evaluates every few steps, and what its curves say.

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <pawl/core/context.hpp>
#include <pawl/metrics/anytime.hpp>

namespace bench {

/// Metrics of `--evaluate_every`, in the order of records.
inline constexpr char const* anytime_names[] = {
    "anytime_aaa",   "anytime_min_acc", "anytime_wc_acc", "anytime_wf_10", "anytime_wf_100",
    "anytime_wp_10", "anytime_wp_100",  "anytime_gap_10", "anytime_lca_10"};

/// Accuracies on all test sets after a step; steps are counted from the start of the run.
struct CurvePoint {
  std::int64_t step = 0;
  std::vector<double> accuracy = {};
};

/// Evaluates after every n-th step that a learner takes.
class AnytimeObserver {
 public:
  /// `evaluate` gives the accuracies on all `tasks` test sets, and leaves training alone.
  AnytimeObserver(std::function<std::vector<double>()> evaluate, std::int64_t tasks,
                  std::int64_t every);

  void step(pawl::Context const& c);
  /// The experience of number `experience` is over, and was evaluated then.
  void end(std::int64_t experience, std::vector<double> const& accuracy);

  /// The points since this was last asked for.
  std::vector<CurvePoint> take_points() { return std::exchange(points_, {}); }
  /// The seconds of evaluation since this was last asked for.
  double take_seconds() { return std::exchange(seconds_, 0); }

  /// Under `anytime_names`; nullopt where undefined. `untrained` is the accuracy before the
  /// first step; empty: not known.
  std::vector<std::pair<std::string, std::optional<double>>> metrics(
      std::vector<double> const& untrained) const;

 private:
  void add(std::vector<double> const& accuracy);
  double learning_curve_area(std::vector<double> const& untrained) const;

  std::int64_t tasks() const { return static_cast<std::int64_t>(curves_.accuracy.size()); }

  std::function<std::vector<double>()> evaluate_;
  std::int64_t every_;
  std::int64_t experience_ = 0;  // that is being learned
  std::int64_t steps_ = 0, evaluated_ = 0;
  double seconds_ = 0;
  std::vector<CurvePoint> points_;
  pawl::AnytimeCurves curves_;
};

}  // namespace bench
