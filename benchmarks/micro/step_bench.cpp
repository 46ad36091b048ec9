// One training step through the learner against the same loop written by hand with LibTorch: MLP
// 784-400-400-10, plain SGD, rows gathered as bytes and scaled to float. After an epoch both must
// have the same weights, but for rounding: products of few rows are pawl's own. Floor: LibTorch's.
//
//   pawl-micro --benchmark_filter=step

#include <memory>
#include <vector>

#include "pawl/core/learner.hpp"
#include "sides.hpp"
#include "subjects.hpp"

#include <torch/optim/sgd.h>

namespace {

constexpr std::int64_t rows = 1280;

/// The loop as one would write it for this network alone.
struct ByHand {
  explicit ByHand(std::int64_t rows_per_step) : batch(rows_per_step) {
    torch::NoGradGuard no_grad;
    for (auto& layer : {first, second, third}) {
      for (auto const& p : layer->parameters()) parameters.push_back(p);
    }
    auto const source = micro::perceptron();
    for (std::size_t i = 0; i < parameters.size(); ++i)
      parameters[i].copy_(source->parameters()[i]);
    sgd = std::make_unique<torch::optim::SGD>(parameters, torch::optim::SGDOptions(0.01));
  }

  void epoch(torch::Tensor const& bytes, torch::Tensor const& labels) {
    auto const order = torch::arange(rows);
    for (std::int64_t begin = 0; begin < rows; begin += batch) {
      auto const positions = order.slice(0, begin, begin + batch);
      auto const x = bytes.index_select(0, positions).to(torch::kFloat32).mul_(1 / 255.);
      auto const y = labels.index_select(0, positions);
      auto h = torch::relu(first->forward(x));
      h = torch::relu(second->forward(h));
      auto const loss = at::cross_entropy_loss(third->forward(h), y);
      sgd->zero_grad();
      loss.backward();
      benchmark::DoNotOptimize(loss.item<float>());
      sgd->step();
    }
  }

  std::int64_t batch;
  torch::nn::Linear first{784, 400}, second{400, 400}, third{400, 10};
  std::vector<torch::Tensor> parameters;
  std::unique_ptr<torch::optim::SGD> sgd;
};

void step(benchmark::State& state) {
  auto const batch = state.range(0), steps = rows / batch;
  auto const experience = micro::random_images(rows);
  auto const all = experience.train.read(torch::arange(rows));
  ByHand by_hand(batch);
  pawl::Learner learner{micro::perceptron(), pawl::Sgd{.lr = 0.01}};
  pawl::Training const training{.batch_size = batch, .shuffle = false};
  auto const copies = [](auto const& parameters) {
    std::vector<torch::Tensor> all;
    for (auto const& p : parameters) all.push_back(p.detach().clone());
    return all;
  };
  at::set_num_threads(1);
  learner.fit(experience, training), by_hand.epoch(all.stored, all.labels);
  auto const ours = copies(learner.model()->parameters()), theirs = copies(by_hand.parameters);
  micro::Products products(batch);
  micro::compare(
      state,
      {.flops = products.forward_flops() + products.backward_flops(),
       .operations = static_cast<double>(steps)},
      [&] { learner.fit(experience, training); }, [&] { by_hand.epoch(all.stored, all.labels); },
      [&] {
        for (std::int64_t i = 0; i < steps; ++i) products.forward(), products.backward();
      });
  micro::expect_same(state, ours, theirs, 1e-4);
}
BENCHMARK(step)->ArgName("batch")->Arg(10)->Arg(128)->Apply(micro::turns<21>);

}  // namespace
