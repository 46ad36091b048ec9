// What a CUDA device must not change. Without one every test says so and ends.

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/dropout.h>
#include <pawl/core/any_learner.hpp>
#include <pawl/core/optimizer_catalogue.hpp>
#include <pawl/heads/growing.hpp>
#include <pawl/heads/multi_head.hpp>
#include <pawl/importance/fisher.hpp>
#include <pawl/importance/sensitivity.hpp>
#include <pawl/metrics/evaluate.hpp>
#include <pawl/models/slim_resnet18.hpp>
#include <pawl/models/small_cnn.hpp>
#include <pawl/strategies/catalogue.hpp>

#include <ATen/Context.h>
#include <doctest/doctest.h>  // after LibTorch, whose own CHECK must not win

using namespace pawl;

namespace {

bool without_cuda() {
  if (at::hasCUDA()) return false;
  std::puts("not run: LibTorch finds no CUDA device");
  return true;
}

/// Images of 8x8 bytes in four classes, two per experience.
Stream images(Scenario scenario = Scenario::classes) {
  Stream stream{"images", scenario, scenario == Scenario::task ? 2 : 4, {}};
  for (std::int64_t e = 0; e < 2; ++e) {
    auto const y = torch::arange(60, torch::kInt64) % 2;
    auto const label = scenario == Scenario::task ? y : y + 2 * e;
    auto x = torch::empty({60, 1, 8, 8}, torch::kFloat64);
    fill_uniform(x, 0, 90, Seed{11}.generator("images", e));
    for (std::int64_t i = 0; i < 60; ++i) {
      x[i][0].select(0, (y[i].item<std::int64_t>() + 2 * e) * 2).add_(120);
    }
    auto experience = make_experience(x.to(torch::kUInt8), label, {}, e,
                                      scenario == Scenario::task ? e : std::int64_t{-1});
    experience.train.normalise.scale = experience.test.normalise.scale = 1.0 / 255;
    stream.experiences.push_back(std::move(experience));
  }
  return stream;
}

nn::Sequential network(std::string const& kind, torch::Dtype dtype) {
  nn::Sequential net;
  net->push_back(nn::Flatten());
  // A bias in front of BatchNorm has no gradient but rounding noise, which Adam would make weights
  // of.
  net->push_back(nn::Linear(nn::LinearOptions(64, 24).bias(kind != "norm")));
  if (kind == "norm") net->push_back(nn::BatchNorm1d(24));
  net->push_back(nn::Tanh());
  if (kind == "noise") net->push_back(nn::Dropout(0.3));
  if (kind == "growing") {
    net->push_back(GrowingHead(24));
  } else if (kind == "multi") {
    net->push_back(MultiHead(24, 2));
  } else {
    net->push_back(nn::Linear(24, 4));
  }
  std::int64_t i = 0;
  for (auto& p : net->parameters()) fill_normal(p, 0, 0.3, Seed{3}.generator("net", i++));
  net->to(dtype);
  return net;
}

AnyStrategy configured(std::string const& name) {
  auto strategy = make_strategy(name);
  for (auto const& option : options_of(strategy).all()) {
    if (option.name == "capacity") set_option(strategy, "capacity", "30");
    if (option.name == "strength") set_option(strategy, "strength", "0.5");
  }
  return strategy;
}

AnyLearner learner_of(nn::Sequential net, torch::Device device, std::vector<AnyStrategy> strategies,
                      AnyOptimizer optimizer) {
  net->to(device);
  AnyLearner learner{Model(net), std::move(optimizer), StrategyList(std::move(strategies))};
  learner.seed({4});
  return learner;
}

/// Losses of every step, on the host.
struct Losses {
  std::vector<double> values;
  void step(Context const& c) { values.push_back(c.task_loss.item<double>()); }
};

struct Run {
  std::vector<double> losses;
  Tensor weights;
  std::vector<double> accuracy;
};

Run run(std::string const& strategy, std::string const& kind, torch::Device device,
        torch::Dtype dtype, AnyOptimizer optimizer, Training const& training) {
  auto const stream = images(kind == "multi" ? Scenario::task : Scenario::classes);
  std::vector<AnyStrategy> strategies;
  if (strategy != "naive") strategies.push_back(configured(strategy));
  auto learner =
      learner_of(network(kind, dtype), device, std::move(strategies), std::move(optimizer));
  Losses losses;
  Run result;
  for (auto const& experience : stream) learner.fit(experience, training, losses);
  result.accuracy = evaluate(learner, stream).accuracy;
  result.losses = std::move(losses.values);
  result.weights = learner.context().weights().to(torch::kCPU, torch::kFloat64);
  return result;
}

std::vector<std::string> all_strategies() {
  auto names = strategy_names();
  names.emplace_back("naive");
  return names;
}

double distance(Tensor const& a, Tensor const& b) { return (a - b).abs().max().item<double>(); }

std::string bytes_of(std::filesystem::path const& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

TEST_CASE("every strategy computes on CUDA what it computes on the host") {
  if (without_cuda()) return;
  for (auto const& name : all_strategies()) {
    for (std::string const kind : {"linear", "norm", "growing", "multi"}) {
      if (name == "ncm" && kind == "multi") continue;
      for (std::string const optimizer : {"sgd", "adam"}) {
        for (std::int64_t const shards : {1, 2}) {
          INFO("strategy: ", name, ", network: ", kind, ", optimizer: ", optimizer,
               ", shards: ", shards);
          Training const training{.epochs = 2, .batch_size = 12, .shards = shards};
          auto const make = [&] {
            auto made = make_optimizer(optimizer);
            set_option(made, "lr", optimizer == "sgd" ? "0.1" : "0.01");
            return made;
          };
          auto const host = run(name, kind, torch::kCPU, torch::kFloat64, make(), training);
          auto const cuda = run(name, kind, torch::kCUDA, torch::kFloat64, make(), training);
          REQUIRE(host.losses.size() == cuda.losses.size());
          for (std::size_t i = 0; i < host.losses.size(); ++i) {
            CHECK(cuda.losses[i] == doctest::Approx(host.losses[i]).epsilon(1e-8));
          }
          CHECK(distance(cuda.weights, host.weights) < 1e-7);
          CHECK(cuda.accuracy == host.accuracy);
        }
      }
    }
  }
}

TEST_CASE("the first ten losses in float32 agree to 1e-5 between CUDA and the host") {
  if (without_cuda()) return;
  for (auto const& name : all_strategies()) {
    INFO("strategy: ", name);
    auto const host = run(name, "linear", torch::kCPU, torch::kFloat32, Sgd{.lr = 0.05},
                          {.epochs = 2, .batch_size = 12});
    auto const cuda = run(name, "linear", torch::kCUDA, torch::kFloat32, Sgd{.lr = 0.05},
                          {.epochs = 2, .batch_size = 12});
    for (std::size_t i = 0; i < 10; ++i) {
      CHECK(cuda.losses[i] == doctest::Approx(host.losses[i]).epsilon(1e-5));
    }
  }
}

TEST_CASE("the same seed gives the same bits on CUDA, dropout included") {
  if (without_cuda()) return;
  for (auto const& name : all_strategies()) {
    for (std::string const kind : {"linear", "noise"}) {
      INFO("strategy: ", name, ", network: ", kind);
      auto const once = run(name, kind, torch::kCUDA, torch::kFloat32, Sgd{.lr = 0.05},
                            {.epochs = 2, .batch_size = 12});
      torch::rand({5}, torch::kCUDA);  // what others draw from the process-wide generator
      auto const again = run(name, kind, torch::kCUDA, torch::kFloat32, Sgd{.lr = 0.05},
                             {.epochs = 2, .batch_size = 12});
      CHECK(once.weights.equal(again.weights));
    }
  }
}

TEST_CASE("training leaves the process-wide generator of the device as it was") {
  if (without_cuda()) return;
  torch::manual_seed(1);
  auto const expected = torch::rand({3}, torch::kCUDA);
  torch::manual_seed(1);
  run("ewc", "noise", torch::kCUDA, torch::kFloat32, Sgd{.lr = 0.05}, {.batch_size = 12});
  CHECK(torch::rand({3}, torch::kCUDA).equal(expected));
}

TEST_CASE("a run on CUDA that is killed continues bit for bit") {
  if (without_cuda()) return;
  auto const folder = std::filesystem::temp_directory_path() / "pawl_cuda_test";
  std::filesystem::create_directories(folder);
  auto const stream = images();
  Training const training{.epochs = 2, .batch_size = 12};
  for (auto const& name : all_strategies()) {
    INFO("strategy: ", name);
    auto const fresh = [&] {
      std::vector<AnyStrategy> strategies;
      if (name != "naive") strategies.push_back(configured(name));
      return learner_of(network("growing", torch::kFloat32), torch::kCUDA, std::move(strategies),
                        Sgd{.lr = 0.05, .momentum = 0.9});
    };
    auto whole = fresh();
    struct Saves {
      AnyLearner& learner;
      std::filesystem::path path;
      void step(Context const& c) {
        if (c.index == 1 && c.step == 4) learner.save(path);
      }
    };
    whole.fit(stream[0], training);
    whole.fit(stream[1], training, Saves{whole, folder / "middle"});
    whole.save(folder / "end");
    auto resumed = fresh();
    resumed.load(folder / "middle");
    CHECK(resumed.context().weights().is_cuda());
    resumed.fit(stream[1], training);
    resumed.save(folder / "resumed");
    CHECK(bytes_of(folder / "resumed") == bytes_of(folder / "end"));

    auto moved = learner_of(
        network("growing", torch::kFloat32), torch::kCPU,
        name == "naive" ? std::vector<AnyStrategy>{} : std::vector<AnyStrategy>{configured(name)},
        Sgd{.lr = 0.05, .momentum = 0.9});
    moved.load(folder / "middle");
    moved.fit(stream[1], training);
    CHECK(distance(moved.context().weights(), whole.context().weights().cpu()) < 1e-4);
  }
  std::filesystem::remove_all(folder);
}

TEST_CASE("importances on CUDA are those of the host") {
  if (without_cuda()) return;
  auto const stream = images();
  auto const data = stream[0].train;
  auto const check = [&](Model model) {
    Arena host(*model.module);
    auto const f = fisher(model, host, data), s = sensitivity(model, host, data);
    model.module->to(torch::kCUDA);
    Arena cuda(*model.module);
    CHECK(distance(fisher(model, cuda, data).cpu(), f) < 1e-10);
    CHECK(distance(sensitivity(model, cuda, data).cpu(), s) < 1e-9);
  };
  check(Model(network("linear", torch::kFloat64)));
  SmallCnn cnn(std::vector<std::int64_t>{1, 8, 8}, 4, SmallCnnOptions{.channels = {4, 6}});
  cnn->to(torch::kFloat64);
  check(Model(cnn));
}

TEST_CASE("a convolutional model with BatchNorm replays on CUDA as on the host") {
  if (without_cuda()) return;
  auto const stream = images();
  auto const losses_on = [&](torch::Device device) {
    SlimResNet18 net(1, 4, SlimResNet18Options{.nf = 4}, Seed{1});
    net->to(device, torch::kFloat64);
    Learner learner{net, Sgd{.lr = 0.01}, Replay{Reservoir{.capacity = 20}}};
    Losses losses;
    for (auto const& experience : stream) learner.fit(experience, {.batch_size = 12}, losses);
    auto const held = learner.strategy<Replay>().memory.contents();
    CHECK(held.size() == 20);
    CHECK(held.stored.device().type() == device.type());
    CHECK(held.stored.dtype() == torch::kUInt8);
    CHECK(held.y.cpu().equal(held.labels));
    return losses.values;
  };
  auto const host = losses_on(torch::kCPU), cuda = losses_on(torch::kCUDA);
  for (std::size_t i = 0; i < host.size(); ++i) {
    CHECK(cuda[i] == doctest::Approx(host[i]).epsilon(1e-6));
  }
}
