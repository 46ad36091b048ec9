#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "../engine/arena.hpp"
#include "torch.hpp"

namespace pawl {
inline namespace v0 {

/// One product z = a W^T + b in the graph of a forward pass, and the parameters that only it uses.
struct LinearUse {
  torch::autograd::Edge output;  ///< where the gradient [n, out] of z arrives
  Tensor input;                  ///< a [n, in]; undefined where the weight is not trained
  std::int64_t weight = -1;      ///< index of W among the parameters
  std::int64_t bias = -1;        ///< index of b
  bool transposed = true;        ///< W is stored [out, in]; false: [in, out]
};

/// What a graph proves about the use of parameters.
struct LinearGraph {
  std::vector<LinearUse> uses;
  std::string
      obstacle;  ///< why nothing is proved; empty: each parameter is in one of `uses`, or idle
};

/// Reads the graph behind logits [n, C] and proves, or not, that every parameter is used exactly
/// once, by a product over one row per sample, and that all between is done row by row. Names of
/// nodes that are not known to be harmless are obstacles, so an unknown operation costs time, never
/// correctness.
class LinearGraphReader {
 public:
  LinearGraphReader(Tensor const& logits, Arena const& arena)
      : arena_(arena), rows_(logits.size(0)), used_(arena.parameters().size(), false) {
    auto const& parameters = arena.parameters();
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      if (!parameters[i].requires_grad()) continue;
      leaves_.push_back(torch::autograd::impl::gradient_edge(parameters[i]));
      index_.emplace(leaves_.back().function.get(), static_cast<std::int64_t>(i));
    }
    if (logits.requires_grad()) follow(torch::autograd::impl::gradient_edge(logits));
    while (!open_.empty() && graph_.obstacle.empty()) {
      auto const edge = open_.back();
      open_.pop_back();
      visit(edge);
    }
  }

  LinearGraph take() { return std::move(graph_); }

 private:
  using Edge = torch::autograd::Edge;
  using Node = torch::autograd::Node;

  void follow(Edge const& edge) {
    if (edge.is_valid() && seen_.insert(edge.function.get()).second) open_.push_back(edge);
  }

  void visit(Edge const& edge) {
    namespace ops = torch::autograd::generated;
    auto* node = edge.function.get();
    if (auto const leaf = index_.find(node); leaf != index_.end()) {
      return stop(name_of(leaf->second) + " is used outside of linear layers");
    }
    if (!one_row_per_sample(*node)) return stop(node->name() + " does not keep one row per sample");
    if (auto* addmm = dynamic_cast<ops::AddmmBackward0*>(node)) {
      if (addmm->alpha.to<double>() != 1 || addmm->beta.to<double>() != 1) {
        return stop("a linear layer has factors of its own");
      }
      return product(edge, addmm->next_edge(1), addmm->next_edge(2), addmm->next_edge(0),
                     addmm->mat1_);
    }
    if (auto* mm = dynamic_cast<ops::MmBackward0*>(node)) {
      return product(edge, mm->next_edge(0), mm->next_edge(1), {}, mm->self_);
    }
    if (!row_by_row(*node)) return stop(node->name() + " is not known to act row by row");
    for (auto const& next : node->next_edges()) follow(next);
  }

  void product(Edge const& output, Edge const& input, Edge weight, Edge const& bias,
               torch::autograd::SavedVariable const& saved) {
    LinearUse use;
    use.output = output;
    if (weight.is_valid()) {
      use.transposed = weight.function->name() == "TBackward0";
      if (use.transposed) weight = weight.function->next_edge(0);
      use.weight = claim(weight);
      if (use.weight < 0) return;
      use.input = saved.unpack().detach();
    }
    if (bias.is_valid()) {
      use.bias = claim(bias);
      if (use.bias < 0) return;
      auto const& b = arena_.parameters()[static_cast<std::size_t>(use.bias)];
      if (b.dim() != 1 ||
          b.size(0) != output.function->input_metadata(0).shape_as_dim_vector()[1]) {
        return stop(name_of(use.bias) + " is broadcast");
      }
    }
    if (use.weight >= 0 || use.bias >= 0) graph_.uses.push_back(use);
    follow(input);
  }

  /// The parameter at the end of an edge, if it is one and nobody else has used it.
  std::int64_t claim(Edge const& edge) {
    auto const found = index_.find(edge.function.get());
    if (found == index_.end()) {
      stop("a linear layer computes its weights");
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

  bool one_row_per_sample(Node const& node) const {
    if (node.num_inputs() != 1) return false;
    auto const shape = node.input_metadata(0).shape_as_dim_vector();
    return shape.size() >= 2 && shape[0] == rows_;
  }

  /// Whether row i of the outcome depends on row i of the operands alone, given that all have n
  /// rows.
  static bool row_by_row(Node const& node) {
    static constexpr std::array<std::string_view, 20> any_shape = {
        "AliasBackward0",     "CloneBackward0",      "EluBackward0",       "GeluBackward0",
        "HardswishBackward0", "HardtanhBackward0",   "LeakyReluBackward0", "LogSigmoidBackward0",
        "MishBackward0",      "NegBackward0",        "PowBackward0",       "ReluBackward0",
        "SigmoidBackward0",   "SiluBackward0",       "SliceBackward0",     "SoftplusBackward0",
        "TanhBackward0",      "UnsafeViewBackward0", "ViewBackward0",      "ReshapeAliasBackward0"};
    // Broadcasting could pair rows with columns; between matrices of n rows it cannot.
    static constexpr std::array<std::string_view, 5> matrices = {
        "AddBackward0", "DivBackward0", "MaskedFillBackward0", "MulBackward0", "SubBackward0"};
    auto const name = node.name();
    for (auto const known : any_shape) {
      if (name == known) return true;
    }
    for (auto const known : matrices) {
      if (name == known) return node.input_metadata(0).shape_as_dim_vector().size() == 2;
    }
    return false;
  }

  std::string name_of(std::int64_t i) const {
    return "parameter '" + arena_.layout()[static_cast<std::size_t>(i)].name + "'";
  }
  void stop(std::string why) { graph_.obstacle = std::move(why); }

  Arena const& arena_;
  std::int64_t rows_;
  std::vector<bool> used_;
  std::vector<Edge> leaves_, open_;
  std::unordered_map<Node const*, std::int64_t> index_;
  std::unordered_set<Node const*> seen_;
  LinearGraph graph_;
};

}  // namespace v0
}  // namespace pawl
