// A training step of networks as one writes them, with a forward of their own: through the learner
// against the same loop by hand with LibTorch and `torch::optim`. Rows are images of which a fifth
// is not black, gathered as bytes and scaled to float. After an epoch both must give the same
// logits, but for rounding (not with dropout, whose noise differs, nor with Adam, whose first step
// goes by the signs of gradients). Floor: the forward passes
// alone, without a graph, by LibTorch.
//
//   pawl-micro --benchmark_filter=module

#include <memory>
#include <type_traits>
#include <vector>

#include "pawl/core/learner.hpp"
#include "pawl/optimizers/adam.hpp"
#include "sides.hpp"
#include "subjects.hpp"

#include <torch/nn/functional/activation.h>
#include <torch/nn/modules/dropout.h>
#include <torch/optim/adam.h>
#include <torch/optim/sgd.h>

namespace {

using torch::Tensor;
namespace nn = torch::nn;
namespace functional = torch::nn::functional;

using micro::Perceptron;

struct Residual : Perceptron {
  Tensor forward(Tensor const& x) {
    auto const h = first(x.flatten(1)).relu();
    return last(h + functional::gelu(second(h)));
  }
};

struct Dropout : Perceptron {
  nn::Dropout drop{register_module("drop", nn::Dropout(0.5))};
  Tensor forward(Tensor const& x) {
    return last(drop(second(drop(first(x.flatten(1)).relu())).relu()));
  }
};

/// Beside normalisation, biases have no gradient but noise, so there are none.
struct BatchNorm : nn::Module {
  nn::Linear first{register_module("first", nn::Linear(nn::LinearOptions(784, 400).bias(false)))};
  nn::Linear second{register_module("second", nn::Linear(nn::LinearOptions(400, 400).bias(false)))};
  nn::Linear last{register_module("last", nn::Linear(400, 10))};
  nn::BatchNorm1d norms[2]{register_module("norm1", nn::BatchNorm1d(400)),
                           register_module("norm2", nn::BatchNorm1d(400))};
  Tensor forward(Tensor const& x) {
    return last(norms[1](second(norms[0](first(x.flatten(1))).relu())).relu());
  }
};

/// Two convolutions of 3x3 with batch normalisation.
struct Convolutions : nn::Module {
  static nn::Conv2dOptions convolution(std::int64_t in, std::int64_t out) {
    return nn::Conv2dOptions(in, out, 3).padding(1).bias(false);
  }
  nn::Conv2d first{register_module("first", nn::Conv2d(convolution(1, 32)))};
  nn::Conv2d second{register_module("second", nn::Conv2d(convolution(32, 64)))};
  nn::BatchNorm2d norms[2]{register_module("norm1", nn::BatchNorm2d(32)),
                           register_module("norm2", nn::BatchNorm2d(64))};
  nn::Linear last{register_module("last", nn::Linear(64 * 49, 10))};
  Tensor forward(Tensor const& x) {
    auto const h = micro::LeNet::halved(norms[0](first(x)).relu());
    return last(micro::LeNet::halved(norms[1](second(h)).relu()).flatten(1));
  }
};

/// A convolution of 5x5 with strides, and the mean over its pixels.
struct Averaged : nn::Module {
  nn::Conv2d first{register_module("first", nn::Conv2d(nn::Conv2dOptions(1, 48, 5).stride(2)))};
  nn::Linear last{register_module("last", nn::Linear(48, 10))};
  Tensor forward(Tensor const& x) {
    return last(at::adaptive_avg_pool2d(first(x).relu(), {1, 1}).flatten(1));
  }
};

/// One convolution of 3x3, whose images become rows as they are.
struct Shallow : nn::Module {
  nn::Conv2d first{register_module("first", nn::Conv2d(nn::Conv2dOptions(1, 32, 3)))};
  nn::Linear last{register_module("last", nn::Linear(32 * 26 * 26, 10))};
  Tensor forward(Tensor const& x) { return last(first(x).relu().flatten(1)); }
};

// LeNet and the two convolutions with `view`, as in many a tutorial: of the inputs, and behind the
// convolutions.

struct ViewingLeNet : micro::LeNet {
  Tensor forward(Tensor const& x) {
    auto const h = halved(second(halved(first(x.view({-1, 1, 28, 28})).relu())).relu());
    return last(fourth(third(h.view({-1, 400})).relu()).relu());
  }
};

struct ViewingConvolutions : Convolutions {
  Tensor forward(Tensor const& x) {
    auto const h = micro::LeNet::halved(norms[0](first(x.view({-1, 1, 28, 28}))).relu());
    return last(micro::LeNet::halved(norms[1](second(h)).relu()).view({-1, 64 * 49}));
  }
};

struct Sgd {
  pawl::Sgd ours{.lr = 0.01};
  using Theirs = torch::optim::SGD;
  torch::optim::SGDOptions options = torch::optim::SGDOptions(0.01);
};
struct Adam {
  pawl::Adam ours{.lr = 0.001};
  using Theirs = torch::optim::Adam;
  torch::optim::AdamOptions options{0.001};
};

template <class Net, class Kind>
void module(benchmark::State& state) {
  auto const batch = state.range(0), rows = batch < 100 ? 640 : 10 * batch;
  auto const experience = micro::random_images(rows, micro::on_black, {1, 28, 28});
  auto const all = experience.train.read(torch::arange(rows));

  auto const ours = std::make_shared<Net>(), theirs = std::make_shared<Net>();
  auto const parameters = theirs->parameters();
  {
    torch::NoGradGuard const no_graph;
    for (std::size_t i = 0; i < parameters.size(); ++i) parameters[i].copy_(ours->parameters()[i]);
  }
  Kind kind;
  typename Kind::Theirs optimizer(parameters, kind.options);
  auto const inputs = [&](Tensor const& positions) {
    return all.stored.index_select(0, positions).to(torch::kFloat32).mul_(1 / 255.);
  };
  auto const order = torch::arange(rows);
  auto const by_hand = [&](std::int64_t end) {
    for (std::int64_t begin = 0; begin < end; begin += batch) {
      auto const positions = order.slice(0, begin, begin + batch);
      auto const y = all.labels.index_select(0, positions);
      auto const loss = at::cross_entropy_loss(theirs->forward(inputs(positions)), y);
      optimizer.zero_grad();
      loss.backward();
      benchmark::DoNotOptimize(loss.template item<float>());
      optimizer.step();
    }
  };
  auto const x = inputs(order.slice(0, 0, batch));
  auto const forward = [&] {
    torch::NoGradGuard const no_graph;
    for (std::int64_t i = 0; i < rows / batch; ++i) {
      benchmark::DoNotOptimize(theirs->forward(x).data_ptr());
    }
  };

  pawl::Learner learner{ours, kind.ours};
  pawl::Training const training{.batch_size = batch, .shuffle = false};
  at::set_num_threads(1);
  auto first = experience;
  first.train = first.train.select(order.slice(0, 0, batch));
  learner.fit(first, training), by_hand(batch);
  auto const logits = [&](Net& net) {
    torch::NoGradGuard const no_graph;
    return net.forward(x).clone();
  };
  std::vector<Tensor> const after{logits(*ours)}, expected{logits(*theirs)};
  micro::compare(
      state, {.operations = static_cast<double>(rows / batch)},
      [&] { learner.fit(experience, training); }, [&] { by_hand(rows); }, forward);
  auto const comparable = !std::is_same_v<Net, Dropout> && std::is_same_v<Kind, Sgd>;
  if (comparable) micro::expect_same(state, after, expected, 1e-4);
}

void batches(benchmark::internal::Benchmark* benchmark) {
  benchmark->ArgName("batch")->Arg(10)->Arg(128);
  micro::turns<11>(benchmark);
}

BENCHMARK_TEMPLATE(module, Perceptron, Sgd)->Apply(batches);
BENCHMARK_TEMPLATE(module, Residual, Sgd)->Apply(batches);
BENCHMARK_TEMPLATE(module, Dropout, Sgd)->Apply(batches);
BENCHMARK_TEMPLATE(module, BatchNorm, Sgd)->Apply(batches);
BENCHMARK_TEMPLATE(module, micro::LeNet, Sgd)->Apply(batches);
BENCHMARK_TEMPLATE(module, Convolutions, Sgd)->Apply(batches);
BENCHMARK_TEMPLATE(module, Averaged, Sgd)->Apply(batches);
BENCHMARK_TEMPLATE(module, Shallow, Sgd)->Apply(batches);
BENCHMARK_TEMPLATE(module, ViewingLeNet, Sgd)->Apply(batches);
BENCHMARK_TEMPLATE(module, ViewingConvolutions, Sgd)->Apply(batches);
BENCHMARK_TEMPLATE(module, Perceptron, Adam)->Apply(batches);
BENCHMARK_TEMPLATE(module, BatchNorm, Adam)->Apply(batches);
BENCHMARK_TEMPLATE(module, Convolutions, Adam)->Apply(batches);

}  // namespace
