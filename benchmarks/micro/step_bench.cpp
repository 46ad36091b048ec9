// One training step through the learner against the same loop written by hand with LibTorch: MLP
// 784-400-400-10, plain SGD, rows gathered as bytes and scaled to float. After an epoch both must
// have the same weights, but for rounding: products of few rows are pawl's own. Floor: LibTorch's.
//
// `penalty_of_step` tells what EWC's penalty adds to such a step: `pawl_us` and `by_hand_us` are
// times of steps with it less times of steps without, `ratio` is that of the two; `step_us` is a
// step of pawl with the penalty, `of_steps` by hand / pawl of whole steps. By hand, autograd
// differentiates the penalty. There is no floor.
//
//   pawl-micro --benchmark_filter=step

#include <memory>
#include <vector>

#include "pawl/core/learner.hpp"
#include "pawl/strategies/quadratic_anchor.hpp"
#include "sides.hpp"
#include "subjects.hpp"

#include <torch/optim/sgd.h>

namespace {

constexpr std::int64_t rows = 1280;
constexpr double strength = 1;  // of the penalty

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
    auto const order = torch::arange(labels.size(0));
    for (std::int64_t begin = 0; begin < labels.size(0); begin += batch) {
      auto const positions = order.slice(0, begin, begin + batch);
      auto const x = bytes.index_select(0, positions).to(torch::kFloat32).mul_(1 / 255.);
      auto const y = labels.index_select(0, positions);
      auto h = torch::relu(first->forward(x));
      h = torch::relu(second->forward(h));
      auto loss = at::cross_entropy_loss(third->forward(h), y);
      if (!anchor.empty()) {
        auto penalty = torch::zeros({});
        for (std::size_t i = 0; i < parameters.size(); ++i) {
          penalty = penalty + (importance[i] * (parameters[i] - anchor[i]).pow(2)).sum();
        }
        loss = loss + strength / 2 * penalty;
      }
      sgd->zero_grad();
      loss.backward();
      benchmark::DoNotOptimize(loss.item<float>());
      sgd->step();
    }
  }

  /// From now on, adds a penalty on the way from where the weights are, or close to there.
  void keep() {
    for (auto const& p : parameters) {
      anchor.push_back(p.detach() - 0.01);
      importance.push_back(p.detach().square());
    }
  }

  std::int64_t batch;
  torch::nn::Linear first{784, 400}, second{400, 400}, third{400, 10};
  std::vector<torch::Tensor> parameters, anchor, importance;
  std::unique_ptr<torch::optim::SGD> sgd;
};

/// The same penalty, from the second experience on.
struct Keeps {
  static constexpr char const* name = "keeps";
  static constexpr bool elementwise = true, only_adds = true;
  pawl::QuadraticAnchor anchor{};

  void edit_gradient(pawl::Context& c) { anchor.pull(c, strength); }
  void end(pawl::Context& c, pawl::Experience const&) {
    if (anchor.weights.defined()) return;
    anchor.move(c, c.weights().square(), name);
    anchor.weights -= 0.01;
  }
};

std::vector<torch::Tensor> copies(std::vector<torch::Tensor> const& parameters) {
  std::vector<torch::Tensor> all;
  for (auto const& p : parameters) all.push_back(p.detach().clone());
  return all;
}

void step(benchmark::State& state) {
  auto const batch = state.range(0), steps = rows / batch;
  auto const experience = micro::random_images(rows);
  auto const all = experience.train.read(torch::arange(rows));
  ByHand by_hand(batch);
  pawl::Learner learner{micro::perceptron(), pawl::Sgd{.lr = 0.01}};
  pawl::Training const training{.batch_size = batch, .shuffle = false};
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

void penalty_of_step(benchmark::State& state) {
  auto const batch = state.range(0);
  auto const some = micro::random_images(rows / 4, micro::on_black);
  auto const many = micro::random_images(4 * rows, micro::on_black);
  ByHand plain(batch), kept(batch);
  pawl::Learner ours{micro::perceptron(), pawl::Sgd{.lr = 0.01}};
  pawl::Learner ours_kept{micro::perceptron(), pawl::Sgd{.lr = 0.01}, Keeps{}};
  // Microseconds per step.
  auto const fit = [&](auto& learner, pawl::Experience const& on) {
    pawl::Training const training{.batch_size = batch, .shuffle = false};
    auto const steps = static_cast<double>(on.train.size() / batch);
    return micro::microseconds(1, [&] { learner.fit(on, training); }) / steps;
  };
  auto const epoch = [&](ByHand& by_hand, pawl::Experience const& on) {
    auto const all = on.train.read(torch::arange(on.train.size()));
    auto const steps = static_cast<double>(on.train.size() / batch);
    return micro::microseconds(1, [&] { by_hand.epoch(all.stored, all.labels); }) / steps;
  };
  at::set_num_threads(1);
  fit(ours_kept, some), epoch(kept, some);
  kept.keep();
  fit(ours_kept, some), epoch(kept, some);
  auto const weights = copies(ours_kept.model()->parameters()), expected = copies(kept.parameters);
  fit(ours, many), epoch(plain, many);
  std::vector<double> step_of_ours, added, added_by_hand, of_steps;
  for (auto _ : state) {
    auto const without = fit(ours, many), with = fit(ours_kept, many);
    auto const by_hand_without = epoch(plain, many), by_hand_with = epoch(kept, many);
    step_of_ours.push_back(with);
    added.push_back(with - without);
    added_by_hand.push_back(by_hand_with - by_hand_without);
    of_steps.push_back(by_hand_with / with);
    state.SetIterationTime(with * 1e-6);
  }
  auto& counters = state.counters;
  counters["step_us"] = micro::median(step_of_ours);
  counters["of_steps"] = micro::median(of_steps);
  counters["pawl_us"] = micro::median(added);
  counters["by_hand_us"] = micro::median(added_by_hand);
  counters["ratio"] = micro::median(added_by_hand) / micro::median(added);
  micro::expect_same(state, weights, expected, 1e-4);
}
BENCHMARK(penalty_of_step)->ArgName("batch")->Arg(10)->Arg(20)->Arg(128)->Apply(micro::turns<21>);

}  // namespace
