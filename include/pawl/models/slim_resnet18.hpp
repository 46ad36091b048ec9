#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../core/init.hpp"
#include "output_layer.hpp"

namespace pawl {
inline namespace v0 {

/// What a slim ResNet-18 looks like.
struct SlimResNet18Options {
  static constexpr char const* name = "slim_resnet18";
  static constexpr char const* about =
      "ResNet-18 for small images with a third of the channels, as in GEM (Lopez-Paz and Ranzato, "
      "NeurIPS 2017; He et al., CVPR 2016)";

  std::int64_t nf = 20;
  Init init{};
  HeadKind head = HeadKind::automatic;
  std::int64_t tasks = 0;  ///< of a multi-head, where known; not an option of the command line

  void describe(Options& o) {
    o("nf", nf, at_least(1), "channels of the first stage, doubled in each of the next three");
    init.describe(o);
    describe_head(o, head);
  }

  /// A network for rows [C, H, W]; `tasks`: how many task ids there are, 0 for none.
  Model build(std::vector<std::int64_t> const& input_shape, std::int64_t outputs,
              std::int64_t tasks, Seed seed) const;
};

/// relu(x' + BN(conv(relu(BN(conv(x)))))), where x' is x, or a 1x1 convolution of it when the shape
/// changes.
class BasicBlockImpl : public nn::Module {
 public:
  BasicBlockImpl(std::int64_t from, std::int64_t to, std::int64_t stride)
      : nn::Module("basic_block"),
        conv1_(register_module("conv1", convolution(from, to, 3, stride))),
        norm1_(register_module("norm1", nn::BatchNorm2d(to))),
        conv2_(register_module("conv2", convolution(to, to, 3, 1))),
        norm2_(register_module("norm2", nn::BatchNorm2d(to))) {
    if (stride == 1 && from == to) return;
    shortcut_ = register_module("shortcut", convolution(from, to, 1, stride));
    shortcut_norm_ = register_module("shortcut_norm", nn::BatchNorm2d(to));
  }

  Tensor forward(Tensor const& x) {
    auto const h = at::relu(norm1_->forward(conv1_->forward(x)));
    auto const y = norm2_->forward(conv2_->forward(h));
    return at::relu(y + (shortcut_ ? shortcut_norm_->forward(shortcut_->forward(x)) : x));
  }

  static nn::Conv2d convolution(std::int64_t from, std::int64_t to, std::int64_t kernel,
                                std::int64_t stride) {
    return nn::Conv2d(
        nn::Conv2dOptions(from, to, kernel).stride(stride).padding(kernel / 2).bias(false));
  }

 private:
  nn::Conv2d conv1_;
  nn::BatchNorm2d norm1_;
  nn::Conv2d conv2_;
  nn::BatchNorm2d norm2_;
  nn::Conv2d shortcut_{nullptr};
  nn::BatchNorm2d shortcut_norm_{nullptr};
};
TORCH_MODULE(BasicBlock);

/// ResNet-18 in the form for 32x32 images (3x3 stem, no pooling before the stages) with nf channels
/// in the first stage; features are the mean over the last map, 8 nf wide. With nf = 20 and 100
/// outputs: 1,109,240 parameters.
/// @code
///   pawl::SlimResNet18 net(3, 10, pawl::SlimResNet18Options{}, pawl::Seed{1});
/// @endcode
class SlimResNet18Impl : public nn::Module {
 public:
  explicit SlimResNet18Impl(std::int64_t channels, std::int64_t outputs,
                            SlimResNet18Options options = {}, Seed seed = {})
      : nn::Module("slim_resnet18") {
    check_options(options, "slim_resnet18");
    check_sizes("slim_resnet18", {channels}, outputs);
    ConstructionScope scope;
    auto width = options.nf;
    stem_ = register_module("stem", BasicBlockImpl::convolution(channels, width, 3, 1));
    stem_norm_ = register_module("stem_norm", nn::BatchNorm2d(width));
    for (std::int64_t stage = 0; stage < 4; ++stage) {
      auto const next = options.nf << stage;
      add_block(width, next, stage == 0 ? 1 : 2);
      add_block(next, next, 1);
      width = next;
    }
    output_ = make_output(options.head, width, outputs, options.tasks, seed, options.init);
    register_module("head", output_.module);
    initialise(*this, options.init, seed);
  }

  /// Logits [N, outputs] of images [N, C, H, W].
  Tensor forward(Tensor const& x) { return output_.forward(features(x)); }

  /// What the head sees [N, 8 nf].
  Tensor features(Tensor const& x) {
    auto h = at::relu(stem_norm_->forward(stem_->forward(x)));
    for (auto& block : blocks_) h = block->forward(h);
    return h.mean({2, 3});
  }

 private:
  void add_block(std::int64_t from, std::int64_t to, std::int64_t stride) {
    auto const name = "block" + std::to_string(blocks_.size());
    blocks_.push_back(register_module(name, BasicBlock(from, to, stride)));
  }

  nn::Conv2d stem_{nullptr};
  nn::BatchNorm2d stem_norm_{nullptr};
  std::vector<BasicBlock> blocks_;
  OutputLayer output_;
};
TORCH_MODULE(SlimResNet18);

inline Model SlimResNet18Options::build(std::vector<std::int64_t> const& input_shape,
                                        std::int64_t outputs, std::int64_t number_of_tasks,
                                        Seed seed) const {
  require(input_shape.size() == 3,
          {"slim_resnet18: rows have shape ", c10::IntArrayRef(input_shape),
           " but must be images [C, H, W]; use the mlp"});
  auto options = *this;
  options.tasks = number_of_tasks;
  return SlimResNet18(input_shape[0], outputs, options, seed);
}

}  // namespace v0
}  // namespace pawl
