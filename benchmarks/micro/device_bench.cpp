// One training step on a GPU: what the learner replays against the same work asked for operation by
// operation by hand with LibTorch, and against the learner step by step. Rows lie on the GPU as
// bytes. `device_replay` is online experience replay: batch 10 and 10 drawn from a reservoir of
// 500. Floor: the matrix products of a step, asked for one by one. `device_fleet` is the same by
// many learners at once, whose steps are one graph (`pawl_us`), in threads of their own
// (`by_hand_us`), and by one learner alone (`floor_us`). Without a GPU there is none of these.
//
//   pawl-micro --benchmark_filter=device

#include <cstddef>
#include <optional>
#include <random>
#include <thread>
#include <vector>

#include "pawl/core/learner.hpp"
#include "pawl/data/pad.hpp"
#include "pawl/strategies/replay.hpp"
#include "sides.hpp"
#include "subjects.hpp"

#include <ATen/Context.h>
#include <torch/cuda.h>
#include <torch/optim/sgd.h>

namespace {

using torch::Tensor;

constexpr std::int64_t rows = 12'800;

pawl::Experience on_gpu(pawl::Experience experience) {
  auto const bytes = pawl::read_all(*experience.train.source).to(torch::kCUDA);
  auto const& labels = experience.train.labels;
  experience.train.source = experience.test.source = pawl::resident(bytes, labels);
  return experience;
}

/// A module on the GPU with the optimizer of LibTorch.
struct ByHand {
  explicit ByHand(pawl::Mlp network) : model(std::move(network)), sgd(model->parameters(), 0.01) {}

  void step(Tensor const& bytes, Tensor const& y) {
    auto const loss =
        at::cross_entropy_loss(model->forward(bytes.to(torch::kFloat32).mul_(1 / 255.)), y);
    sgd.zero_grad();
    loss.backward();
    sgd.step();
  }

  pawl::Mlp model;
  torch::optim::SGD sgd;
};

struct Reservoir {
  void insert(Tensor const& bytes, Tensor const& y) {
    std::vector<std::int64_t> slots;
    for (std::int64_t i = 0; i < bytes.size(0); ++i, ++seen) {
      auto const j = seen < capacity ? seen : std::uniform_int_distribution<>(0, seen)(random);
      slots.push_back(std::min(j, capacity));
    }
    auto const there = torch::tensor(slots).to(torch::kCUDA);
    stored.index_copy_(0, there, bytes);
    labels.index_copy_(0, there, y);
  }
  Tensor draw(std::int64_t n) {
    auto const held = static_cast<int>(std::min(seen, capacity));
    std::vector<std::int64_t> slots;
    for (std::int64_t i = 0; i < n; ++i) {
      slots.push_back(std::uniform_int_distribution<>(0, held - 1)(random));
    }
    return torch::tensor(slots).to(torch::kCUDA);
  }

