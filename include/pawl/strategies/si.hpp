#pragma once

#include "quadratic_anchor.hpp"

namespace pawl {
inline namespace v0 {

/// Synaptic intelligence: keeps the weights that made the loss fall on the way they took (Zenke,
/// Poole, Ganguli, ICML 2017).
///   during e:  omega_i += -g_i (th_i(after step) - th_i(before step)),  g of the supervised loss
///   end of e:  Omega_i += max(omega_i, 0) / ((th_i - th_start,i)^2 + xi)
///              omega = 0;   anchor = th
///   penalty  = c sum_i Omega_i (th_i - anchor_i)^2,   with strength s = 2 c
/// State: 5 P. Throws at the end of an experience whose Omega is not finite.
struct Si {
  enum class Gradient {
    task,  ///< of the supervised loss, as in the paper
    total  ///< as the optimizer got it, penalties included, as in several codes
  };

  double strength = 0.2;               ///< s = 2 c, >= 0; 0 is naive training
  double xi = 0.1;                     ///< > 0
  bool relu = true;                    ///< cut off negative path integrals
  Gradient gradient = Gradient::task;  ///< of the supervised loss, or of all
  double max_importance = 0;           ///< cap on Omega, >= 0; 0: none
  QuadraticAnchor anchor{};            ///< options and state of the pull

  static constexpr char const* name = "si";
  static constexpr char const* about = "synaptic intelligence (Zenke, Poole, Ganguli, ICML 2017)";
  static constexpr bool needs_task_gradient = true;
  static constexpr bool elementwise = true;

  void describe(Options& o) {
    o("strength", strength, at_least(0), "s, twice the paper's c; 0 is naive training");
    o("xi", xi, above(0), "keeps the importance of weights that hardly moved finite");
    o("relu", relu, "cut off negative path integrals, as the authors' code does");
    o("gradient", gradient, {"task", "total"},
      "of the supervised loss alone, or with all penalties, as several codes have it");
    o("max_importance", max_importance, at_least(0), "cap on the importance; 0: none");
    anchor.describe(o);
  }

  bool capturable() const { return true; }

  void begin(Context& c, Experience const&) {
    start = c.weights().clone();
    omega = torch::zeros_like(start);
  }

  void wake(Context& c) { anchor.wake(c, strength); }
  void edit_gradient(Context& c) {
    anchor.pull(c, strength);
    buffer_like(c.weights(), before).copy_(c.weights());
  }
  Tensor penalty_value(Context& c) { return anchor.value(c, strength); }

  void after_step(Context& c) {
    auto const& g = gradient == Gradient::task ? c.task_gradient : c.gradient();
    auto way = buffer_like(c.weights(), before).sub_(c.weights());
    c.here(omega).addcmul_(g, way);
  }

  void end(Context& c, Experience const&) {
    auto importance = (relu ? omega.clamp_min(0) : omega) / ((c.weights() - start).square() + xi);
    if (anchor.importance.defined()) importance += anchor.importance;
    if (max_importance > 0) importance.clamp_max_(max_importance);
    anchor.move(c, importance, name);
    omega.zero_();
  }

  void state(Archive& a) {
    a.part("anchor", anchor);
    a.flat("omega", omega);
    a.flat("start", start, Archive::Fill::weights);
    if (a.mode == Archive::Mode::count) a("before", before);  // made anew by every step
  }

  // State: written by the hooks.
  Tensor omega{};   ///< [P] path integral of the present experience
  Tensor start{};   ///< [P] weights at its beginning
  Tensor before{};  ///< weights before the present step; after it, what it took off them
};

}  // namespace v0
}  // namespace pawl
