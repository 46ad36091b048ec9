#pragma once

// What makes the two sides of a work: a loop by hand and a learner of pawl.

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>

#include "loop.hpp"
#include "works.hpp"

#include <pawl/core/learner.hpp>
#include <pawl/models/mlp.hpp>

namespace peers {

using Clock = std::chrono::steady_clock;

inline double seconds(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

/// A loop by hand as a side.
inline Side side_by_hand(std::shared_ptr<Loop> loop, Task const& task, Work const& work) {
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
}

/// `network` makes a network from a seed.
template <class Loop>
auto by_hand(std::function<Network(std::uint64_t)> network = [](auto) { return mlp(); }) {
  return [network](Task const& task, Work const& work, std::uint64_t seed) -> Side {
    torch::manual_seed(seed);
    return side_by_hand(
        std::make_shared<Loop>([network, seed] { return network(seed); }, Rule{.lr = work.lr}),
        task, work);
  };
}

/// Notes when the last step was over.
struct LastStep {
  static constexpr bool only_losses = true;
  Clock::time_point time;
  void step(pawl::Context const&) { time = Clock::now(); }
};

/// The network of peers::mlp.
inline pawl::Mlp own_mlp(pawl::Seed seed) {
  return pawl::Mlp(784, 10, pawl::MlpOptions{.hidden = {400, 400}}, seed);
}

/// A learner of pawl as a side.
template <class Learner>
Side side_with_pawl(std::shared_ptr<Learner> learner, Task const& task, Work const& work) {
  return {[learner, &task, &work](std::size_t e) -> Seconds {
            LastStep last;
            auto const& experience = task.stream[static_cast<std::int64_t>(e)];
            auto const start = Clock::now();
            learner->fit(experience, {.batch_size = work.batch}, last);
            return {seconds(start, last.time), seconds(last.time, Clock::now())};
          },
          [learner](Tensor const& x) { return learner->scores(x); }};
}

/// `model` makes a module from a seed.
template <class Model, class... S>
auto with_pawl(Model model, S... strategies) {
  return [=](Task const& task, Work const& work, std::uint64_t seed) -> Side {
    using Learner = decltype(pawl::Learner{model(pawl::Seed{}), pawl::Sgd{}, strategies...});
    auto const learner =
        std::make_shared<Learner>(model(pawl::Seed{seed}), pawl::Sgd{.lr = work.lr}, strategies...);
    learner->seed(pawl::Seed{seed});
    return side_with_pawl(learner, task, work);
  };
}

}  // namespace peers
