#pragma once

#include <cstdint>
#include <string>

#include "../core/context.hpp"

namespace pawl {
inline namespace v0 {

/// What EWC, SI and MAS share: a quadratic pull towards earlier weights.
///   penalty = (s/2) sum_i Omega_i (th_i - th*_i)^2;      gradient: s Omega_i (th_i - th*_i), added
///   in closed form
/// Several anchors add up: with A = sum Omega, B = sum Omega th* and C = sum Omega th*^2 the
/// penalty is (s/2) sum (A th^2 - 2 B th + C), so the state does not grow with the number of
/// experiences.
struct QuadraticAnchor {
  bool clip_step = false;
  bool include_norm = true;
  bool include_head = true;

  void describe(Options& o) {
    o("clip_step", clip_step,
      "cap importances at 1 / (lr strength), beyond which a step overshoots the anchor");
    o("include_norm", include_norm, "anchor the scale and shift of normalisation layers");
    o("include_head", include_head, "anchor the last layer");
  }

  bool active(double strength) const { return strength > 0 && importance.defined(); }

  void edit_gradient(Context& c, double strength) const {
    if (!active(strength)) return;
    auto const& g = c.gradient();
    if (!separate.defined()) {
      g.addcmul_(capped(c, strength), c.weights() - anchor, strength);
    } else {
      g.addcmul_(importance, c.weights(), strength).sub_(separate, strength);
    }
  }

  Tensor penalty_value(Context& c, double strength) const {
    if (!active(strength)) return {};
    auto const& th = c.weights();
    if (!separate.defined()) {
      return (capped(c, strength) * (th - anchor).square()).sum() * (strength / 2);
    }
    return (importance * th.square() - 2 * separate * th + squares).sum() * (strength / 2);
  }

  /// One anchor: the newest weights, with this importance [P] for all of the past.
  void set(Context& c, Tensor const& omega, std::string const& owner, double strength) {
    importance = checked(c, omega, owner, strength);
    anchor = c.weights().clone();
  }

  /// One more anchor beside the earlier ones.
  void add(Context& c, Tensor const& omega, std::string const& owner, double strength) {
    auto const f = checked(c, omega, owner, strength);
    auto const& th = c.weights();
    if (!separate.defined()) {
      importance = torch::zeros_like(f);
      separate = torch::zeros_like(f);
      squares = torch::zeros_like(f);
    }
    importance = importance + f;
    separate = separate + f * th;
    squares = squares + f * th.square();
  }

  void state(Archive& a) {
    a.flat("importance", importance);
    a.flat("anchor", anchor, Archive::Fill::weights);
    a.flat("separate", separate);
    a.flat("squares", squares);
  }

  // State: written by `set` and `add`.
  Tensor importance;  ///< [P] Omega, or its sum over anchors
  Tensor anchor;      ///< [P] th*, with one anchor
  Tensor separate;    ///< [P] sum of Omega th*, with several
  Tensor squares;     ///< [P] sum of Omega th*^2, with several

 private:
  Tensor capped(Context const& c, double strength) const {
    return clip_step ? importance.clamp_max(1 / (c.learning_rate * strength)) : importance;
  }

  /// Importance 0 where a parameter is not to be anchored; an error where it is not finite.
  Tensor checked(Context& c, Tensor const& omega, std::string const& owner, double strength) const {
    require(omega.isfinite().all().item<bool>(), owner, ": an importance after experience ",
            c.index, " is not finite; the model diverged or its loss has infinite slope");
    auto result = omega.clone();
    for (auto const& module : c.model.module->named_modules("", false)) {
      auto const kind = module.value()->name();
      auto const norm = kind.find("Norm") != std::string::npos;
      if ((norm && !include_norm) || (!include_head && is_head(c, *module.value()))) {
        silence(c, module.key() + ".", result);
      }
    }
    auto const steepest = c.learning_rate * strength * result.max().item<double>();
    if (steepest >= 1 && !clip_step) {
      TORCH_WARN_ONCE("pawl: ", owner, ": lr * strength * largest importance is ", steepest,
                      " after experience ", c.index,
                      "; at 2 the pull towards the anchor diverges: lower one, or set clip_step");
    }
    return result;
  }

  /// A `Head`, or, in a module without one, its last linear layer.
  static bool is_head(Context const& c, nn::Module const& module) {
    if (!c.model.heads.empty()) return dynamic_cast<Head const*>(&module) != nullptr;
    nn::Module const* last = nullptr;
    for (auto const& part : c.model.module->modules(false)) {
      if (part->as<nn::Linear>() != nullptr) last = part.get();
    }
    return last == &module;
  }

  static void silence(Context const& c, std::string const& prefix, Tensor& importance) {
    for (auto const& span : c.arena.layout()) {
      if (span.name.compare(0, prefix.size(), prefix) == 0) {
        importance.narrow(0, span.offset, span.size).zero_();
      }
    }
  }
};

}  // namespace v0
}  // namespace pawl
