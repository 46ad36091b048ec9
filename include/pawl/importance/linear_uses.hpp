#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "../engine/arena.hpp"

namespace pawl {
inline namespace v0 {

/// A matrix product of a forward pass, out [n, o] = bias + in [n, i] W [i, o], that is the only
/// user of the parameters that stand in it.
struct LinearUse {
  torch::autograd::Edge product;  ///< the node that differentiates it; owns what was saved for that
  std::int64_t rows = 0;          ///< n
  std::int64_t outputs = 0;       ///< o
  std::int64_t weight = -1;       ///< index of the parameter in the arena, -1: not one of them
  std::int64_t bias = -1;         ///< index of the parameter in the arena, -1: not one of them
  std::size_t weight_slot = 0;    ///< which of the node's results is the gradient of W
  bool transposed = false;        ///< the parameter is W^T [o, i], as in `nn::Linear`
};

/// The products that hold all parameters of a graph, or why there are others.
struct LinearUses {
  std::vector<LinearUse> uses;
  std::string reason;  ///< empty: every parameter is used once, by one of `uses`
};

namespace detail {

/// The edges of an autograd graph, seen from the nodes they arrive at.
class Arrivals {
 public:
  using Node = torch::autograd::Node;
  struct Arrival {
    torch::autograd::Edge from;
    std::size_t slot = 0;  ///< of the node it comes from
  };

  explicit Arrivals(torch::autograd::Edge const& root) {
    std::vector<torch::autograd::Edge> open{root};
    arrivals_[root.function.get()];
    while (!open.empty()) {
      auto const at = open.back();
      open.pop_back();
      for (std::size_t slot = 0; slot < at.function->num_outputs(); ++slot) {
        auto const& next = at.function->next_edge(slot);
        if (!next.is_valid()) continue;
        auto const [place, first] = arrivals_.try_emplace(next.function.get());
        place->second.push_back({at, slot});
        if (first) open.push_back(next);
      }
    }
  }

  std::vector<Arrival> const& at(Node const* node) const {
    static std::vector<Arrival> const none;
    auto const found = arrivals_.find(node);
    return found == arrivals_.end() ? none : found->second;
  }

 private:
  std::unordered_map<Node const*, std::vector<Arrival>> arrivals_;
};

/// Files one parameter under the product that uses it; returns why that is not possible.
inline std::string file_use(Arrivals const& graph, Arena const& arena, std::size_t i,
                            torch::autograd::Node const* leaf, std::vector<LinearUse>& uses) {
  auto const& span = arena.layout()[i];
  auto const refuse = [&](auto const&... why) {
    return c10::str("parameter '", span.name, "' is used ", why...);
  };
  auto const* arrivals = &graph.at(leaf);
  if (arrivals->size() != 1) return refuse(arrivals->size(), " times");
  auto const transposed = arrivals->front().from.function->name() == "TBackward0";
  if (transposed) arrivals = &graph.at(arrivals->front().from.function.get());
  if (arrivals->size() != 1) return refuse(arrivals->size(), " times");
  auto const& node = arrivals->front().from.function;
  auto const slot = arrivals->front().slot;
  auto const kind = node->name();
  auto const with_bias = kind == "AddmmBackward0";
  auto const weight_slot = std::size_t{with_bias ? 2U : 1U};
  auto const is_bias = with_bias && slot == 0 && !transposed;
  if ((!with_bias && kind != "MmBackward0") || (slot != weight_slot && !is_bias)) {
    return refuse("by ", kind, transposed ? ", transposed" : "");
  }
  auto const& shape = node->input_metadata(0).shape_as_dim_vector();
  auto const rows = shape[0].expect_int(), outputs = shape[1].expect_int();
  if (is_bias && span.size != outputs) return refuse("as a bias of ", outputs, " outputs");
  auto const same = [&](LinearUse const& u) { return u.product.function == node; };
  auto use = std::find_if(uses.begin(), uses.end(), same);
  if (use == uses.end()) {
    uses.push_back({.product = {node, 0}, .rows = rows, .outputs = outputs});
    use = uses.end() - 1;
  }
  (is_bias ? use->bias : use->weight) = static_cast<std::int64_t>(i);
  use->weight_slot = weight_slot;
  if (!is_bias) use->transposed = transposed;
  return {};
}

}  // namespace detail

/// Proves, from the autograd graph of z, that every parameter it depends on is used exactly once,
/// in a matrix product with `rows` rows.
inline LinearUses linear_uses(Tensor const& z, Arena const& arena, std::int64_t rows) {
  LinearUses result;
  detail::Arrivals const graph(torch::autograd::impl::gradient_edge(z));
  for (std::size_t i = 0; i < arena.parameters().size(); ++i) {
    auto const leaf = torch::autograd::impl::try_get_grad_accumulator(arena.parameters()[i]);
    if (!leaf || graph.at(leaf.get()).empty()) continue;  // the logits do not depend on it
    result.reason = detail::file_use(graph, arena, i, leaf.get(), result.uses);
    if (!result.reason.empty()) return result;
  }
  for (auto const& use : result.uses) {
    if (use.rows != rows) {
      result.reason = c10::str("a linear layer sees ", use.rows, " rows for ", rows, " samples");
    }
  }
  return result;
}

/// What a product saw and how its bias counts, read from its backward.
struct LinearInput {
  Tensor in;          ///< [n, i] left factor, times the product's own factor where it has one
  Tensor bias_scale;  ///< [] d out / d bias
};

/// Differentiating the product with unit rows E gives in^T E, that is rows of `in` to the last bit;
/// o of them a call.
inline LinearInput linear_input(LinearUse const& use, torch::TensorOptions const& options) {
  torch::NoGradGuard no_grad;
  LinearInput result;
  std::vector<Tensor> rows;
  for (std::int64_t begin = 0; begin < use.rows; begin += use.outputs) {
    auto const count = std::min(use.outputs, use.rows - begin);
    auto const units = torch::zeros({use.rows, use.outputs}, options);
    units.narrow(0, begin, count).narrow(1, 0, count).fill_diagonal_(1);
    auto const back = (*use.product.function)({units});
    if (begin == 0 && use.bias >= 0) result.bias_scale = back[0].select(0, 0).select(0, 0);
    if (use.weight < 0) return result;
    rows.push_back(back[use.weight_slot].narrow(1, 0, count).t());
  }
  result.in = torch::cat(rows);
  return result;
}

}  // namespace v0
}  // namespace pawl
