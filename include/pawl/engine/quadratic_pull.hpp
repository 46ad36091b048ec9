#pragma once

#include "one_pass.hpp"

namespace pawl {
inline namespace v0 {

/// The gradient of a quadratic penalty, strength importance (w - anchor), at weights w [n].
struct QuadraticPull {
  Tensor anchor, importance;  ///< [n]
  double strength;

  /// Whether the kernels of one pass can read and write all of it.
  bool suits(Tensor const& w) const {
    auto const fits = [&w](Tensor const& x) {
      return one_pass::suits(x) && x.numel() == w.numel();
    };
    return fits(w) && fits(anchor) && fits(importance);
  }

  /// Adds it to a gradient [n], in one pass.
  void add_to(Tensor const& g, Tensor const& w) const {
    one_pass::run(one_pass::Pull{g.mutable_data_ptr<float>(), w.const_data_ptr<float>(),
                                 anchor.const_data_ptr<float>(), importance.const_data_ptr<float>(),
                                 static_cast<float>(strength)},
                  w.numel());
    g.unsafeGetTensorImpl()->bump_version();
  }

  /// Subtracts `rate` times it from the weights, in one pass.
  void subtract_from(Tensor const& w, double rate) const {
    one_pass::run(one_pass::PullDown{w.mutable_data_ptr<float>(), down(w, rate)}, w.numel());
    w.unsafeGetTensorImpl()->bump_version();
  }

  /// The same for a kernel, while these tensors live.
  products::AnchorPull down(Tensor const& w, double rate) const {
    return {w.const_data_ptr<float>(), anchor.const_data_ptr<float>(),
            importance.const_data_ptr<float>(), static_cast<float>(strength),
            static_cast<float>(rate)};
  }

  /// Adds it by operations of LibTorch, with a buffer [n].
  void add_by_operations(Tensor const& g, Tensor const& w, Tensor way) const {
    g.addcmul_(importance, at::sub_out(way, w, anchor), strength);
  }
};

}  // namespace v0
}  // namespace pawl