  static constexpr std::int64_t capacity = 500;
  std::int64_t seen = 0;
  std::mt19937 random{1};
  Tensor stored =
      torch::zeros({capacity + 1, 784}, torch::dtype(torch::kUInt8).device(torch::kCUDA));
  Tensor labels = torch::zeros({capacity + 1}, torch::dtype(torch::kInt64).device(torch::kCUDA));
};

template <class Hand, class... S>
void compare(benchmark::State& state, std::int64_t batch, std::int64_t products_rows,
             pawl::Engine engine, Hand&& by_hand, S... strategies) {
  auto const experience = on_gpu(micro::random_images(rows));
  auto const labels = experience.train.labels.to(torch::kCUDA);
  auto const bytes = pawl::read_all(*experience.train.source);
  auto network = micro::perceptron(), same = micro::perceptron();
  network->to(torch::kCUDA), same->to(torch::kCUDA);
  pawl::Learner learner{network, pawl::Sgd{.lr = 0.01}, std::move(strategies)...};
  pawl::Training const training{.batch_size = batch, .shuffle = false, .engine = engine};
  ByHand other(same);
  micro::Products products(products_rows, torch::kCUDA);
  auto const wait = [] { torch::cuda::synchronize(); };
  micro::compare(
      state,
      {.flops = products.forward_flops() + products.backward_flops(),
       .operations = static_cast<double>(rows / batch)},
      [&] { learner.fit(experience, training), wait(); },
      [&] {
        for (std::int64_t i = 0; i < rows; i += batch) {
          auto const positions = torch::arange(i, i + batch).to(torch::kCUDA);
          by_hand(other, bytes.index_select(0, positions), labels.index_select(0, positions));
        }
        wait();
      },
      [&] {
        for (std::int64_t i = 0; i < rows; i += batch) products.forward(), products.backward();
        wait();
      });
  if (engine == pawl::Engine::compiled && learner.context().fast.capture != "captured") {
    state.SkipWithError(learner.context().fast.capture.c_str());
  }
}

void device_step(benchmark::State& state, pawl::Engine engine) {
  auto const batch = state.range(0);
  compare(state, batch, batch, engine,
          [](ByHand& other, Tensor const& x, Tensor const& y) { other.step(x, y); });
}

void device_replay(benchmark::State& state, pawl::Engine engine) {
  Reservoir memory;
  compare(
      state, 10, 20, engine,
      [&](ByHand& other, Tensor const& x, Tensor const& y) {
        if (memory.seen == 0) {
          other.step(x, y);
        } else {
          auto const drawn = memory.draw(10);
          other.step(at::cat({x, memory.stored.index_select(0, drawn)}),
                     at::cat({y, memory.labels.index_select(0, drawn)}));
        }
        memory.insert(x, y);
      },
      pawl::Replay{.memory = pawl::Reservoir{.capacity = 500}});
}

void device_fleet(benchmark::State& state) {
  auto const experience = on_gpu(micro::random_images(rows));
  auto const size = static_cast<std::size_t>(state.range(0));
  auto const learn = [&](std::size_t learners, bool as_fleet) {
    std::vector<pawl::Mlp> networks;
    for (std::size_t i = 0; i < learners; ++i) networks.push_back(micro::perceptron());
    pawl::Fleet fleet(learners);
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i < learners; ++i) {
      threads.emplace_back([&, i] {
        std::optional<pawl::Fleet::Member> member;
        if (as_fleet) member.emplace(fleet, i);
        networks[i]->to(torch::kCUDA);
        pawl::Learner learner{networks[i], pawl::Sgd{.lr = 0.01},
                              pawl::Replay{.memory = pawl::Reservoir{.capacity = 500}}};
        learner.seed({i}).fit(experience, {.batch_size = 10});
      });
    }
    for (auto& thread : threads) thread.join();
    torch::cuda::synchronize();
  };
  micro::compare(
      state, {.operations = rows / 10.0}, [&] { learn(size, true); }, [&] { learn(size, false); },
      [&] { learn(1, false); });
}

[[maybe_unused]] bool const registered = [] {
  if (!at::hasCUDA()) return false;
  for (auto const engine : {pawl::Engine::compiled, pawl::Engine::eager}) {
    std::string const name = engine == pawl::Engine::compiled ? "captured" : "eager";
    benchmark::RegisterBenchmark(("device_step/" + name).c_str(), device_step, engine)
        ->ArgName("batch")
        ->Arg(10)
        ->Arg(128)
        ->Apply(micro::turns<11>);
    benchmark::RegisterBenchmark(("device_replay/" + name).c_str(), device_replay, engine)
        ->Apply(micro::turns<11>);
  }
  benchmark::RegisterBenchmark("device_fleet", device_fleet)
      ->ArgName("learners")
      ->Arg(4)
      ->Arg(16)
      ->Apply(micro::turns<5>);
  return true;
}();

}  // namespace
