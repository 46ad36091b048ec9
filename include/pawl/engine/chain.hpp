#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <typeinfo>
#include <utility>
#include <vector>

#include "../core/error.hpp"
#include "../products/linear.hpp"
#include "arena.hpp"
#include "fleet.hpp"
#include "stack.hpp"

namespace pawl {
inline namespace v0 {

/// What a layer of a chain does after its product.
enum class Gate { none, relu, tanh, sigmoid };

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
      Layer own{.weight = layer.weight, .bias = layer.bias, .gate = layer.gate};
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
      apply(layer.gate, out);
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
      apply(layer.gate, h);
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
    Part mine{this, gradient, &arena};
    auto const met = fleet->meet(gradient.device(), mine, [](Parts const& all) {
      if (alike(all) && are_free(all)) backward_of(all);
    });
    require(met, others_stopped);
    return mine.done;
  }

  /// From the gradient [n, C] of the last `forward`'s logits: gradients of the parameters, each
  /// handed over to `take(index, gradient)` before it is formed. What it is made of stays as it is
  /// until the next pass.
  template <class Take>
  void backward(Tensor const& gradient, Take&& take) {
    torch::NoGradGuard no_grad;
    auto d = gradient;
    for (auto l = layers_.size(); l-- > 0;) {
      auto& layer = layers_[l];
      d = through(layer, d);
      if (layer.weight_index >= 0) {
        take(static_cast<std::size_t>(layer.weight_index), LayerGradient{d, layer.input});
      }
      if (layer.bias_index >= 0) {
        take(static_cast<std::size_t>(layer.bias_index), LayerGradient{d, {}});
      }
      if (l == 0) return;
      auto before = room(layer.input_gradient, d.size(0), layer.weight.size(1));
      products::input_gradient(before, d, layer.weight);
      d = before;
    }
  }

 private:
  struct Layer {
    Tensor weight{}, bias{};
    Gate gate = Gate::none;
    std::int64_t weight_index = -1, bias_index = -1;  ///< among the parameters; -1: not trained
    Tensor input{}, output{};                         ///< of the last forward
    Tensor input_gradient{}, gated{};                 ///< buffers of the backward
  };

  // ---- together with the chains of a fleet ----

  /// What a chain brings to a meeting.
  struct Part {
    CompiledChain* chain;
    Tensor tensor;  ///< inputs [n, ...], or the gradient [n, C] of logits
    Arena* arena = nullptr;
    bool done = false;
  };
  using Parts = c10::SmallVector<Part*, 16>;
  static constexpr char const* others_stopped = "another learner of the fleet has stopped";

  bool logits_together(Fleet::Member& fleet, Tensor const& x) {
    Part mine{this, x.dim() == 2 ? x : x.flatten(1)};
    auto const met = fleet.meet(x.device(), mine, [](Parts const& all) {
      if (alike(all)) logits_of(all);
    });
    require(met, others_stopped);
    return mine.done;
  }

  static bool alike(Parts const& all) {
    auto const& first = *all.front();
    for (auto const* each : all) {
      auto const& layers = each->chain->layers_;
      if (each->tensor.sizes() != first.tensor.sizes()) return false;
      if (layers.size() != first.chain->layers_.size()) return false;
      for (std::size_t l = 0; l < layers.size(); ++l) {
        auto const& other = first.chain->layers_[l];
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
  static Tensor of_all(Parts const& all, std::size_t l, Tensor Layer::*what) {
    Tensors parts;
    for (auto const* each : all) parts.push_back(each->chain->layers_[l].*what);
    return stacked(parts);
  }

  /// Gives each chain its row of a tensor [S, ...].
  static void hand_out(Parts const& all, std::size_t l, Tensor Layer::*what, Tensor const& rows) {
    for (std::size_t s = 0; s < all.size(); ++s) {
      auto const row = rows.select(0, static_cast<std::int64_t>(s));
      all[s]->chain->layers_[l].*what = row.variable_data();
    }
  }

  static void logits_of(Parts const& all) {
    Tensors inputs;
    for (auto const* each : all) inputs.push_back(each->tensor);
    auto h = stacked(inputs);
    for (std::size_t l = 0; l < all.front()->chain->layers_.size(); ++l) {
      hand_out(all, l, &Layer::input, h);
      auto const weights = of_all(all, l, &Layer::weight).transpose(1, 2);
      auto const& first = all.front()->chain->layers_[l];
      h = first.bias.defined() ? at::baddbmm(of_all(all, l, &Layer::bias).unsqueeze(1), h, weights)
                               : at::bmm(h, weights);
      apply(first.gate, h);
      hand_out(all, l, &Layer::output, h);
    }
    for (auto* each : all) each->done = true;
  }

  static void backward_of(Parts const& all) {
    Tensors gradients;
    for (auto const* each : all) gradients.push_back(each->tensor);
    auto d = stacked(gradients);
    for (auto l = all.front()->chain->layers_.size(); l-- > 0;) {
      auto const& first = all.front()->chain->layers_[l];
      d = through(first.gate, d, of_all(all, l, &Layer::output));
      if (first.weight_index >= 0) {
        auto room = rooms(all, first.weight_index);
        at::bmm_out(room, d.transpose(1, 2), of_all(all, l, &Layer::input));
      }
      if (first.bias_index >= 0) {
        auto room = rooms(all, first.bias_index);
        at::sum_out(room, d, {1});
      }
      for (auto* each : all) {
        for (auto const i : {first.weight_index, first.bias_index}) each->arena->take_formed(i);
      }
      if (l > 0) d = at::bmm(d, of_all(all, l, &Layer::weight));
    }
    for (auto* each : all) each->done = true;
  }

  static Tensor through(Gate gate, Tensor const& d, Tensor const& output) {
    if (gate == Gate::relu) return at::threshold_backward(d, output, 0);
    if (gate == Gate::tanh) return at::tanh_backward(d, output);
    if (gate == Gate::sigmoid) return at::sigmoid_backward(d, output);
    return d;
  }

  // ---- by itself ----

  std::int64_t index_of(Tensor const& tensor, Arena const& arena, std::vector<bool>& used) {
    if (!tensor.defined() || !tensor.requires_grad()) return -1;
    for (std::size_t i = 0; i < arena.parameters().size(); ++i) {
      if (!arena.parameters()[i].is_same(tensor)) continue;
      if (used[i]) obstacle_ = "the model uses a parameter twice";
      used[i] = true;
      return static_cast<std::int64_t>(i);
    }
    obstacle_ = "a layer has a weight that is no parameter of the model";
    return -1;
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

  static void apply(Gate gate, Tensor& h) {
    if (gate == Gate::relu) h.relu_();
    if (gate == Gate::tanh) h.tanh_();
    if (gate == Gate::sigmoid) h.sigmoid_();
  }

  /// The gradient before the gate, from that behind it.
  Tensor through(Layer& layer, Tensor const& d) const {
    if (layer.gate == Gate::none) return d;
    auto out = room(layer.gated, d.size(0), d.size(1));
    if (layer.gate == Gate::relu) at::threshold_backward_out(out, d, layer.output, 0);
    if (layer.gate == Gate::tanh) at::tanh_backward_out(out, d, layer.output);
    if (layer.gate == Gate::sigmoid) at::sigmoid_backward_out(out, d, layer.output);
    return out;
  }

  c10::SmallVector<Layer, 4> layers_;
  std::string obstacle_;
  bool verified_ = false;
  Tensor leaf_;
};

}  // namespace v0
}  // namespace pawl
