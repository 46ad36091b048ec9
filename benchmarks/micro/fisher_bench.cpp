// The exact empirical Fisher information of the MLP 784-400-400-10: in batches on the unmodified
// module against autograd one sample at a time (`fisher_by_loop`), and against a plain forward and
// backward pass in batches over the same rows (`fisher_by_plain_pass`, which computes less: there
// `ratio` tells which share of its speed is kept). Per sample, on 2,048 and on 4,096 rows; every
// call also compares three samples with the loop. Images are filled with random numbers (`bright`),
// or a fifth of each, as of written digits (`on_black`). Floor: the matrix products.
//
//   pawl-micro --benchmark_filter=fisher

#include <functional>
#include <vector>

#include "pawl/importance/fisher.hpp"
#include "sides.hpp"
#include "subjects.hpp"

namespace {

using torch::Tensor;

constexpr std::int64_t chunk = 256;

struct Subject {
  std::int64_t rows;
  double filled = 1;
  pawl::Dataset data = micro::random_images(rows, filled).train;
  pawl::Rows all = data.read(torch::arange(rows));
  Tensor inputs = data.normalise(all.stored, torch::kFloat32);
  pawl::Model model = micro::perceptron();
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
};

void compare(benchmark::State& state, Subject& subject, std::function<void()> const& other) {
  micro::Products products(chunk);
  micro::compare(
      state,
      {.flops = (products.forward_flops() + products.backward_flops()) / chunk,
       .operations = static_cast<double>(subject.rows)},
      [&] { subject.fisher(); }, other,
      [&] {
        for (std::int64_t i = 0; i < subject.rows; i += chunk) {
          products.forward(), products.backward();
        }
      });
}

void fisher_by_loop(benchmark::State& state, double filled) {
  Subject subject{.rows = 2048, .filled = filled};
  std::vector<Tensor> sum;
  compare(state, subject, [&] {
    sum.clear();
    for (auto const& p : subject.arena.parameters()) sum.push_back(torch::zeros_like(p));
    for (std::int64_t i = 0; i < subject.rows; ++i) {
      auto const g = subject.gradients(i, i + 1);
      for (std::size_t k = 0; k < g.size(); ++k) {
        sum[k].addcmul_(g[k], g[k], 1. / static_cast<double>(subject.rows));
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
BENCHMARK_CAPTURE(fisher_by_loop, bright, 1)->Apply(micro::turns<11>);
BENCHMARK_CAPTURE(fisher_by_loop, on_black, micro::on_black)->Apply(micro::turns<11>);

void fisher_by_plain_pass(benchmark::State& state, double filled) {
  Subject subject{.rows = 4096, .filled = filled};
  compare(state, subject, [&] {
    for (std::int64_t i = 0; i < subject.rows; i += chunk) {
      benchmark::DoNotOptimize(subject.gradients(i, i + chunk));
    }
  });
}
BENCHMARK_CAPTURE(fisher_by_plain_pass, bright, 1)->Apply(micro::turns<11>);
BENCHMARK_CAPTURE(fisher_by_plain_pass, on_black, micro::on_black)->Apply(micro::turns<11>);

}  // namespace
