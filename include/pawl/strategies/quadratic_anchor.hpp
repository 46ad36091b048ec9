#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "../core/context.hpp"

namespace pawl {
inline namespace v0 {

/// Sets a flat tensor [P] to 0 where parameters of the modules that `chosen(module)` picks lie.
template <class F>
void zero_modules(Context const& c, Tensor const& flat, F&& chosen) {
  for (auto const& item : c.model.module->named_modules()) {
    if (!chosen(*item.value())) continue;
    auto const prefix = item.key().empty() ? "" : item.key() + ".";
    for (auto const& span : c.arena.layout()) {
      if (span.name.compare(0, prefix.size(), prefix) == 0) {
        flat.narrow(0, span.offset, span.size).zero_();
      }
    }
  }
}

/// What EWC, MAS and SI share: a quadratic pull of every weight to where it was.
///   penalty = (s/2) sum_i Omega_i (th_i - th*_i)^2
///   gradient  s Omega_i (th_i - th*_i),  added in closed form
/// Several pulls are one: beside Omega at th*, a further F at th' makes
///   Omega + F  at  th* + F/(Omega + F) (th' - th*)
///   plus the constant  1/2 sum Omega F/(Omega + F) (th' - th*)^2
/// so the state has one size however many experiences there were. Without an anchor nothing is
/// touched.
struct QuadraticAnchor {
  bool clip_step = false;    ///< cap Omega at 1 / (lr s)
  bool include_norm = true;  ///< anchor scales and shifts of normalisation layers
  bool include_head = true;  ///< anchor heads, or the last linear layer where there is no Head

  void describe(Options& o) {
    o("clip_step", clip_step,
      "cap importances at 1 / (lr strength), where a step of SGD reaches the anchor");
    o("include_norm", include_norm, "anchor scales and shifts of normalisation layers");
    o("include_head", include_head,
      "anchor heads, or the last linear layer where there is no pawl::Head");
  }

  /// Adds the gradient of the penalty to that of the step.
  void pull(Context& c, double strength) {
    if (strength == 0 || !importance.defined()) return;
    warn(c, strength);
    c.pull(c.here(weights), clipped(c, strength), strength);
  }

  /// Marks idle parameters that are off their anchor: heads of other tasks that another strategy
  /// has moved. Those that are where they were stay untouched. A step that is recorded has none.
  void wake(Context& c, double strength) const {
    if (strength == 0 || !importance.defined() || recording()) return;
    std::vector<bool> pulled(c.arena.parameters().size(), false);
    bool any = false;
    for (std::size_t i = 0; i < pulled.size(); ++i) {
      if (c.arena.active()[i]) continue;
      auto const of = [&](Tensor const& flat) { return c.arena.parameter_view(flat, i); };
      auto const pull = (of(c.arena.weights()) - of(weights)) * of(importance);
      pulled[i] = pull.any().item<bool>();
      any = any || pulled[i];
    }
    if (!any) return;
    c.arena.gradient();  // 0 where there was none
    c.arena.activate(pulled);
  }

  /// The penalty [] at the present weights.
  Tensor value(Context const& c, double strength) const {
    if (strength == 0 || !importance.defined()) return torch::zeros({}, c.weights().options());
    auto const squares = clipped(c, strength) * (c.weights() - weights).square();
    return strength * (squares.sum() / 2 + constant);
  }

  /// From now on, pulls to the present weights alone, with this importance [P]. Throws where it is
  /// not finite; `owner` is named in the message.
  void move(Context const& c, Tensor const& omega, std::string const& owner) {
    importance = checked(c, omega, owner);
    weights = c.weights().clone();
    constant = 0;
    measure();
  }

  /// From now on, pulls to the present weights too, with this importance [P]. Throws as `move`.
  void add(Context const& c, Tensor const& omega, std::string const& owner) {
    if (!importance.defined()) return move(c, omega, owner);
    auto const f = checked(c, omega, owner);
    auto const total = importance + f;
    auto const share = torch::where(total > 0, f / total, torch::zeros_like(total));
    auto const way = c.weights() - weights;
    constant += (importance * share * way.square()).sum(torch::kFloat64).item<double>() / 2;
    weights = torch::where(share == 1, c.weights(), weights.addcmul(share, way));  // no rounding
    importance = total;
    measure();
  }

  void state(Archive& a) {
    a.flat("importance", importance);
    a.flat("weights", weights, Archive::Fill::weights);
    a("constant", constant);
    a("largest", largest);
  }

  // State: written by `move`, `add` and `pull`.
  Tensor importance{};      ///< [P] Omega; undefined: no anchor yet
  Tensor weights{};         ///< [P] th*
  double constant = 0;      ///< what several pulls add to the penalty, without strength
  double largest = 0;       ///< max Omega
  bool overshoots = false;  ///< lr s max(Omega) >= 1 was seen, and warned of

 private:
  Tensor clipped(Context const& c, double strength) const {
    auto const here = c.here(importance);
    if (!clip_step) return here;
    auto const cap = 1 / (c.learning_rate() * strength);
    return largest > cap ? here.clamp_max(cap) : here;
  }

  void measure() { largest = importance.max().item<double>(); }

  /// Importance 0 for what is not to be anchored; an error where it is not finite.
  Tensor checked(Context const& c, Tensor const& omega, std::string const& owner) const {
    require(
        omega.isfinite().all().item<bool>(),
        {owner, ": the importance after experience ", c.index,
         " is not finite; lower the learning rate or the strength, and look for outliers in the "
         "data"});
    auto const result = omega.detach().clone();
    nn::Module const* last = nullptr;
    for (auto const& part : c.model.module->modules()) {
      if (part->as<nn::LinearImpl>()) last = part.get();
    }
    zero_modules(c, result, [&](nn::Module const& part) {
      auto const norm = is_norm(part);
      auto const head =
          c.model.heads.empty() ? &part == last : dynamic_cast<Head const*>(&part) != nullptr;
      return (norm && !include_norm) || (head && !include_head);
    });
    return result;
  }

  /// By the name of its type, so that layers of other libraries count; a block of layers is none.
  static bool is_norm(nn::Module const& part) {
    if (!part.children().empty()) return false;
    for (auto const* kind : {"BatchNorm", "LayerNorm", "GroupNorm", "InstanceNorm"}) {
      if (part.name().find(kind) != std::string::npos) return true;
    }
    return false;
  }

  /// Under SGD the pull alone overshoots where lr s Omega > 1, and diverges where it is 2 or more.
  void warn(Context const& c, double strength) {
    auto const pull = c.peek_learning_rate() * strength * largest;
    if (clip_step || overshoots || pull < 1) return;
    overshoots = true;
    TORCH_WARN("pawl: lr * strength * the largest importance is ", pull, " in experience ", c.index,
               "; under SGD the penalty alone diverges at 2: lower the strength or set clip_step");
  }
};

}  // namespace v0
}  // namespace pawl
