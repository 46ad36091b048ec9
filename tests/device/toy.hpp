#pragma once

// A toy stream, networks and learners for tests of what is done on devices.

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/dropout.h>
#include <pawl/core/any_learner.hpp>
#include <pawl/device/fleet.hpp>
#include <pawl/heads/growing.hpp>
#include <pawl/heads/multi_head.hpp>
#include <pawl/metrics/evaluate.hpp>
#include <pawl/optimizers/catalogue.hpp>
#include <strategies/compiled.hpp>

namespace toy {

using namespace pawl;

/// Images of 8x8 bytes in four classes, two per experience, on a device.
inline Stream images(Scenario scenario = Scenario::classes, torch::Device device = torch::kCPU) {
  Stream stream{"images", scenario, scenario == Scenario::task ? 2 : 4, {}};
  for (std::int64_t e = 0; e < 2; ++e) {
    auto const y = torch::arange(60, torch::kInt64) % 2;
    auto const label = scenario == Scenario::task ? y : y + 2 * e;
    auto x = torch::empty({60, 1, 8, 8}, torch::kFloat64);
    fill_uniform(x, 0, 90, Seed{11}.generator("images", e));
    for (std::int64_t i = 0; i < 60; ++i) {
      x[i][0].select(0, (y[i].item<std::int64_t>() + 2 * e) * 2).add_(120);
    }
    auto experience = make_experience(x.to(torch::kUInt8).to(device), label, {}, e,
                                      scenario == Scenario::task ? e : std::int64_t{-1});
    experience.train.normalise.scale = experience.test.normalise.scale = 1.0 / 255;
    stream.experiences.push_back(std::move(experience));
  }
  return stream;
}

inline nn::Sequential network(std::string const& kind, torch::Dtype dtype) {
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

inline AnyOptimizer optimizer_named(std::string const& name) {
  if (name == "momentum") return Sgd{.lr = 0.05, .momentum = 0.9, .weight_decay = 0.01};
  if (name == "adam") return Adam{.lr = 0.01};
  if (name == "adamw") return AdamW{.lr = 0.01};
  return Sgd{.lr = 0.1};
}

inline AnyStrategy configured(std::string const& name) {
  auto strategy = compiled::make_strategy(name);
  for (auto const& option : options_of(strategy).all()) {
    if (option.name == "capacity") set_option(strategy, "capacity", "30");
    if (option.name == "strength") set_option(strategy, "strength", "0.5");
  }
  return strategy;
}

inline AnyLearner learner_of(nn::Sequential net, torch::Device device,
                             std::vector<AnyStrategy> strategies, AnyOptimizer optimizer) {
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
  std::string engine;
};

inline Run run(std::string const& strategy, std::string const& kind, torch::Device device,
               torch::Dtype dtype, AnyOptimizer optimizer, Training const& training) {
  auto const stream = images(kind == "multi" ? Scenario::task : Scenario::classes, device);
  std::vector<AnyStrategy> strategies;
  if (strategy != "naive") strategies.push_back(configured(strategy));
  auto learner =
      learner_of(network(kind, dtype), device, std::move(strategies), std::move(optimizer));
  Losses losses;
  Run result;
  for (auto const& experience : stream) learner.fit(experience, training, losses);
  result.engine = learner.context().engine();
  result.accuracy = evaluate(learner, stream).accuracy;
  result.losses = std::move(losses.values);
  result.weights = learner.context().weights().to(torch::kCPU, torch::kFloat64);
  return result;
}

enum class Together { no, at_once, as_fleet };

/// What four learners have in the end, of seeds of their own: one after another, or in a thread
/// each.
inline std::vector<Run> four_learners(std::string const& strategy, std::string const& kind,
                                      Stream const& stream, Training const& training,
                                      Together together) {
  std::vector<Run> runs(4);
  std::vector<nn::Sequential> nets;  // made here, as layers draw from the process-wide generator
  for (std::size_t i = 0; i < runs.size(); ++i) nets.push_back(network(kind, torch::kFloat64));
  Fleet fleet(runs.size());
  auto const learn = [&](std::size_t i) {
    std::optional<Fleet::Member> member;
    if (together == Together::as_fleet) member.emplace(fleet, i);
    std::vector<AnyStrategy> strategies;
    if (strategy != "naive") strategies.push_back(configured(strategy));
    auto learner = learner_of(nets[i], stream[0].train.source->device, std::move(strategies),
                              Adam{.lr = 0.01});
    learner.seed({static_cast<std::uint64_t>(i)});
    for (auto const& experience : stream) learner.fit(experience, training);
    runs[i].weights = learner.context().weights().cpu().clone();
    runs[i].engine = learner.context().engine();
  };
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < runs.size(); ++i) {
    if (together == Together::no) {
      learn(i);
    } else {
      threads.emplace_back(learn, i);
    }
  }
  for (auto& thread : threads) thread.join();
  return runs;
}

inline std::vector<std::string> all_strategies() {
  auto names = compiled::strategy_names();
  names.emplace_back("naive");
  return names;
}

inline double distance(Tensor const& a, Tensor const& b) {
  return (a - b).abs().max().item<double>();
}

inline std::string bytes_of(std::filesystem::path const& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace toy
