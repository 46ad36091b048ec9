#pragma once

#include "../importance/fisher.hpp"
#include "quadratic_anchor.hpp"

namespace pawl {
inline namespace v0 {

/// Elastic weight consolidation: keeps the weights that earlier predictions depend on, measured by
/// the diagonal Fisher information F (Kirkpatrick et al., PNAS 2017; online form: Schwarz et al.,
/// ICML 2018).
///   separate:  penalty = (s/2) sum_{k<e} sum_i F^k_i (th_i - th^k_i)^2
///   online:    Fo <- decay Fo + F_e;   penalty = (s/2) sum_i Fo_i (th_i - th*_i)^2,   th* the
///   newest weights
/// A strength means something only together with the labels of the Fisher; here F is a mean over
/// samples and the penalty has its 1/2: a code without the 1/2 writes s/2, one that sums F over N
/// samples writes s/N. State: 2 P in either mode, for a sum of quadratics is a quadratic. Throws at
/// the end of an experience whose F is not finite.
struct Ewc {
  enum class Mode { online, separate };

  double strength = 400;       ///< s, >= 0; 0 is naive training
  Mode mode = Mode::online;    ///< one running Fisher, or a pull to every past experience
  double decay = 1;            ///< of the running Fisher, in [0, 1]
  bool decay_penalty = false;  ///< penalty with decay Fo, as Progress & Compress writes it
  FisherOptions fisher{};      ///< how F is estimated
  QuadraticAnchor anchor{};    ///< options and state of the pull

  static constexpr char const* name = "ewc";
  static constexpr char const* about =
      "elastic weight consolidation (Kirkpatrick et al., PNAS 2017; online: Schwarz et al., ICML "
      "2018)";
  static constexpr bool elementwise = true;
  static constexpr bool only_adds = true;

  void describe(Options& o) {
    o("strength", strength, at_least(0), "s, the pull to earlier weights; 0 is naive training");
    o("mode", mode, {"online", "separate"},
      "one running Fisher at the newest weights, or every experience's Fisher at its own weights");
    o("decay", decay, between(0, 1), "of the running Fisher when an experience ends (online)");
    o.only_if(mode == Mode::online, "mode = online");
    o("decay_penalty", decay_penalty,
      "apply the decay also when the penalty is evaluated, as Progress & Compress writes it");
    o.only_if(mode == Mode::online, "mode = online");
    fisher.describe(o);
    anchor.describe(o);
  }

  bool capturable() const { return true; }

  void wake(Context& c) { anchor.wake(c, pull()); }
  void edit_gradient(Context& c) { anchor.pull(c, pull()); }
  Tensor penalty_value(Context& c) { return anchor.value(c, pull()); }

  void end(Context& c, Experience const& experience) {
    auto const f = pawl::fisher(c, experience.train, fisher);
    if (mode == Mode::separate) return anchor.add(c, f, name);
    auto const& running = anchor.importance;
    anchor.move(c, running.defined() ? decay * running + f : f, name);
  }

  void state(Archive& a) { a.part("anchor", anchor); }

 private:
  double pull() const {
    return mode == Mode::online && decay_penalty ? strength * decay : strength;
  }
};

}  // namespace v0
}  // namespace pawl
