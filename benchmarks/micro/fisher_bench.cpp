// The exact empirical Fisher information of a network: in batches on the unmodified module against
// autograd one sample at a time (`fisher_by_loop`), and against a plain forward and backward pass
// in batches over the same rows (`fisher_by_plain_pass`, which computes less: there `ratio` tells
// which share of its speed is kept). Per sample, on many rows; every call also compares three
// samples with the loop. The MLP 784-400-400-10 sees images that are filled with random numbers
// (`bright`), or a fifth of each, as of written digits (`on_black`). Floor: its matrix products; of
// LeNet, forward passes alone, without a graph.
//
//   pawl-micro --benchmark_filter=fisher

#include <functional>
#include <memory>
#include <vector>

#include "pawl/importance/fisher.hpp"
#include "sides.hpp"
#include "subjects.hpp"

namespace {

using torch::Tensor;

constexpr std::int64_t chunk = 256;

struct Subject {
  pawl::Model model;
  pawl::Dataset data;
  pawl::Rows all = data.read(torch::arange(data.size()));
  Tensor inputs = data.normalise(all.stored, torch::kFloat32);
  pawl::Arena arena{*model.module};
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
  return {micro::perceptron(), micro::random_images(rows, filled).train};
}
Subject lenet(std::int64_t rows) {
  torch::manual_seed(1);
  return {std::make_shared<micro::LeNet>(), micro::random_images(rows, 1, {1, 28, 28}).train};
}

void compare(benchmark::State& state, Subject& subject, std::function<void()> const& other) {
  auto const rows = static_cast<double>(subject.data.size());
  if (subject.inputs.dim() > 2) {
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
BENCHMARK_CAPTURE(fisher_by_loop, lenet, lenet(1024))->Apply(micro::turns<11>);

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
BENCHMARK_CAPTURE(fisher_by_plain_pass, lenet, lenet(4096))->Apply(micro::turns<11>);

}  // namespace
