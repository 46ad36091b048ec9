#pragma once

#include <cstdint>
#include <vector>

#include "../core/init.hpp"
#include "output_layer.hpp"

namespace pawl {
inline namespace v0 {

/// What a small convolutional network looks like.
struct SmallCnnOptions {
  static constexpr char const* name = "small_cnn";
  static constexpr char const* about =
      "two convolutions with pooling and a hidden layer (after LeNet-5: LeCun et al., Proc. IEEE "
      "1998)";

  std::vector<std::int64_t> channels{32, 64};
  std::int64_t kernel = 5;
  std::int64_t hidden = 128;
  Init init{};
  HeadKind head = HeadKind::automatic;
  std::int64_t tasks = 0;  ///< of a multi-head, where known; not an option of the command line

  void describe(Options& o) {
    o("channels", channels, at_least(1), "of each block: convolution, ReLU, 2x2 max pooling");
    o("kernel", kernel, at_least(1), "side of the convolutions, odd; the border is padded");
    o("hidden", hidden, at_least(1), "width of the layer before the head");
    init.describe(o);
    describe_head(o, head);
  }

  /// A network for rows [C, H, W]; `tasks`: how many task ids there are, 0 for none.
  Model build(std::vector<std::int64_t> const& input_shape, std::int64_t outputs,
              std::int64_t tasks, Seed seed) const;
};

/// A small convolutional network for images of 28x28, 32x32 and the like.
/// @code
///   pawl::SmallCnn net(std::vector<std::int64_t>{1, 28, 28}, 10, pawl::SmallCnnOptions{},
///   pawl::Seed{1});
/// @endcode
class SmallCnnImpl : public nn::Module {
 public:
  explicit SmallCnnImpl(std::vector<std::int64_t> const& input_shape, std::int64_t outputs,
                        SmallCnnOptions options = {}, Seed seed = {})
      : nn::Module("small_cnn"), options_(std::move(options)) {
    check_options(options_, "small_cnn");
    check_sizes("small_cnn", input_shape, outputs);
    require(options_.kernel % 2 == 1,
            {"small_cnn: kernel is ", options_.kernel, " but must be odd"});
    auto const scale = std::int64_t{1} << options_.channels.size();
    require(input_shape.size() == 3 && input_shape[1] >= scale && input_shape[2] >= scale,
            {"small_cnn: rows have shape ", c10::IntArrayRef(input_shape),
             " but must be images [C, H, W] of at least ", scale, " pixels a side; use the mlp"});
    ConstructionScope scope;
    auto channels = input_shape[0];
    for (auto const next : options_.channels) {
      auto const number = std::to_string(blocks_.size());
      blocks_.push_back(register_module("conv" + number, convolution(channels, next)));
      channels = next;
    }
    auto const pixels = (input_shape[1] / scale) * (input_shape[2] / scale);
    hidden_ = register_module("hidden", nn::Linear(channels * pixels, options_.hidden));
    output_ =
        make_output(options_.head, options_.hidden, outputs, options_.tasks, seed, options_.init);
    register_module("head", output_.module);
    initialise(*this, options_.init, seed);
  }

  /// Logits [N, outputs] of images [N, C, H, W].
  Tensor forward(Tensor const& x) { return output_.forward(features(x)); }

  /// What the head sees [N, hidden].
  Tensor features(Tensor const& x) {
    auto h = x;
    for (auto& block : blocks_) h = at::max_pool2d(at::relu(block->forward(h)), {2, 2});
    return at::relu(hidden_->forward(h.flatten(1)));
  }

 private:
  nn::Conv2d convolution(std::int64_t from, std::int64_t to) const {
    return nn::Conv2d(nn::Conv2dOptions(from, to, options_.kernel).padding(options_.kernel / 2));
  }

  SmallCnnOptions options_;
  std::vector<nn::Conv2d> blocks_;
  nn::Linear hidden_{nullptr};
  OutputLayer output_;
};
TORCH_MODULE(SmallCnn);

inline Model SmallCnnOptions::build(std::vector<std::int64_t> const& input_shape,
                                    std::int64_t outputs, std::int64_t number_of_tasks,
                                    Seed seed) const {
  auto options = *this;
  options.tasks = number_of_tasks;
  return SmallCnn(input_shape, outputs, options, seed);
}

}  // namespace v0
}  // namespace pawl
