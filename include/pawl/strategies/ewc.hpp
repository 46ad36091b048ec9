#pragma once

#include <cstdint>

#include "../importance/fisher.hpp"
#include "quadratic_anchor.hpp"

namespace pawl {
inline namespace v0 {

/// Elastic weight consolidation: keep the weights that earlier predictions depend on, measured by
/// the diagonal Fisher F (Kirkpatrick et al., PNAS 2017; online form: Schwarz et al., ICML 2018).
///   separate:  (s/2) sum_{k<e} sum_i F^k_i (th_i - th^k_i)^2
///   online:    Fo <- decay Fo + F_e;   (s/2) sum_i Fo_i (th_i - th*_i)^2,  th* the newest weights
struct Ewc {
  enum class Mode { online, separate };

  double strength = 400;
  Mode mode = Mode::online;
  double decay = 1;
  bool decay_penalty = false;
  FisherOptions fisher_options = {};
  QuadraticAnchor anchor = {};

  static constexpr char const* name = "ewc";
  static constexpr char const* about =
      "elastic weight consolidation (Kirkpatrick et al., PNAS 2017; online: Schwarz et al., ICML "
      "2018)";

  void describe(Options& o) {
    o("strength", strength, at_least(0), "weight of the penalty, with 1/2 written; 0 is naive");
    o("mode", mode, {"online", "separate"},
      "one running Fisher and the newest anchor, or one of each per experience");
    o("decay", decay, between(0, 1), "of the running Fisher, when an experience is added (online)");
    o("decay_penalty", decay_penalty,
      "apply the decay also where the penalty is evaluated (Progress & Compress)");
    fisher_options.describe(o);
    anchor.describe(o);
  }

  void edit_gradient(Context& c) { anchor.edit_gradient(c, pull()); }
  Tensor penalty_value(Context& c) { return anchor.penalty_value(c, pull()); }

  void end(Context& c, Experience const& experience) {
    if (strength == 0) return;
    auto const f = fisher(c, experience.train, fisher_options);
    if (mode == Mode::separate) return anchor.add(c, f, name, strength);
    auto const running = anchor.importance;
    anchor.set(c, running.defined() ? running * decay + f : f, name, strength);
  }

  void state(Archive& a) { a.part("anchor", anchor); }

 private:
  double pull() const {
    return mode == Mode::online && decay_penalty ? strength * decay : strength;
  }
};

}  // namespace v0
}  // namespace pawl
