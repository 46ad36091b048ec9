#pragma once

#include "pieces.hpp"
#include "quadratic_pull.hpp"

namespace pawl {
inline namespace v0 {

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
    // Somebody may have asked for the whole gradient meanwhile.
    auto const moved = !additions_ && packed_ != arena_.packed();
    if (!gradient_.defined() || moved) {
      gradient_ = additions_ ? buffer_like(weights_, spare_).zero_() : where_.gradient(arena_);
      packed_ = arena_.packed();
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
  /// What hooks added, where that is one pull and nothing else; else null.
  QuadraticPull const* only_pull() const {
    return !gradient_.defined() && pulls_.size() == 1 ? &pulls_.front() : nullptr;
  }

 private:
  Arena& arena_;
  Block where_;
  Tensor& spare_;
  Tensor weights_, gradient_;
  bool additions_;
  bool packed_ = false;  // the arena's gradient, when this one was found
  c10::SmallVector<QuadraticPull, 2> pulls_;
};

}  // namespace v0
}  // namespace pawl
