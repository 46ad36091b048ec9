// The empirical Fisher information of a network: in batches on the unmodified module against
// autograd one sample at a time (`fisher_by_loop`), and against a plain forward and backward pass
// in batches over the same rows (`fisher_by_plain_pass`, which computes less: there `ratio` tells
// which share of its speed is kept). Per sample, on many rows; every call also compares three
// samples with the loop. The MLP 784-400-400-10 sees images that are filled with random numbers
// (`bright`), or a fifth of each, as of written digits (`on_black`). Floor: its matrix products; of
// other networks, forward passes alone, without a graph.
//
// `importance_of_kind`: of the same MLP on images on black, the other labels of the Fisher, and the
// sensitivity of MAS, against one sample at a time as pawl does it where it has to.
//
//   pawl-micro --benchmark_filter=fisher

#include <functional>
#include <memory>
#include <vector>

#include "pawl/importance/fisher.hpp"
#include "pawl/importance/sensitivity.hpp"
#include "sides.hpp"
#include "subjects.hpp"

#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/normalization.h>

namespace {

namespace nn = torch::nn;
using torch::Tensor;

constexpr std::int64_t chunk = 256;

struct Subject {
  pawl::Model model;
  pawl::Dataset data;
  pawl::Rows all = data.read(torch::arange(data.size()));
  Tensor inputs = data.normalise(all.stored, torch::kFloat32);
  pawl::Arena arena{*model.module};
  bool is_perceptron = false;
  Tensor result{};

