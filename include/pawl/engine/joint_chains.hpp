#pragma once

#include <cstddef>
#include <cstdint>

#include "arena.hpp"
#include "chain.hpp"
#include "stack.hpp"

namespace pawl {
inline namespace v0 {

/// A layer of a chain that is run without autograd's graph.
struct CompiledLayer {
  Tensor weight{}, bias{};
  Gate gate = Gate::none;
  std::int64_t weight_index = -1, bias_index = -1;  ///< among the parameters; -1: not trained
  Tensor input{}, output{};                         ///< of the last forward
  Tensor input_gradient{}, gated{};                 ///< buffers of the backward
};

using CompiledLayers = c10::SmallVector<CompiledLayer, 4>;

/// Passes of the chains of several learners at once: layer by layer, products of all are one.
class JointChains {
 public:
  /// What a chain brings to a pass.
  struct Part {
    CompiledLayers* layers;
    Tensor tensor;           ///< inputs [n, d], or the gradient [n, C] of logits
    Arena* arena = nullptr;  ///< where gradients go
    bool done = false;       ///< whether the pass was possible
  };
  using Parts = c10::SmallVector<Part*, 16>;

  /// Logits [n, C], left as the `output` of the last layers, where the chains are alike.
  static void logits(Parts const& all) {
    if (!alike(all)) return;
    Tensors inputs;
    for (auto const* each : all) inputs.push_back(each->tensor);
    auto h = stacked(inputs);
    for (std::size_t l = 0; l < all.front()->layers->size(); ++l) {
      hand_out(all, l, &CompiledLayer::input, h);
      auto const weights = of_all(all, l, &CompiledLayer::weight).transpose(1, 2);
      auto const& first = (*all.front()->layers)[l];
      h = first.bias.defined()
              ? at::baddbmm(of_all(all, l, &CompiledLayer::bias).unsqueeze(1), h, weights)
              : at::bmm(h, weights);
      apply_gate(first.gate, h);
      hand_out(all, l, &CompiledLayer::output, h);
    }
    for (auto* each : all) each->done = true;
  }

  /// Gradients of all parameters, formed in their arenas, where the chains are alike and nothing
  /// else has left a gradient.
  static void backward(Parts const& all) {
    if (!alike(all) || !are_free(all)) return;
    Tensors gradients;
    for (auto const* each : all) gradients.push_back(each->tensor);
    auto d = stacked(gradients);
    for (auto l = all.front()->layers->size(); l-- > 0;) {
      auto const& first = (*all.front()->layers)[l];
      d = gate_backward(first.gate, d, of_all(all, l, &CompiledLayer::output));
      if (first.weight_index >= 0) {
        auto room = rooms(all, first.weight_index);
        at::bmm_out(room, d.transpose(1, 2), of_all(all, l, &CompiledLayer::input));
      }
      if (first.bias_index >= 0) {
        auto room = rooms(all, first.bias_index);
        at::sum_out(room, d, {1});
      }
      for (auto* each : all) {
        for (auto const i : {first.weight_index, first.bias_index}) each->arena->take_formed(i);
      }
      if (l > 0) d = at::bmm(d, of_all(all, l, &CompiledLayer::weight));
    }
    for (auto* each : all) each->done = true;
  }

 private:
  static bool alike(Parts const& all) {
    auto const& first = *all.front();
    for (auto const* each : all) {
      auto const& layers = *each->layers;
      if (each->tensor.sizes() != first.tensor.sizes()) return false;
      if (layers.size() != first.layers->size()) return false;
      for (std::size_t l = 0; l < layers.size(); ++l) {
        auto const& other = (*first.layers)[l];
        if (layers[l].weight.sizes() != other.weight.sizes() || layers[l].gate != other.gate ||
            layers[l].bias.defined() != other.bias.defined() ||
            layers[l].weight_index != other.weight_index ||
            layers[l].bias_index != other.bias_index) {
          return false;
        }
      }
    }
    return true;
  }

  /// Whether all gradients can be formed where they belong, in one go.
  static bool are_free(Parts const& all) {
    for (auto const* each : all) {
      for (auto const& p : each->arena->parameters()) {
        if (p.grad().defined()) return false;  // it is to be added to that
      }
    }
    return all.size() < 2 || rooms(all, 0).defined();
  }

  /// Room for the gradients of parameter i [S, ...]; undefined where it is in many pieces.
  static Tensor rooms(Parts const& all, std::int64_t i) {
    Tensors parts;
    for (auto* each : all) parts.push_back(each->arena->room_for_gradient(i));
    return in_one_piece(parts);
  }

  /// A tensor of layer l of all chains [S, ...].
  static Tensor of_all(Parts const& all, std::size_t l, Tensor CompiledLayer::*what) {
    Tensors parts;
    for (auto const* each : all) parts.push_back((*each->layers)[l].*what);
    return stacked(parts);
  }

  /// Gives each chain its row of a tensor [S, ...].
  static void hand_out(Parts const& all, std::size_t l, Tensor CompiledLayer::*what,
                       Tensor const& rows) {
    for (std::size_t s = 0; s < all.size(); ++s) {
      auto const row = rows.select(0, static_cast<std::int64_t>(s));
      (*all[s]->layers)[l].*what = row.variable_data();
    }
  }
};

}  // namespace v0
}  // namespace pawl
