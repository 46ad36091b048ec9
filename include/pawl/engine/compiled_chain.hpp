#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "../core/error.hpp"
#include "../device/fleet.hpp"
#include "../products/linear.hpp"
#include "arena.hpp"
#include "chain.hpp"
#include "joint_chains.hpp"

namespace pawl {
inline namespace v0 {

/// A network that is a chain of linear layers, run without autograd's graph: forward and backward
/// write into buffers that are kept, and gradients land in the flat arena. The arithmetic is that
/// of LibTorch's own kernels, in the same order; sums inside a product may be ordered otherwise.
class CompiledChain {
 public:
  /// Looks at a module. Afterwards it is `compiled`, or there is an `obstacle`.
  void compile(nn::Module const& module, Arena const& arena) {
    layers_.clear();
    obstacle_.clear();
    verified_ = false;
    std::vector<bool> used(arena.parameters().size(), false);
    for (auto& layer : chain_of(module)) {
      CompiledLayer own{.weight = layer.weight, .bias = layer.bias, .gate = layer.gate};
      own.weight_index = index_of(own.weight, arena, used);
      own.bias_index = index_of(own.bias, arena, used);
      if (!obstacle_.empty()) break;
      layers_.push_back(std::move(own));
    }
    if (layers_.empty() && obstacle_.empty()) obstacle_ = "the model is not a chain of layers";
    for (auto const each : used) {
      if (!each && obstacle_.empty()) obstacle_ = "the model has parameters outside of its chain";
    }
    if (!obstacle_.empty()) layers_.clear();
  }

  bool compiled() const { return !layers_.empty(); }
  std::string const& obstacle() const { return obstacle_; }

  /// Whether inputs have the shape and type that the first layer takes.
  bool takes(Tensor const& x) const {
    return compiled() && x.dim() >= 2 && x.size(0) > 0 &&
           x.numel() / x.size(0) == layers_.front().weight.size(1) &&
           x.scalar_type() == layers_.front().weight.scalar_type();
  }

  /// Whether the chain was seen to give what the module's own forward gives.
  bool verified() const { return verified_; }
  void verify() { verified_ = true; }
  /// Says that the module's forward is more than its layers, so it is no chain after all.
  void refuse(std::string why) {
    layers_.clear();
    obstacle_ = std::move(why);
  }

  /// Lets go of the buffers, so that the next pass makes its own: a recording may only use memory
  /// that stays, or is made while it records.
  void forget_buffers() {
    for (auto& layer : layers_) {
      for (auto* buffer : {&layer.input, &layer.output, &layer.input_gradient, &layer.gated}) {
        buffer->reset();
      }
    }
  }

  /// Logits [n, C] of inputs [n, ...], without a graph.
  Tensor logits(Tensor const& x) {
    torch::NoGradGuard no_grad;
    if (auto* fleet = Fleet::recording()) {
      if (logits_together(*fleet, x)) return layers_.back().output;
    }
    auto h = x.dim() == 2 ? x : x.flatten(1);
    for (std::size_t l = 0; l < layers_.size(); ++l) {
      auto& layer = layers_[l];
      layer.input = h;
      // Logits outlive the step: strategies and observers may keep them.
      auto out = l + 1 == layers_.size() ? at::empty({h.size(0), layer.weight.size(0)}, h.options())
                                         : room(layer.output, h.size(0), layer.weight.size(0));
      products::linear(out, h, layer.weight, layer.bias);
      apply_gate(layer.gate, out);
      layer.output = out;
      h = out;
    }
    return h;
  }

  /// The same by the operations that the layers themselves would use.
  Tensor plain_logits(Tensor const& x) const {
    auto h = x.dim() == 2 ? x : x.flatten(1);
    for (auto const& layer : layers_) {
      h = at::linear(h, layer.weight, layer.bias);
      apply_gate(layer.gate, h);
    }
    return h;
  }

  /// Logits [n, C] of inputs [n, ...]; a graph leads from them to `leaf()`, not further.
  Tensor forward(Tensor const& x) {
    leaf_ = logits(x).detach().requires_grad_(true);
    torch::AutoGradMode grad(true);
    return leaf_.clone();  // like other logits, these may be edited in place
  }

  /// The logits [n, C] of the last `forward`, where their gradient arrives.
  Tensor const& leaf() const { return leaf_; }

  /// From the gradient [n, C] of the last `forward`'s logits, together with the chains of a fleet
  /// that records: the gradients of the parameters, formed in their arena. Returns whether they
  /// are; if not, it is for `backward`.
  bool backward_together(Tensor const& gradient, Arena& arena) {
    auto* fleet = Fleet::recording();
    if (fleet == nullptr) return false;
    torch::NoGradGuard no_grad;
    JointChains::Part mine{&layers_, gradient, &arena};
    auto const met =
        fleet->meet(gradient.device(), mine, [](auto const& all) { JointChains::backward(all); });
    require(met, others_stopped);
    return mine.done;
  }

  /// From the gradient [n, C] of the last `forward`'s logits: gradients of the parameters, each
  /// handed over to `take(index, gradient)` before it is formed. What it is made of stays as it is
  /// until the next pass.
  template <class Take>
  void backward(Tensor const& gradient, Take&& take) {
    backward_through(gradient, [&](std::size_t l, Tensor const& d) {
      auto const& layer = layers_[l];
      if (layer.weight_index >= 0) {
        take(static_cast<std::size_t>(layer.weight_index), LayerGradient{d, layer.input});
      }
      if (layer.bias_index >= 0) {
        take(static_cast<std::size_t>(layer.bias_index), LayerGradient{d, {}});
      }
    });
  }

  /// The same, layer by layer, from the last one on: calls `take(l, d)` with the gradient
  /// [n, out] of what goes into the gate of layer l, which stays as it is until the next pass.
  template <class Take>
  void backward_through(Tensor const& gradient, Take&& take) {
    torch::NoGradGuard no_grad;
    auto d = gradient;
    for (auto l = layers_.size(); l-- > 0;) {
      auto& layer = layers_[l];
      d = before_gate(layer, d);
      take(l, d);
      if (l == 0) return;
      auto before = room(layer.input_gradient, d.size(0), layer.weight.size(1));
      products::input_gradient(before, d, layer.weight);
      d = before;
    }
  }

  /// With the inputs and outputs of the last pass.
  CompiledLayers const& layers() const { return layers_; }

 private:
  static constexpr char const* others_stopped = "another learner of the fleet has stopped";

  bool logits_together(Fleet::Member& fleet, Tensor const& x) {
    JointChains::Part mine{&layers_, x.dim() == 2 ? x : x.flatten(1)};
    auto const met =
        fleet.meet(x.device(), mine, [](auto const& all) { JointChains::logits(all); });
    require(met, others_stopped);
    return mine.done;
  }

  std::int64_t index_of(Tensor const& tensor, Arena const& arena, std::vector<bool>& used) {
    if (!tensor.defined() || !tensor.requires_grad()) return -1;
    auto const i = arena.index_of(tensor);
    if (i < 0) {
      obstacle_ = "a layer has a weight that is no parameter of the model";
      return -1;
    }
    auto const known = static_cast<std::size_t>(i);
    if (used[known]) obstacle_ = "the model uses a parameter twice";
    used[known] = true;
    return i;
  }

  /// A buffer [rows, columns], kept between steps.
  static Tensor room(Tensor& buffer, std::int64_t rows, std::int64_t columns, Tensor const& like) {
    if (!buffer.defined() || buffer.size(0) != rows || buffer.size(1) != columns) {
      buffer = at::empty({rows, columns}, like.options().requires_grad(false));
    }
    return buffer;
  }
  Tensor room(Tensor& buffer, std::int64_t rows, std::int64_t columns) const {
    return room(buffer, rows, columns, layers_.front().weight);
  }

  /// The gradient before the gate, from that behind it.
  Tensor before_gate(CompiledLayer& layer, Tensor const& d) const {
    if (layer.gate == Gate::none) return d;
    auto out = room(layer.gated, d.size(0), d.size(1));
    gate_backward_out(out, layer.gate, d, layer.output);
    return out;
  }

  CompiledLayers layers_;
  std::string obstacle_;
  bool verified_ = false;
  Tensor leaf_;
};

}  // namespace v0
}  // namespace pawl
