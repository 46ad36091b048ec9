#pragma once

#include "quadratic_anchor.hpp"

namespace pawl {
inline namespace v0 {

/// Synaptic intelligence: importance from how much each weight contributed to the fall of the loss
/// along the path (Zenke, Poole, Ganguli, ICML 2017).
///   during e:  omega_i += -g_i (th_i(after step) - th_i(before step)),   g of the supervised loss
///   alone end of e:  Omega_i += max(omega_i, 0) / ((th_i - th_start,i)^2 + xi);   omega = 0;
///   anchor = th penalty    c sum Omega (th - anchor)^2 = (s/2) sum ...,  s = 2 c
struct Si {
  enum class Gradient { task, total };

  double strength = 0.2;
  double xi = 0.1;
  bool relu = true;
  Gradient gradient = Gradient::task;
  double max_importance = 0;
  QuadraticAnchor anchor = {};

  static constexpr char const* name = "si";
  static constexpr char const* about = "synaptic intelligence (Zenke, Poole, Ganguli, ICML 2017)";
  static constexpr bool needs_task_gradient = true;

  void describe(Options& o) {
    o("strength", strength, at_least(0), "weight of the penalty, twice the paper's c; 0 is naive");
    o("xi", xi, above(0), "added to the squared distance travelled");
    o("relu", relu, "cut negative contributions off at the end of an experience");
    o("gradient", gradient, {"task", "total"},
      "of the supervised loss alone, or with all penalties (one library's reading)");
    o("max_importance", max_importance, at_least(0), "cap of each importance; 0: none");
    anchor.describe(o);
  }

  void begin(Context& c, Experience const&) {
    start = c.weights().clone();
    path = torch::zeros_like(start);
  }

  void edit_gradient(Context& c) {
    if (strength == 0) return;
    anchor.edit_gradient(c, strength);
    if (!before.defined() || before.sizes() != c.weights().sizes())
      before = torch::empty_like(c.weights());
    before.copy_(c.weights());
  }
  Tensor penalty_value(Context& c) { return anchor.penalty_value(c, strength); }

  void after_step(Context& c) {
    if (strength == 0) return;
    auto const& g = gradient == Gradient::task ? c.task_gradient : c.gradient();
    path.addcmul_(g, c.weights() - before, -1);
  }

  void end(Context& c, Experience const&) {
    if (strength == 0) return;
    auto const gain = relu ? path.clamp_min(0) : path;
    auto omega = gain / ((c.weights() - start).square() + xi);
    if (anchor.importance.defined()) omega += anchor.importance;
    if (max_importance > 0) omega.clamp_max_(max_importance);
    anchor.set(c, omega, name, strength);
    path.zero_();
  }

  void state(Archive& a) {
    a.part("anchor", anchor);
    a.flat("path", path);
    a.flat("start", start, Archive::Fill::weights);
  }

  // State: written by the hooks.
  Tensor path;    ///< [P] omega
  Tensor start;   ///< [P] weights at the start of the experience
  Tensor before;  ///< [P] weights before the present step
};

}  // namespace v0
}  // namespace pawl
