#pragma once

#include <cstdint>
#include <vector>

#include "../core/model.hpp"
#include "rows.hpp"

namespace pawl {
inline namespace v0 {

/// The factor of a cosine head's logits.
struct CosineScale {
  double value = 1;     ///< eta, or where it starts
  bool learned = true;  ///< a parameter, or fixed
};

/// A last layer that compares directions, so that new classes cannot win by longer weights (LUCIR:
/// Hou et al., CVPR 2019):
///   z_c = eta cos(phi, w_c),   |z_c| <= |eta|
/// It grows with the classes as `GrowingHead` does: old rows keep their bits, row c is drawn from
/// the sub-seed (init.head, c).
class CosineHeadImpl : public Head {
 public:
  /// A head over features [N, inputs] that starts with `classes` outputs, drawn from `seed`.
  explicit CosineHeadImpl(std::int64_t inputs, std::int64_t classes = 0, Seed seed = {},
                          CosineScale scale = {})
      : Head("cosine_head") {
    require(inputs >= 1 && classes >= 0,
            {"CosineHead: ", inputs, " inputs and ", classes,
             " classes were asked for; give at least one input and no negative number of classes"});
    weight = register_parameter("weight", torch::zeros({0, inputs}));
    auto const value = torch::full({}, scale.value);
    eta = scale.learned ? register_parameter("eta", value) : register_buffer("eta", value);
    grow(classes, seed);
  }

  bool announce(std::vector<std::int64_t> const& labels, std::int64_t, Seed seed) override {
    return grow(rows_for(labels), seed);
  }

  bool ready(std::int64_t) const override { return weight.size(0) > 0; }

  /// Logits [N, C] of features [N, d]. Throws before the first class is known.
  Tensor forward(Tensor const& x) {
    check_features(x, weight.size(1), "CosineHead");
    require(weight.size(0) > 0,
            "CosineHead: there are no classes yet; train first, or give a number of classes");
    return eta * at::linear(directions(x), directions(weight));
  }

  /// Enlarges the head to `classes` outputs; never shrinks it. Returns whether it grew.
  bool grow(std::int64_t classes, Seed seed) {
    auto const old = weight.size(0);
    if (classes <= old) return false;
    old_ = old;
    grow_rows(weight, classes);
    for (auto row = old; row < classes; ++row) {
      fill_row(weight.detach()[row], {}, seed.generator("init.head", row));
    }
    return true;
  }

  /// Points the row of `label` at the mean of its features [n, d], and makes it as long as the old
  /// rows are on average ("imprinting"): those that the head had before it grew last, or all others
  /// if it never did. Give features of norm 1 for the mean direction.
  void imprint(std::int64_t label, Tensor const& features) {
    require(label >= 0 && label < classes(), {"CosineHead: cannot imprint label ", label, " on ",
                                              classes(), " outputs; announce it first"});
    check_features(features, weight.size(1), "CosineHead");
    require(features.size(0) > 0, {"CosineHead: cannot imprint label ", label,
                                   " without features; give at least one row"});
    torch::NoGradGuard no_grad;
    auto const norms = weight.norm(2, 1);
    auto const old = old_ > 0 ? old_ : classes();
    auto const others = label < old ? old - 1 : old;
    auto const sum =
        norms.narrow(0, 0, old).sum() - (label < old ? norms[label] : norms.new_zeros({}));
    auto const length = others > 0 ? sum / others : norms[label];
    weight.detach()[label].copy_(directions(features.mean(0, true))[0] * length);
  }

  std::int64_t classes() const { return weight.size(0); }

  Tensor weight;  ///< [C, d]
  Tensor eta;     ///< []

 private:
  std::int64_t old_ = 0;  ///< rows before the last growth

  static Tensor directions(Tensor const& rows) {
    return rows / rows.norm(2, 1, true).clamp_min(1e-12);
  }
};
TORCH_MODULE(CosineHead);

}  // namespace v0
}  // namespace pawl
