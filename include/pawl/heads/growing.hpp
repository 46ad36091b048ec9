#pragma once

#include <cstdint>
#include <vector>

#include "../core/model.hpp"
#include "rows.hpp"

namespace pawl {
inline namespace v0 {

/// A last linear layer that makes room for new classes as they are announced: z = W phi + b.
///
/// Output c belongs to label c; the number of classes need not be known beforehand. Old rows keep
/// their bits, and a new row starts as `init` says, by default as a fresh `nn::Linear` would have
/// it, drawn from the sub-seed (init.head, row): it does not depend on when the row appears, nor on
/// how many there will be, so that xavier looks at the inputs alone. The learner moves optimizer
/// moments and strategy state along.
/// @code
///   nn::Sequential net(nn::Linear(784, 256), nn::ReLU(), GrowingHead(256));
/// @endcode
class GrowingHeadImpl : public Head {
 public:
  /// A head over features [N, inputs] that starts with `classes` outputs, drawn from `seed`.
  explicit GrowingHeadImpl(std::int64_t inputs, std::int64_t classes = 0, Seed seed = {},
                           Init init = {})
      : Head("growing_head"), init_(init) {
    require(inputs >= 1 && classes >= 0,
            {"GrowingHead: ", inputs, " inputs and ", classes,
             " classes were asked for; give at least one input and no negative number of classes"});
    weight = register_parameter("weight", torch::zeros({0, inputs}));
    bias = register_parameter("bias", torch::zeros({0}));
    grow(classes, seed);
  }

  bool announce(std::vector<std::int64_t> const& labels, std::int64_t, Seed seed) override {
    return grow(rows_for(labels), seed);
  }

  bool ready(std::int64_t) const override { return weight.size(0) > 0; }

  /// Logits [N, C] of features [N, d]. Throws before the first class is known.
  Tensor forward(Tensor const& x) {
    check_features(x, weight.size(1), "GrowingHead");
    require(weight.size(0) > 0,
            "GrowingHead: there are no classes yet; train first, or give a number of classes");
    return at::linear(x, weight, bias);
  }

  /// Enlarges the head to `classes` outputs; never shrinks it. Returns whether it grew.
  bool grow(std::int64_t classes, Seed seed) {
    auto const old = weight.size(0);
    if (classes <= old) return false;
    grow_rows(weight, classes);
    grow_rows(bias, classes);
    for (auto row = old; row < classes; ++row) {
      fill_row(weight.detach()[row], bias.detach()[row], seed.generator("init.head", row), init_);
    }
    return true;
  }

  std::int64_t classes() const { return weight.size(0); }

  Tensor weight;  ///< [C, d]
  Tensor bias;    ///< [C]

 private:
  Init init_;
};
TORCH_MODULE(GrowingHead);

}  // namespace v0
}  // namespace pawl