  void fisher() {
    result = pawl::fisher(model, arena, data, {.labels = pawl::FisherLabels::empirical});
  }
  std::vector<Tensor> gradients(std::int64_t begin, std::int64_t end) const {
    auto const z = model.forward(inputs.slice(0, begin, end));
    auto const loss = at::cross_entropy_loss(z, all.y.slice(0, begin, end), {}, at::Reduction::Sum);
    return torch::autograd::grad({loss}, arena.parameters());
  }
  void forward() const {
    torch::NoGradGuard const no_graph;
    for (std::int64_t i = 0; i < data.size(); i += chunk) {
      benchmark::DoNotOptimize(model.forward(inputs.slice(0, i, i + chunk)).data_ptr());
    }
  }
};

Subject perceptron(std::int64_t rows, double filled) {
  Subject subject{micro::perceptron(), micro::random_images(rows, filled).train};
  subject.is_perceptron = true;
  return subject;
}
/// The same MLP as one writes it, no chain of layers that pawl knows.
Subject own_forward(std::int64_t rows) {
  torch::manual_seed(1);
  Subject subject{std::make_shared<micro::Perceptron>(),
                  micro::random_images(rows, micro::on_black).train};
  subject.is_perceptron = true;
  return subject;
}
Subject lenet(std::int64_t rows) {
  torch::manual_seed(1);
  return {std::make_shared<micro::LeNet>(), micro::random_images(rows, 1, {1, 28, 28}).train};
}

/// The MLP with a norm of its features before each activation.
Subject with_layer_norm(std::int64_t rows) {
  torch::manual_seed(1);
  auto const norm = [] { return nn::LayerNorm(nn::LayerNormOptions({400})); };
  nn::Sequential net(nn::Linear(784, 400), norm(), nn::ReLU(), nn::Linear(400, 400), norm(),
                     nn::ReLU(), nn::Linear(400, 10));
  return {net, micro::random_images(rows, micro::on_black).train};
}
/// Two convolutions with norms of groups of channels.
Subject with_group_norm(std::int64_t rows) {
  torch::manual_seed(1);
  auto const convolution = [](std::int64_t from, std::int64_t to) {
    return nn::Conv2d(nn::Conv2dOptions(from, to, 3).stride(2).padding(1));
  };
  auto const norm = [](std::int64_t channels) { return nn::GroupNorm(4, channels); };
  nn::Sequential net(convolution(1, 16), norm(16), nn::ReLU(), convolution(16, 32), norm(32),
                     nn::ReLU(), nn::Flatten(), nn::Linear(1568, 10));
  return {net, micro::random_images(rows, 1, {1, 28, 28}).train};
}
Subject slim_resnet18(std::int64_t rows) {
  auto const pixels = torch::randint(256, {rows, 3, 32, 32}, torch::kUInt8);
  auto experience = pawl::make_experience(pixels, torch::arange(rows) % 10);
  experience.train.normalise.scale = 1 / 255.;
  auto net = micro::slim_resnet18();
  net->eval();  // by hand, too, its norms are to use their statistics
  return {net, experience.train};
}

void compare(benchmark::State& state, Subject& subject, std::function<void()> const& other) {
  auto const rows = static_cast<double>(subject.data.size());
  if (!subject.is_perceptron) {
    return micro::compare(
        state, {.operations = rows}, [&] { subject.fisher(); }, other, [&] { subject.forward(); });
  }
  micro::Products products(chunk);
  micro::compare(
      state,
      {.flops = (products.forward_flops() + products.backward_flops()) / chunk, .operations = rows},
      [&] { subject.fisher(); }, other,
      [&] {
        for (std::int64_t i = 0; i < subject.data.size(); i += chunk) {
          products.forward(), products.backward();
        }
      });
}

void fisher_by_loop(benchmark::State& state, Subject subject) {
  auto const rows = subject.data.size();
  std::vector<Tensor> sum;
  compare(state, subject, [&] {
    sum.clear();
    for (auto const& p : subject.arena.parameters()) sum.push_back(torch::zeros_like(p));
    for (std::int64_t i = 0; i < rows; ++i) {
      auto const g = subject.gradients(i, i + 1);
      for (std::size_t k = 0; k < g.size(); ++k) {
        sum[k].addcmul_(g[k], g[k], 1. / static_cast<double>(rows));
      }
    }
  });
  std::vector<Tensor> ours;
  for (std::size_t i = 0; i < sum.size(); ++i) {
    ours.push_back(subject.arena.parameter_view(subject.result, i));
  }
  // Where a ReLU's input is 0 but for rounding, a sample may count on one side and not on the
  // other.
  micro::expect_same(state, ours, sum, 1e-3);
}
BENCHMARK_CAPTURE(fisher_by_loop, bright, perceptron(2048, 1))->Apply(micro::turns<11>);
BENCHMARK_CAPTURE(fisher_by_loop, on_black, perceptron(2048, micro::on_black))
    ->Apply(micro::turns<11>);
BENCHMARK_CAPTURE(fisher_by_loop, own_forward, own_forward(2048))->Apply(micro::turns<11>);
BENCHMARK_CAPTURE(fisher_by_loop, layer_norm, with_layer_norm(1024))->Apply(micro::turns<11>);
BENCHMARK_CAPTURE(fisher_by_loop, lenet, lenet(1024))->Apply(micro::turns<11>);
BENCHMARK_CAPTURE(fisher_by_loop, group_norm, with_group_norm(512))->Apply(micro::turns<11>);
BENCHMARK_CAPTURE(fisher_by_loop, slim_resnet18, slim_resnet18(32))->Apply(micro::turns<5>);

void fisher_by_plain_pass(benchmark::State& state, Subject subject) {
  compare(state, subject, [&] {
    for (std::int64_t i = 0; i < subject.data.size(); i += chunk) {
      benchmark::DoNotOptimize(subject.gradients(i, i + chunk));
    }
  });
}
BENCHMARK_CAPTURE(fisher_by_plain_pass, bright, perceptron(4096, 1))->Apply(micro::turns<11>);
BENCHMARK_CAPTURE(fisher_by_plain_pass, on_black, perceptron(4096, micro::on_black))
    ->Apply(micro::turns<11>);
BENCHMARK_CAPTURE(fisher_by_plain_pass, own_forward, own_forward(4096))->Apply(micro::turns<11>);
BENCHMARK_CAPTURE(fisher_by_plain_pass, layer_norm, with_layer_norm(4096))->Apply(micro::turns<11>);
BENCHMARK_CAPTURE(fisher_by_plain_pass, lenet, lenet(4096))->Apply(micro::turns<11>);
BENCHMARK_CAPTURE(fisher_by_plain_pass, group_norm, with_group_norm(2048))->Apply(micro::turns<11>);
BENCHMARK_CAPTURE(fisher_by_plain_pass, slim_resnet18, slim_resnet18(256))->Apply(micro::turns<5>);

using Importance = std::function<Tensor(pawl::Probe const&, pawl::Dataset const&)>;

Importance fisher_with(pawl::FisherLabels labels) {
  return [labels](pawl::Probe const& probe, pawl::Dataset const& data) {
    return pawl::fisher(probe, data, {.labels = labels});
  };
}
Importance sensitivity() {
  return [](pawl::Probe const& probe, pawl::Dataset const& data) {
    return pawl::sensitivity(probe, data, {});
  };
}

void importance_of_kind(benchmark::State& state, Importance const& importance) {
  auto const subject = perceptron(2048, micro::on_black);
  auto const few = subject.data.select(torch::arange(256));
  auto const of = [&](bool batched, pawl::Dataset const& data) {
    return importance({.model = subject.model, .arena = subject.arena, .allow_batched = batched},
                      data);
  };
  micro::Products products(chunk);
  micro::compare(
      state, {.operations = 2048},
      [&] { benchmark::DoNotOptimize(of(true, subject.data).data_ptr()); },
      [&] {
        for (int i = 0; i < 8; ++i) benchmark::DoNotOptimize(of(false, few).data_ptr());
      },
      [&] {
        for (int i = 0; i < 8; ++i) products.forward(), products.backward();
      });
  micro::expect_same(state, {of(true, few)}, {of(false, few)}, 1e-3);
}
BENCHMARK_CAPTURE(importance_of_kind, exact, fisher_with(pawl::FisherLabels::exact))
    ->Apply(micro::turns<5>);
BENCHMARK_CAPTURE(importance_of_kind, sampled, fisher_with(pawl::FisherLabels::sampled))
    ->Apply(micro::turns<5>);
BENCHMARK_CAPTURE(importance_of_kind, predicted, fisher_with(pawl::FisherLabels::predicted))
    ->Apply(micro::turns<5>);
BENCHMARK_CAPTURE(importance_of_kind, sensitivity, sensitivity())->Apply(micro::turns<5>);

}  // namespace
