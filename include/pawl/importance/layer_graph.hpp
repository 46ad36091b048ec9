#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "../core/model.hpp"
#include "../engine/arena.hpp"
#include "../engine/linear_layers.hpp"
#include "produced_tensors.hpp"
#include "row_by_row.hpp"

namespace pawl {
inline namespace v0 {

/// A layer in the graph of a forward pass over n samples, and the parameters that only it uses.
struct LayerUse {
  enum class Kind {
    linear,       ///< z = a W^T + b, one row per sample
    convolution,  ///< in one or two dimensions
    norm          ///< scale and shift of what was normalised
  };
  Kind kind = Kind::linear;
  torch::autograd::Edge output{};  ///< where the gradient of its result arrives
  Tensor input{};  ///< [n, in], [n, C, L], [n, C, H, W]; of a norm: normalised, of its rank;
                   ///< undefined where W is fixed
  std::int64_t weight = -1;  ///< index of W among the parameters
  std::int64_t bias = -1;    ///< index of b
  bool transposed = true;    ///< linear: W is stored [out, in]; false: [in, out]
  std::array<std::int64_t, 2> kernel{}, stride{}, padding{}, dilation{};  ///< of a convolution
  std::int64_t groups = 1;
  std::int64_t scaled_dimensions = 0;  ///< the last ones, of a LayerNorm; 0: a norm scales channels

  /// Of a convolution's kernel along a dimension of so many numbers.
  std::int64_t positions(std::size_t d, std::int64_t size) const {
    return (size + 2 * padding[d] - dilation[d] * (kernel[d] - 1) - 1) / stride[d] + 1;
  }
};

/// What a graph proves about the use of parameters.
struct LayerGraph {
  c10::SmallVector<LayerUse, 4> uses;
  std::string
      obstacle;  ///< why nothing is proved; empty: each parameter is in one of `uses`, or idle
};

/// Reads the graph behind logits [n, C] and proves, or not, that every parameter is used exactly
/// once, by a layer that is known, and that all between is done sample by sample. Names of nodes
/// that are not known to be harmless are obstacles, so an unknown operation costs time, never
/// correctness.
class LayerGraphReader {
 public:
  LayerGraphReader(Tensor const& logits, ProducedTensors const& produced, Model const& model,
                   Arena const& arena)
      : produced_(produced),
        model_(model),
        arena_(arena),
        rows_(logits.size(0)),
        used_(arena.parameters().size(), false) {
    auto const& parameters = arena.parameters();
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      if (!parameters[i].requires_grad()) continue;
      leaves_.push_back(torch::autograd::impl::gradient_edge(parameters[i]));
      index_[leaves_.back().function.get()] = static_cast<int>(i);
    }
    if (logits.requires_grad()) follow(torch::autograd::impl::gradient_edge(logits));
    while (!open_.empty() && graph_.obstacle.empty()) {
      auto const edge = open_.back();
      open_.pop_back();
      visit(edge);
    }
  }

  LayerGraph take() { return std::move(graph_); }

 private:
  using Edge = torch::autograd::Edge;
  using Node = torch::autograd::Node;

  void follow(Edge const& edge) {
    if (!leads_to_parameter(edge)) return;
    auto& mark = marks_[edge.function.get()];
    if (mark != followed) open_.push_back(edge);
    mark = followed;
  }

  /// Whether the gradient that travels along an edge reaches a parameter, not the inputs alone.
  bool leads_to_parameter(Edge const& edge) {
    if (!edge.is_valid()) return false;
    auto* node = edge.function.get();
    if (index_.count(node) > 0) return true;
    if (auto const known = marks_.find(node); known != marks_.end()) return known->second != aside;
    auto leads = false;
    for (auto const& next : node->next_edges()) leads = leads_to_parameter(next) || leads;
    marks_[node] = leads ? leads_on : aside;
    return leads;
  }

  void visit(Edge const& edge) {
    auto* node = edge.function.get();
    if (auto const leaf = index_.find(node); leaf != index_.end()) {
      return stop(name_of(leaf->second) + " is used outside of known layers");
    }
    if (!one_row_per_sample(edge)) return stop(node->name() + " does not keep one row per sample");
    auto const name = node->name();
    if (name == "AddmmBackward0") return product(edge, 1, 2, 0);
    if (name == "MmBackward0") return product(edge, 0, 1, -1);
    if (LinearLayers::is_product(*node)) {
      return product(edge, 0, 1, node->num_outputs() > 2 ? 2 : -1);
    }
    if (name == "ConvolutionBackward0") return convolution(edge);
    if (name == "NativeBatchNormBackward0" || name == "NativeGroupNormBackward0" ||
        name == "NativeLayerNormBackward0") {
      return norm(edge);
    }
    if (!acts_row_by_row(*node)) return stop(name + " is not known to act row by row");
    for (auto const& next : node->next_edges()) follow(next);
  }

  /// Edges of a node, by number: of the input, of the weight and of the bias (-1: has none).
  void product(Edge const& output, std::size_t input, std::size_t weight, int bias) {
    auto const& node = *output.function;
    LayerUse use{.output = output};
    auto matrix = node.next_edge(weight);
    if (matrix.is_valid()) {
      use.transposed = matrix.function->name() == "TBackward0";
      if (use.transposed) matrix = matrix.function->next_edge(0);
    }
    auto const shift = bias < 0 ? Edge{} : node.next_edge(static_cast<std::size_t>(bias));
    if (claim(use, node.next_edge(input), matrix, shift)) add(std::move(use));
    follow(node.next_edge(input));
  }

  void convolution(Edge const& output) {
    auto const& node = *output.function;
    LayerUse use{.kind = LayerUse::Kind::convolution, .output = output};
    if (!claim(use, node.next_edge(0), node.next_edge(1), node.next_edge(2))) return;
    if (use.weight >= 0) {
      auto const* images = owner<nn::Conv2dImpl>(use.weight);
      auto const* signals = owner<nn::Conv1dImpl>(use.weight);
      if (images != nullptr) take_options(use, images->options);
      if (signals != nullptr) take_options(use, signals->options);
      if (images == nullptr && signals == nullptr) {
        stop("a convolution is not one of a Conv1d or Conv2d");
      } else if (graph_.obstacle.empty() && !explains(use)) {
        stop("a convolution has other options than the module that holds its weight");
      }
    }
    add(std::move(use));
    follow(node.next_edge(0));
  }

  /// In one dimension, those of images of one row.
  template <std::size_t dimensions>
  void take_options(LayerUse& use, nn::detail::ConvNdOptions<dimensions> const& o) {
    auto const put = [](auto& place, torch::ExpandingArray<dimensions> const& numbers) {
      std::copy(numbers->begin(), numbers->end(), place.end() - dimensions);
    };
    use.kernel = use.stride = use.dilation = {1, 1};
    put(use.kernel, o.kernel_size());
    put(use.stride, o.stride());
    put(use.dilation, o.dilation());
    use.groups = o.groups();
    // In other modes a node of its own has padded the input.
    auto const* padding = std::get_if<torch::ExpandingArray<dimensions>>(&o.padding());
    if (padding == nullptr) return stop("a convolution names its padding");
    if (std::holds_alternative<torch::enumtype::kZeros>(o.padding_mode())) {
      put(use.padding, *padding);
    }
  }

  /// Whether the options of a convolution give results of the size that it has.
  static bool explains(LayerUse const& use) {
    auto const found = shape_of(use.output);
    auto const dimensions = static_cast<std::size_t>(use.input.dim()) - 2;
    for (std::size_t d = 2 - dimensions; d < 2; ++d) {
      auto const size = use.input.size(static_cast<std::int64_t>(d + dimensions));
      if (found[d + dimensions] != use.positions(d, size)) return false;
    }
    return true;
  }

  void norm(Edge const& output) {
    auto const& node = *output.function;
    LayerUse use{.kind = LayerUse::Kind::norm, .output = output};
    // Only its parameters tell over what a LayerNorm goes.
    if (node.name() == "NativeLayerNormBackward0" && !node.next_edge(1).is_valid()) {
      return stop("a LayerNorm has no scale that learns");
    }
    if (!claim(use, node.next_edge(0), node.next_edge(1), node.next_edge(2))) return;
    if (use.weight >= 0 && !normalise(use)) {
      return stop(node.name() + " is of no norm that is known, or has no statistics of its own");
    }
    add(std::move(use));
    follow(node.next_edge(0));
  }

  /// Turns the input of a norm into what it scales.
  bool normalise(LayerUse& use) const {
    auto const by_statistics = [&use](auto const* layer) {
      if (layer == nullptr || !layer->running_mean.defined()) return false;
      std::vector<std::int64_t> shape(static_cast<std::size_t>(use.input.dim()), 1);
      shape[1] = -1;
      auto const scale = (layer->running_var + layer->options.eps()).rsqrt();
      use.input = (use.input - layer->running_mean.view(shape)) * scale.view(shape);
      return true;
    };
    if (auto const* layer = owner<nn::LayerNormImpl>(use.weight)) {
      auto const& o = layer->options;
      use.scaled_dimensions = static_cast<std::int64_t>(o.normalized_shape().size());
      if (use.scaled_dimensions >= use.input.dim()) return false;
      use.input = at::layer_norm(use.input, o.normalized_shape(), {}, {}, o.eps());
      return true;
    }
    if (auto const* layer = owner<nn::GroupNormImpl>(use.weight)) {
      auto const& o = layer->options;
      use.input = at::group_norm(use.input, o.num_groups(), {}, {}, o.eps());
      return true;
    }
    return by_statistics(owner<nn::BatchNorm2dImpl>(use.weight)) ||
           by_statistics(owner<nn::BatchNorm1dImpl>(use.weight));
  }

  /// The module of a type that holds a parameter as its weight.
  template <class Layer>
  Layer const* owner(std::int64_t parameter) const {
    auto const& weight = arena_.parameters()[static_cast<std::size_t>(parameter)];
    for (auto const& module : model_.module->modules()) {
      auto const* layer = module->as<Layer>();
      if (layer != nullptr && layer->weight.is_same(weight)) return layer;
    }
    return nullptr;
  }

  /// Finds the parameters of a layer and what they act on; else says why not.
  bool claim(LayerUse& use, Edge const& input, Edge const& weight, Edge const& bias) {
    if (weight.is_valid()) {
      use.weight = claim(weight);
      if (use.weight < 0) return false;
      use.input = produced_.find(input);
      if (!use.input.defined()) stop("the input of a layer is not known");
    }
    if (bias.is_valid()) {
      use.bias = claim(bias);
      if (use.bias < 0) return false;
      if (!has_whole_bias(use)) stop(name_of(use.bias) + " is broadcast");
    }
    return graph_.obstacle.empty();
  }

  /// Whether the bias has a number for each channel, or is as large as the scale of a norm.
  bool has_whole_bias(LayerUse const& use) const {
    auto const& b = arena_.parameters()[static_cast<std::size_t>(use.bias)];
    if (use.kind == LayerUse::Kind::norm && use.weight >= 0) {
      return b.sizes() == arena_.parameters()[static_cast<std::size_t>(use.weight)].sizes();
    }
    return b.dim() == 1 && b.size(0) == shape_of(use.output)[1];
  }

  void add(LayerUse use) {
    if (use.weight >= 0 || use.bias >= 0) graph_.uses.push_back(std::move(use));
  }

  /// The parameter at the end of an edge, if it is one and nobody else has used it.
  std::int64_t claim(Edge const& edge) {
    auto const found = index_.find(edge.function.get());
    if (found == index_.end()) {
      stop("a layer computes its weights");
      return -1;
    }
    auto const i = static_cast<std::size_t>(found->second);
    if (used_[i]) {
      stop(name_of(found->second) + " is used twice");
      return -1;
    }
    used_[i] = true;
    return found->second;
  }

  bool one_row_per_sample(Edge const& edge) const {
    auto const shape = shape_of(edge);
    return edge.input_nr == 0 && shape.size() >= 2 && shape[0] == rows_;
  }

  std::string name_of(std::int64_t i) const {
    return "parameter '" + arena_.layout()[static_cast<std::size_t>(i)].name + "'";
  }
  void stop(std::string why) { graph_.obstacle = std::move(why); }

  ProducedTensors const& produced_;
  Model const& model_;
  Arena const& arena_;
  std::int64_t rows_;
  std::vector<bool> used_;
  std::vector<Edge> leaves_, open_;
  static constexpr int aside = 0, leads_on = 1, followed = 2;  // does it lead to a parameter?
  // Of a type that LibTorch's own headers use too: others would cost every user's compiler more.
  std::unordered_map<Node*, int> index_;  // of a parameter's node
  std::unordered_map<Node*, int> marks_;
  LayerGraph graph_;
};

}  // namespace v0
}  // namespace pawl
