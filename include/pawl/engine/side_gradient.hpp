#pragma once

#include <cstddef>
#include <utility>
#include <vector>

#include "../products/linear.hpp"
#include "flat_parameters.hpp"

namespace pawl {
inline namespace v0 {

/// A gradient [P] beside that of the step, put together part by part.
class SideGradient {
 public:
  /// It lies in `flat` [P], of which only the gaps between slices need to be zero.
  SideGradient(FlatParameters const& parameters, Tensor flat)
      : parameters_(parameters),
        flat_(std::move(flat)),
        formed_(parameters.parameters().size(), false) {}

  void add(std::size_t i, LayerGradient const& part) {
    auto const place = parameters_.parameter_view(flat_, i);
    formed_[i] ? part.add_to(place, 1) : part.form(place);
    formed_[i] = true;
  }

  /// What autograd returned for each parameter: undefined where it is not used.
  void add(std::vector<Tensor> const& parts) {
    torch::NoGradGuard const no_grad;
    for (std::size_t i = 0; i < parts.size(); ++i) {
      if (!parts[i].defined()) continue;
      auto const place = parameters_.parameter_view(flat_, i);
      formed_[i] ? place.add_(parts[i]) : place.copy_(parts[i]);
      formed_[i] = true;
    }
  }

  /// The sum of all parts, once there are no more: 0 where there was none.
  Tensor const& whole() {
    torch::NoGradGuard const no_grad;
    for (std::size_t i = 0; i < formed_.size(); ++i) {
      if (!formed_[i]) parameters_.parameter_view(flat_, i).zero_();
    }
    return flat_;
  }

  /// Which parameters have a part.
  std::vector<bool> const& formed() const { return formed_; }

 private:
  FlatParameters const& parameters_;
  Tensor flat_;
  std::vector<bool> formed_;
};

}  // namespace v0
}  // namespace pawl
