#pragma once

#include "one_pass.hpp"
#include "pieces.hpp"

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
    one_pass::run(one_pass::PullDown{w.mutable_data_ptr<float>(), anchor.const_data_ptr<float>(),
                                     importance.const_data_ptr<float>(),
                                     static_cast<float>(strength), static_cast<float>(rate)},
                  w.numel());
    w.unsafeGetTensorImpl()->bump_version();
  }

  /// Adds it by operations of LibTorch, with a buffer [n].
  void add_by_operations(Tensor const& g, Tensor const& w, Tensor way) const {
    g.addcmul_(importance, at::sub_out(way, w, anchor), strength);
  }
};

/// A block of the weights, and of their gradient, as hooks see it. With additions, the gradient is
/// a buffer of zeros: what hooks add to it is applied to the weights, and the true gradient is
/// never formed.
class BlockView {
 public:
  /// `spare` is a buffer that outlives it.
  BlockView(Arena& arena, Block const& where, Tensor& spare, bool additions)
      : arena_(arena),
        where_(where),
        spare_(spare),
        weights_(where.of(arena.weights())),
        additions_(additions) {}
  BlockView(BlockView const&) = delete;
  BlockView& operator=(BlockView const&) = delete;

  Block const& where() const { return where_; }
  Tensor const& weights() const { return weights_; }
  Tensor const& gradient() {
    if (!gradient_.defined()) {
      gradient_ = additions_ ? buffer_like(weights_, spare_).zero_() : where_.of(arena_.gradient());
      for (auto const& pull : pulls_) pull.add_to(gradient_, weights_);
      pulls_.clear();
    }
    return gradient_;
  }
  /// The gradient before it is edited, until the next block.
  Tensor copy_of_gradient() { return buffer_like(weights_, spare_).copy_(gradient()); }

  /// Keeps a pull that suits the weights until the gradient is asked for, where it may never be.
  /// Returns whether it did.
  bool keep(QuadraticPull const& pull) {
    if (!additions_ || gradient_.defined()) return false;
    pulls_.push_back(pull);
    return true;
  }
  /// Whether anybody wished to see the gradient, or add to it.
  bool asked() const { return gradient_.defined() || !pulls_.empty(); }
  /// Subtracts `rate` times what hooks added from the weights, where that is one pull and nothing
  /// else, in one pass. Returns whether it did.
  bool subtract_only_pull(double rate) {
    if (gradient_.defined() || pulls_.size() != 1) return false;
    pulls_.front().subtract_from(weights_, rate);
    return true;
  }

 private:
  Arena& arena_;
  Block where_;
  Tensor& spare_;
  Tensor weights_, gradient_;
  bool additions_;
  c10::SmallVector<QuadraticPull, 2> pulls_;
};

}  // namespace v0
}  // namespace pawl
