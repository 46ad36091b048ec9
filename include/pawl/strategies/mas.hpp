#pragma once

#include <cstdint>

#include "../importance/sensitivity.hpp"
#include "quadratic_anchor.hpp"

namespace pawl {
inline namespace v0 {

/// Memory aware synapses: label-free importance from the sensitivity of the output norm (Aljundi et
/// al., ECCV 2018).
///   Omega <- Omega + Omega_e   (or their running mean, or an exponential mean);   penalty (s/2)
///   sum Omega (th - th*)^2
struct Mas {
  enum class Accumulate { sum, mean, ema };

  double strength = 2;
  Accumulate accumulate = Accumulate::sum;
  double keep = 0.5;
  SensitivityOptions sensitivity_options = {};
  QuadraticAnchor anchor = {};

  static constexpr char const* name = "mas";
  static constexpr char const* about = "memory aware synapses (Aljundi et al., ECCV 2018)";

  void describe(Options& o) {
    o("strength", strength, at_least(0),
      "weight of the penalty, with 1/2 written (twice the paper's lambda); 0 is naive");
    o("accumulate", accumulate, {"sum", "mean", "ema"}, "how importances of experiences add up");
    o("keep", keep, between(0, 1), "of accumulate = ema: share of the old importance");
    sensitivity_options.describe(o);
    anchor.describe(o);
  }

  void edit_gradient(Context& c) { anchor.edit_gradient(c, strength); }
  Tensor penalty_value(Context& c) { return anchor.penalty_value(c, strength); }

  void end(Context& c, Experience const& experience) {
    if (strength == 0) return;
    auto omega = sensitivity(c, experience.train, sensitivity_options);
    if (auto const old = anchor.importance; old.defined()) {
      auto const e = static_cast<double>(experiences);
      omega = accumulate == Accumulate::sum    ? old + omega
              : accumulate == Accumulate::mean ? (old * e + omega) / (e + 1)
                                               : old * keep + omega * (1 - keep);
    }
    ++experiences;
    anchor.set(c, omega, name, strength);
  }

  void state(Archive& a) {
    a.part("anchor", anchor);
    a("experiences", experiences);
  }

  // State: written by the hooks.
  std::int64_t experiences = 0;  ///< finished
};

}  // namespace v0
}  // namespace pawl
