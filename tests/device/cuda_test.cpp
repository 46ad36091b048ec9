// What a CUDA device must not change. Without one every test says so and ends.

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include <pawl/importance/fisher.hpp>
#include <pawl/importance/sensitivity.hpp>
#include <pawl/models/slim_resnet18.hpp>
#include <pawl/models/small_cnn.hpp>

#include "../core/rehearses.hpp"
#include "toy.hpp"

#include <ATen/Context.h>
#include <doctest/doctest.h>  // after LibTorch, whose own CHECK must not win

using namespace pawl;
using namespace toy;

namespace {

bool without_cuda() {
  if (at::hasCUDA()) return false;
  std::puts("not run: LibTorch finds no CUDA device");
  return true;
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

TEST_CASE("every strategy learns the same bits captured as step by step on CUDA") {
  if (without_cuda()) return;
  for (auto const& name : all_strategies()) {
    for (std::string const kind : {"linear", "norm", "growing"}) {
      for (std::string const optimizer : {"sgd", "momentum", "adam"}) {
        INFO("strategy: ", name, ", network: ", kind, ", optimizer: ", optimizer);
        Training training{.epochs = 4, .batch_size = 14};
        auto const captured =
            run(name, kind, torch::kCUDA, torch::kFloat32, optimizer_named(optimizer), training);
        training.engine = Engine::eager;
        auto const eager =
            run(name, kind, torch::kCUDA, torch::kFloat32, optimizer_named(optimizer), training);
        CHECK(captured.engine.rfind("captured, ", 0) == 0);
        CHECK(captured.weights.equal(eager.weights));
        CHECK(captured.losses == eager.losses);
      }
    }
  }
}

TEST_CASE(
    "steps that nobody looks at, many in a table and eight in a graph, are the same on CUDA") {
  if (without_cuda()) return;
  auto const stream = images(Scenario::classes, torch::kCUDA);
  for (auto const& name : all_strategies()) {
    INFO("strategy: ", name);
    auto const learned = [&](Engine engine) {
      std::vector<AnyStrategy> strategies;
      if (name != "naive") strategies.push_back(configured(name));
      auto learner = learner_of(network("norm", torch::kFloat32), torch::kCUDA,
                                std::move(strategies), Adam{.lr = 0.01});
      for (auto const& experience : stream) {
        learner.fit(experience, {.epochs = 80, .batch_size = 12, .engine = engine});
      }
      return learner.context().weights().cpu().clone();
    };
    CHECK(learned(Engine::compiled).equal(learned(Engine::eager)));
  }
}

TEST_CASE("learners in threads of their own learn on one CUDA device what each learns alone") {
  if (without_cuda()) return;
  auto const stream = images(Scenario::classes, torch::kCUDA);
  Training const training{.epochs = 70, .batch_size = 12};
  for (auto const& name : all_strategies()) {
    for (std::string const kind : {"linear", "norm"}) {
      INFO("strategy: ", name, ", network: ", kind);
      auto const at_once = four_learners(name, kind, stream, training, Together::at_once);
      auto const fleet = four_learners(name, kind, stream, training, Together::as_fleet);
      auto const alone = four_learners(name, kind, stream, training, Together::no);
      for (std::size_t i = 0; i < alone.size(); ++i) {
        CHECK(at_once[i].weights.equal(alone[i].weights));
        CHECK(fleet[i].engine.rfind("captured together", 0) == 0);
        CHECK(distance(fleet[i].weights, alone[i].weights) < 1e-7);
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
    Learner learner{net, Sgd{.lr = 0.01}, Rehearses{Reservoir{.capacity = 20}}};
    Losses losses;
    for (auto const& experience : stream) learner.fit(experience, {.batch_size = 12}, losses);
    auto const held = learner.strategy<Rehearses>().memory.contents();
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
