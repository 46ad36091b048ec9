// One training step through the learner against the same loop written by hand with LibTorch:
// MLP 784-400-400-10, batch 10, plain SGD, one thread, rows gathered as bytes and scaled to float.
// Both run in turns in one process, 200 steps each, and must end with the same weights.
//
//   pawl-micro --benchmark_filter=step
//
// Read the median of `ratio` (learner / by hand); absolute times move with the machine.

#include <chrono>
#include <vector>

#include "pawl/core/learner.hpp"
#include "pawl/models/mlp.hpp"

#include <benchmark/benchmark.h>
#include <torch/optim/sgd.h>

namespace {

constexpr std::int64_t rows = 2000, batch = 10;

struct Data {
  torch::Tensor x, y;  ///< [N, 784] uint8, [N] int64
};

Data random_bytes() {
  pawl::NoiseScope noise(pawl::Generator(1));
  return {torch::randint(256, {rows, 784}, torch::kUInt8), torch::randint(10, {rows})};
}

pawl::Mlp perceptron() {
  return pawl::Mlp(784, 10, pawl::MlpOptions{.hidden = {400, 400}}, pawl::Seed{1});
}

template <class F>
double microseconds_per_step(F&& run) {
  auto const start = std::chrono::steady_clock::now();
  run();
  std::chrono::duration<double, std::micro> const passed = std::chrono::steady_clock::now() - start;
  return passed.count() * batch / rows;
}

/// The loop as one would write it for this network alone.
struct ByHand {
  Data data = random_bytes();
  pawl::Mlp source = perceptron();
  torch::nn::Linear first{784, 400}, second{400, 400}, third{400, 10};
  std::vector<torch::Tensor> parameters;
  std::unique_ptr<torch::optim::SGD> sgd;

  ByHand() {
    torch::NoGradGuard no_grad;
    for (auto& layer : {first, second, third}) {
      for (auto const& p : layer->parameters()) parameters.push_back(p);
    }
    for (std::size_t i = 0; i < parameters.size(); ++i)
      parameters[i].copy_(source->parameters()[i]);
    sgd = std::make_unique<torch::optim::SGD>(parameters, torch::optim::SGDOptions(0.01));
  }

  void epoch() {
    auto const order = torch::arange(rows);
    for (std::int64_t begin = 0; begin < rows; begin += batch) {
      auto const positions = order.slice(0, begin, begin + batch);
      auto const x = data.x.index_select(0, positions).to(torch::kFloat32).mul_(1 / 255.);
      auto const y = data.y.index_select(0, positions);
      auto h = torch::relu(first->forward(x));
      h = torch::relu(second->forward(h));
      auto const loss = at::cross_entropy_loss(third->forward(h), y);
      sgd->zero_grad();
      loss.backward();
      benchmark::DoNotOptimize(loss.item<float>());
      sgd->step();
    }
  }
};

pawl::Experience experience_of(Data const& data) {
  auto experience = pawl::make_experience(data.x, data.y);
  experience.train.normalise.scale = 1 / 255.;
  return experience;
}

void step(benchmark::State& state) {
  at::set_num_threads(1);
  ByHand by_hand;
  pawl::Learner learner{perceptron(), pawl::Sgd{.lr = 0.01}};
  auto const experience = experience_of(by_hand.data);
  pawl::Training const training{.batch_size = batch, .shuffle = false};
  by_hand.epoch(), learner.fit(experience, training);  // warm up
  double hand = 0, pawl = 0, count = 0;
  for (auto _ : state) {
    hand += microseconds_per_step([&] { by_hand.epoch(); });
    pawl += microseconds_per_step([&] { learner.fit(experience, training); });
    ++count;
  }
  for (std::size_t i = 0; i < by_hand.parameters.size(); ++i) {
    if (!torch::equal(by_hand.parameters[i], learner.model()->parameters()[i])) {
      state.SkipWithError("the learner and the loop by hand ended with different weights");
    }
  }
  state.counters["learner_us"] = pawl / count;
  state.counters["by_hand_us"] = hand / count;
  state.counters["ratio"] = pawl / hand;
}
BENCHMARK(step)->Iterations(4)->Repetitions(15)->ReportAggregatesOnly();

}  // namespace
