#pragma once

#include <cstdint>

#include "../importance/sensitivity.hpp"
#include "quadratic_anchor.hpp"

namespace pawl {
inline namespace v0 {

/// Memory aware synapses: keeps the weights that the output norm is sensitive to; needs no labels
/// (Aljundi et al., ECCV 2018).
///   Omega_e = 1/N sum_n |d ||z(x_n)||^2 / dth|;   Omega <- Omega + Omega_e
///   penalty = (s/2) sum_i Omega_i (th_i - th*_i)^2
/// State: 2 P. Throws at the end of an experience whose Omega is not finite.
struct Mas {
  enum class Accumulate {
    sum,   ///< Omega + Omega_e
    mean,  ///< over experiences
    ema    ///< decay Omega + (1 - decay) Omega_e, from the first experience's on
  };

  double strength = 2;                      ///< s, >= 0; 0 is naive training
  Accumulate accumulate = Accumulate::sum;  ///< how importances of experiences add up
  double decay = 0.5;                       ///< of accumulate = ema, in [0, 1]
  SensitivityOptions sensitivity{};         ///< how Omega_e is estimated
  QuadraticAnchor anchor{};                 ///< options and state of the pull

  static constexpr char const* name = "mas";
  static constexpr char const* about = "memory aware synapses (Aljundi et al., ECCV 2018)";
  static constexpr bool elementwise = true;
  static constexpr bool only_adds = true;

  void describe(Options& o) {
    o("strength", strength, at_least(0), "s, twice the paper's lambda; 0 is naive training");
    o("accumulate", accumulate, {"sum", "mean", "ema"}, "how importances of experiences add up");
    o("decay", decay, between(0, 1), "share of the old importance, of accumulate = ema");
    o.only_if(accumulate == Accumulate::ema, "accumulate = ema");
    sensitivity.describe(o);
    anchor.describe(o);
  }

  bool capturable() const { return true; }

  void wake(Context& c) { anchor.wake(c, strength); }
  void edit_gradient(Context& c) { anchor.pull(c, strength); }
  Tensor penalty_value(Context& c) { return anchor.value(c, strength); }

  void end(Context& c, Experience const& experience) {
    auto omega = pawl::sensitivity(c, experience.train, sensitivity);
    if (anchor.importance.defined()) omega = accumulated(anchor.importance, omega);
    ++experiences;
    anchor.move(c, omega, name);
  }

  void state(Archive& a) {
    a.part("anchor", anchor);
    a("experiences", experiences);
  }

  // State: written by the hooks.
  std::int64_t experiences = 0;  ///< that have ended

 private:
  Tensor accumulated(Tensor const& old, Tensor const& omega) const {
    auto const e = static_cast<double>(experiences);
    switch (accumulate) {
      case Accumulate::mean:
        return (e * old + omega) / (e + 1);
      case Accumulate::ema:
        return decay * old + (1 - decay) * omega;
      default:
        return old + omega;
    }
  }
};

}  // namespace v0
}  // namespace pawl
