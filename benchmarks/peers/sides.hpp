#pragma once

// What is learned, by hand and with pawl.

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "penalty_loops.hpp"
#include "replay_loops.hpp"
#include "tasks.hpp"

#include <pawl/models/mlp.hpp>
#include <pawl/models/slim_resnet18.hpp>

namespace peers {

using Clock = std::chrono::steady_clock;

inline double seconds(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

/// Where the time of an experience went.
struct Seconds {
  double steps, end;
};

/// One side of a comparison: learns an experience of a task, and predicts.
struct Side {
  std::function<Seconds(std::size_t)> learn;
  std::function<Tensor(Tensor const&)> logits;  ///< of inputs, in eval mode
};

struct Work {
  std::string name, task;
  std::int64_t batch;
  double lr;
  std::function<Side(Task const&, Work const&, std::uint64_t seed)> by_hand, pawl;
};

/// `network` makes a network from a seed.
template <class Loop>
auto by_hand(std::function<Network(std::uint64_t)> network = [](auto) { return mlp(); }) {
  return [network](Task const& task, Work const& work, std::uint64_t seed) -> Side {
    torch::manual_seed(seed);
    auto const loop = std::make_shared<Loop>(network(seed), work.lr);
    return {[loop, &task, &work](std::size_t e) -> Seconds {
              auto const start = Clock::now();
              loop->steps(task.experiences[e], work.batch);
              auto const stepped = Clock::now();
              loop->finish(task.experiences[e]);
              return {seconds(start, stepped), seconds(stepped, Clock::now())};
            },
            [loop](Tensor const& x) {
              loop->net->eval();
              auto const z = loop->net->forward(x);
              loop->net->train();
              return z;
            }};
  };
}

/// Notes when the last step was over.
struct LastStep {
  static constexpr bool only_losses = true;
  Clock::time_point time;
  void step(pawl::Context const&) { time = Clock::now(); }
};

/// `model` makes a module from a seed.
template <class Model, class... S>
auto with_pawl(Model model, S... strategies) {
  return [=](Task const& task, Work const& work, std::uint64_t seed) -> Side {
    using Learner = decltype(pawl::Learner{model(pawl::Seed{}), pawl::Sgd{}, strategies...});
    auto const learner =
        std::make_shared<Learner>(model(pawl::Seed{seed}), pawl::Sgd{.lr = work.lr}, strategies...);
    learner->seed(pawl::Seed{seed});
    return {[learner, &task, &work](std::size_t e) -> Seconds {
              LastStep last;
              auto const& experience = task.stream[static_cast<std::int64_t>(e)];
              auto const start = Clock::now();
              learner->fit(experience, {.batch_size = work.batch}, last);
              return {seconds(start, last.time), seconds(last.time, Clock::now())};
            },
            [learner](Tensor const& x) { return learner->scores(x); }};
  };
}

inline std::vector<Work> all_works() {
  auto const mlp = [](pawl::Seed seed) {
    return pawl::Mlp(784, 10, pawl::MlpOptions{.hidden = {400, 400}}, seed);
  };
  auto const cnn = [](pawl::Seed seed) {
    return pawl::SlimResNet18(3, 10, pawl::SlimResNet18Options{}, seed);
  };
  auto const cnn_by_hand = [cnn](std::uint64_t seed) { return Network(cnn(pawl::Seed{seed})); };
  pawl::Ewc ewc;
  ewc.strength = 20;
  ewc.fisher = {.labels = pawl::FisherLabels::empirical, .samples = 200};
  pawl::Replay const replay{.batch = 10};
  return {
      {"er", "split_mnist", 10, 0.05, by_hand<Er>(), with_pawl(mlp, replay)},
      {"ewc", "permuted_mnist", 128, 0.1, by_hand<Ewc>(), with_pawl(mlp, ewc)},
      {"naive", "split_mnist", 128, 0.05, by_hand<Naive>(), with_pawl(mlp)},
      {"lwf", "split_mnist", 128, 0.05, by_hand<Lwf>(), with_pawl(mlp, pawl::Lwf{})},
      {"si", "split_mnist", 128, 0.05, by_hand<Si>(), with_pawl(mlp, pawl::Si{})},
      {"a_gem", "split_mnist", 128, 0.05, by_hand<AGem>(),
       with_pawl(mlp, pawl::AGem{.memory = pawl::Reservoir{}, .batch = 128})},
      {"derpp", "split_mnist", 128, 0.05, by_hand<DerPlusPlus>(),
       with_pawl(mlp, pawl::DerPlusPlus{})},
      {"er_cnn", "split_cifar10", 10, 0.03, by_hand<Er>(cnn_by_hand), with_pawl(cnn, replay)},
  };
}

}  // namespace peers
