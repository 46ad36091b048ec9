#pragma once

#include <typeinfo>

#include "../torch.hpp"

namespace pawl {
inline namespace v0 {

/// What a layer of a chain does after its product.
enum class Gate { none, relu, tanh, sigmoid };

inline void apply_gate(Gate gate, Tensor& h) {
  if (gate == Gate::relu) h.relu_();
  if (gate == Gate::tanh) h.tanh_();
  if (gate == Gate::sigmoid) h.sigmoid_();
}

/// The gradient before a gate, from that behind it and what the gate gave.
inline Tensor gate_backward(Gate gate, Tensor const& d, Tensor const& output) {
  if (gate == Gate::relu) return at::threshold_backward(d, output, 0);
  if (gate == Gate::tanh) return at::tanh_backward(d, output);
  if (gate == Gate::sigmoid) return at::sigmoid_backward(d, output);
  return d;
}
/// The same into `out`; not for `Gate::none`.
inline void gate_backward_out(Tensor& out, Gate gate, Tensor const& d, Tensor const& output) {
  if (gate == Gate::relu) at::threshold_backward_out(out, d, output, 0);
  if (gate == Gate::tanh) at::tanh_backward_out(out, d, output);
  if (gate == Gate::sigmoid) at::sigmoid_backward_out(out, d, output);
}

/// One layer of a chain: h -> gate(h W^T + b).
struct ChainLayer {
  Tensor weight{};  ///< [out, in]
  Tensor bias{};    ///< [out], or undefined
  Gate gate = Gate::none;
};

using ChainLayers = c10::SmallVector<ChainLayer, 4>;

/// A module that is, as it stands, nothing but linear layers and gates can say so, and is then
/// trained without autograd's graph.
class Chained {
 public:
  virtual ~Chained() = default;
  /// The layers from the flattened inputs [N, d] to the logits; empty when it is no chain (dropout,
  /// another head, ...). Asked for at the start of every experience.
  virtual ChainLayers chain() const = 0;
};

/// The layers of an `nn::Sequential` of `Linear`, `ReLU`, `Tanh`, `Sigmoid`, and `Flatten` at the
/// front, or of a module that is `Chained`; empty for any other.
inline ChainLayers chain_of(nn::Module const& module) {
  if (auto const* chained = dynamic_cast<Chained const*>(&module)) return chained->chain();
  if (typeid(module) != typeid(nn::SequentialImpl)) return {};
  ChainLayers layers;
  for (auto const& part : module.children()) {
    auto const& layer = *part;
    auto const gate = layer.name() == "torch::nn::ReLUImpl"      ? Gate::relu
                      : layer.name() == "torch::nn::TanhImpl"    ? Gate::tanh
                      : layer.name() == "torch::nn::SigmoidImpl" ? Gate::sigmoid
                                                                 : Gate::none;
    if (gate != Gate::none) {
      if (layers.empty() || layers.back().gate != Gate::none) return {};
      layers.back().gate = gate;
    } else if (typeid(layer) == typeid(nn::FlattenImpl)) {
      auto const& options = static_cast<nn::FlattenImpl const&>(layer).options;
      if (!layers.empty() || options.start_dim() != 1 || options.end_dim() != -1) return {};
    } else if (typeid(layer) == typeid(nn::LinearImpl)) {
      auto const& linear = static_cast<nn::LinearImpl const&>(layer);
      layers.push_back({linear.weight, linear.bias});
    } else {
      return {};
    }
  }
  return layers;
}

}  // namespace v0
}  // namespace pawl
