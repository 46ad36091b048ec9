#pragma once

#include <cstddef>
#include <optional>
#include <utility>
#include <vector>

#include "../products/linear.hpp"
#include "quadratic_pull.hpp"

namespace pawl {
inline namespace v0 {

/// Gradients of parameters that are not formed: each waits in its two factors until somebody asks
/// for it, which may never happen. A pull on the parameter may wait with it.
class WaitingGradients {
 public:
  /// Whether any has waited since `clear`.
  bool any() const { return !of_each_.empty(); }
  /// Whether that of parameter i is waiting.
  bool has(std::size_t i) const { return any() && of_each_[i].gradient.defined(); }
  void clear() { of_each_.clear(); }

  /// Lets the gradient of one of `count` parameters wait.
  void keep(std::size_t i, LayerGradient gradient, std::size_t count) {
    of_each_.resize(count);
    of_each_[i] = {std::move(gradient)};
  }

  /// Subtracts `rate` times a pull from parameter i, whose gradient waits, when that gradient is
  /// added to it, or taken.
  void pull_first(std::size_t i, QuadraticPull const& pull, double rate) {
    of_each_[i].pull = pull, of_each_[i].rate = rate;
  }

  /// Adds `factor` times the gradient of a parameter to it, after its pull. The gradient goes on
  /// waiting.
  void add_to(std::size_t i, Tensor const& parameter, double factor) {
    auto& [gradient, waiting, rate] = of_each_[i];
    if (auto const pull = std::exchange(waiting, {})) {
      auto const down = pull->down(parameter, rate);
      gradient.add_to(parameter, factor, &down);
    } else {
      gradient.add_to(parameter, factor);
    }
  }

  /// The gradient of a parameter, which waits no longer. Its pull is subtracted from the
  /// parameter's slice of the weights.
  LayerGradient take(std::size_t i, Tensor const& slice) {
    auto taken = std::exchange(of_each_[i], {});
    if (taken.pull) taken.pull->subtract_from(slice, taken.rate);
    return std::move(taken.gradient);
  }

 private:
  /// Nothing waits, if the gradient is undefined.
  struct Waiting {
    LayerGradient gradient{};
    std::optional<QuadraticPull> pull{};  ///< on all of the parameter
    double rate = 0;
  };

  std::vector<Waiting> of_each_;  // none, or one for each parameter
};

}  // namespace v0
}  // namespace pawl
