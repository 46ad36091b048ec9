#pragma once

#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

#include "../core/init.hpp"
#include "../engine/chain.hpp"
#include "output_layer.hpp"

namespace pawl {
inline namespace v0 {

enum class Activation { relu, tanh };

/// What a multilayer perceptron looks like.
struct MlpOptions {
  static constexpr char const* name = "mlp";
  static constexpr char const* about =
      "fully connected layers, as in most MNIST protocols (Rumelhart et al., Nature 1986)";

  std::vector<std::int64_t> hidden{256};
  Activation activation = Activation::relu;
  double dropout = 0;
  bool batch_norm = false;
  Init init{};
  HeadKind head = HeadKind::automatic;
  std::int64_t tasks = 0;  ///< of a multi-head, where known; not an option of the command line

  void describe(Options& o) {
    o("hidden", hidden, at_least(1), "widths of the hidden layers; empty: a linear classifier");
    o("activation", activation, {"relu", "tanh"}, "after every hidden layer");
    o("dropout", dropout, Range{.low = 0, .high = 1, .open_high = true},
      "probability that a hidden unit is dropped in training");
    o("batch_norm", batch_norm,
      "layers without bias, followed by BatchNorm (eps 1e-6); the last one too (GDumb, ECCV 2020)");
    init.describe(o);
    describe_head(o, head);
  }

  /// A perceptron for rows of this shape; `tasks`: how many task ids there are, 0 for none.
  Model build(std::vector<std::int64_t> const& input_shape, std::int64_t outputs,
              std::int64_t tasks, Seed seed) const;
};

/// A multilayer perceptron on flattened rows: h_l = a(W_l h_{l-1} + b_l), z = head(h_L).
/// @code
///   pawl::Mlp net(784, 10, pawl::MlpOptions{.hidden = {400, 400}}, pawl::Seed{1});
/// @endcode
class MlpImpl : public nn::Module, public Chained {
 public:
  explicit MlpImpl(std::int64_t inputs, std::int64_t outputs, MlpOptions options = {},
                   Seed seed = {})
      : nn::Module("mlp"), options_(std::move(options)), inputs_(inputs) {
    check_options(options_, "mlp");
    check_sizes("mlp", {inputs}, outputs);
    auto const head = options_.head;
    auto const plain = head == HeadKind::linear || (head == HeadKind::automatic && !options_.tasks);
    require(!options_.batch_norm || plain,
            "mlp: batch_norm normalises the outputs too, which needs a linear head; set head to "
            "linear");
    ConstructionScope scope;
    auto width = inputs;
    for (std::size_t l = 0; l < options_.hidden.size(); ++l) {
      layers_.push_back(
          register_module("layer" + std::to_string(l), linear(width, options_.hidden[l])));
      width = options_.hidden[l];
      add_norm(width);
    }
    output_ = make_output(head, width, outputs, options_.tasks, seed, options_.init,
                          !options_.batch_norm);
    register_module("head", output_.module);
    add_norm(outputs);
    initialise(*this, options_.init, seed);
  }

  /// Logits [N, C] of rows [N, ...].
  Tensor forward(Tensor const& x) {
    auto const z = output_.forward(features(x));
    return norms_.empty() ? z : norms_.back()->forward(z);
  }

  /// What the head sees [N, d]: the last hidden layer after its activation.
  Tensor features(Tensor const& x) {
    auto h = x.dim() == 2 ? x : x.flatten(1);
    require(h.size(1) == inputs_, {"mlp: got rows of ", h.size(1), " values but takes ", inputs_,
                                   "; build the model for the shape of the data"});
    for (std::size_t l = 0; l < layers_.size(); ++l) {
      h = layers_[l]->forward(h);
      if (!norms_.empty()) h = norms_[l]->forward(h);
      h = options_.activation == Activation::relu ? at::relu(h) : at::tanh(h);
      if (options_.dropout > 0) h = at::dropout(h, options_.dropout, is_training());
    }
    return h;
  }

  /// With a linear head, and neither dropout nor BatchNorm, this is a chain of layers.
  ChainLayers chain() const override {
    auto const* head = output_.module->as<nn::Linear>();
    if (options_.dropout > 0 || options_.batch_norm || head == nullptr) return {};
    auto const gate = options_.activation == Activation::relu ? Gate::relu : Gate::tanh;
    ChainLayers layers;
    for (auto const& layer : layers_) layers.push_back({layer->weight, layer->bias, gate});
    layers.push_back({head->weight, head->bias});
    return layers;
  }

  MlpOptions const& options() const { return options_; }

 private:
  nn::Linear linear(std::int64_t from, std::int64_t to) const {
    return nn::Linear(nn::LinearOptions(from, to).bias(!options_.batch_norm));
  }
  void add_norm(std::int64_t width) {
    if (!options_.batch_norm) return;
    auto const name = "norm" + std::to_string(norms_.size());
    norms_.push_back(
        register_module(name, nn::BatchNorm1d(nn::BatchNorm1dOptions(width).eps(1e-6))));
  }

  MlpOptions options_;
  std::int64_t inputs_;
  std::vector<nn::Linear> layers_;
  std::vector<nn::BatchNorm1d> norms_;
  OutputLayer output_;
};
TORCH_MODULE(Mlp);

inline Model MlpOptions::build(std::vector<std::int64_t> const& input_shape, std::int64_t outputs,
                               std::int64_t number_of_tasks, Seed seed) const {
  check_sizes(name, input_shape, outputs);
  auto options = *this;
  options.tasks = number_of_tasks;
  auto const inputs =
      std::accumulate(input_shape.begin(), input_shape.end(), std::int64_t{1}, std::multiplies<>());
  return Mlp(inputs, outputs, options, seed);
}

}  // namespace v0
}  // namespace pawl
