#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "../core/model.hpp"
#include "../engine/arena.hpp"
#include "produced_tensors.hpp"

namespace pawl {
inline namespace v0 {

/// A layer in the graph of a forward pass over n samples, and the parameters that only it uses.
struct LayerUse {
  enum class Kind {
    linear,       ///< z = a W^T + b, one row per sample
    convolution,  ///< in two dimensions
    batch_norm    ///< scale and shift per channel, with fixed statistics
  };
  Kind kind = Kind::linear;
  torch::autograd::Edge output{};  ///< where the gradient of its result arrives
  Tensor input{};  ///< [n, in], [n, C, H, W]; of batch_norm: normalised; undefined where W is fixed
  std::int64_t weight = -1;  ///< index of W among the parameters
  std::int64_t bias = -1;    ///< index of b
  bool transposed = true;    ///< linear: W is stored [out, in]; false: [in, out]
  std::array<std::int64_t, 2> kernel{}, stride{}, padding{}, dilation{};  ///< of a convolution
  std::int64_t groups = 1;
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

  static auto shape_of(Edge const& edge) {
    return edge.function->input_metadata(edge.input_nr).shape_as_dim_vector();
  }

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
    if (name == "ConvolutionBackward0") return convolution(edge);
    if (name == "NativeBatchNormBackward0") return batch_norm(edge);
    if (!row_by_row(*node)) return stop(name + " is not known to act row by row");
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
      auto const* layer = owner<nn::Conv2dImpl>(use.weight);
      if (layer == nullptr) return stop("a convolution is not one of a Conv2d");
      auto const& o = layer->options;
      use.kernel = *o.kernel_size();
      use.stride = *o.stride();
      use.dilation = *o.dilation();
      use.groups = o.groups();
      // In other modes a node of its own has padded the input.
      auto const* padding = std::get_if<torch::ExpandingArray<2>>(&o.padding());
      if (padding == nullptr) return stop("a convolution names its padding");
      auto const zeros = std::holds_alternative<torch::enumtype::kZeros>(o.padding_mode());
      if (zeros) use.padding = **padding;
    }
    add(std::move(use));
    follow(node.next_edge(0));
  }

  void batch_norm(Edge const& output) {
    auto const& node = *output.function;
    LayerUse use{.kind = LayerUse::Kind::batch_norm, .output = output};
    if (!claim(use, node.next_edge(0), node.next_edge(1), node.next_edge(2))) return;
    if (use.weight >= 0) {
      auto const normalised = normalise(use);
      if (!normalised) return stop("BatchNorm has no statistics of its own");
    }
    add(std::move(use));
    follow(node.next_edge(0));
  }

  /// Turns the input of BatchNorm into what it scales: (x - mean) / sqrt(variance + eps).
  bool normalise(LayerUse& use) const {
    auto const by = [&use](auto const* layer) {
      if (layer == nullptr || !layer->running_mean.defined()) return false;
      std::vector<std::int64_t> shape(static_cast<std::size_t>(use.input.dim()), 1);
      shape[1] = -1;
      auto const scale = (layer->running_var + layer->options.eps()).rsqrt();
      use.input = (use.input - layer->running_mean.view(shape)) * scale.view(shape);
      return true;
    };
    return by(owner<nn::BatchNorm2dImpl>(use.weight)) || by(owner<nn::BatchNorm1dImpl>(use.weight));
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
      auto const& b = arena_.parameters()[static_cast<std::size_t>(use.bias)];
      if (b.dim() != 1 || b.size(0) != shape_of(use.output)[1]) {
        stop(name_of(use.bias) + " is broadcast");
      }
    }
    return graph_.obstacle.empty();
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

  /// Whether row i of the outcome depends on row i of the operands alone, given that all have n
  /// rows.
  static bool row_by_row(Node const& node) {
    static constexpr std::string_view any_shape[] = {"AdaptiveAvgPool2DBackward0",
                                                     "AddBackward1",
                                                     "AliasBackward0",
                                                     "AvgPool2DBackward0",
                                                     "CloneBackward0",
                                                     "ConstantPadNdBackward0",
                                                     "DivBackward1",
                                                     "EluBackward0",
                                                     "GeluBackward0",
                                                     "HardswishBackward0",
                                                     "HardtanhBackward0",
                                                     "LeakyReluBackward0",
                                                     "LogSigmoidBackward0",
                                                     "MaxPool2DWithIndicesBackward0",
                                                     "MeanBackward1",
                                                     "MishBackward0",
                                                     "MulBackward1",
                                                     "NegBackward0",
                                                     "PowBackward0",
                                                     "ReluBackward0",
                                                     "ReshapeAliasBackward0",
                                                     "SigmoidBackward0",
                                                     "SiluBackward0",
                                                     "SliceBackward0",
                                                     "SoftplusBackward0",
                                                     "SqueezeBackward1",
                                                     "SubBackward1",
                                                     "TanhBackward0",
                                                     "UnsafeViewBackward0",
                                                     "ViewBackward0"};
    // Broadcasting could pair rows with columns; between operands of one rank it cannot.
    static constexpr std::string_view of_one_rank[] = {
        "AddBackward0", "DivBackward0", "MaskedFillBackward0", "MulBackward0", "SubBackward0"};
    auto const among = [name = node.name()](c10::ArrayRef<std::string_view> names) {
      return std::find(names.begin(), names.end(), name) != names.end();
    };
    if (among(any_shape)) return true;
    if (!among(of_one_rank)) return false;
    auto const rank = node.input_metadata(0).shape_as_dim_vector().size();
    auto const& operands = node.next_edges();
    return std::all_of(operands.begin(), operands.end(), [rank](Edge const& operand) {
      return !operand.is_valid() || shape_of(operand).size() == rank;
    });
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
