// What optimizers do on the arena.

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../core/networks.hpp"

#include <torch/optim/adagrad.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/rmsprop.h>
#include <torch/optim/sgd.h>
#include <torch/serialize.h>
#include <pawl/core/any_learner.hpp>
#include <pawl/optimizers/catalogue.hpp>
#include <pawl/optimizers/torch_optimizer.hpp>

#include <doctest/doctest.h>  // after LibTorch, whose own CHECK must not win

using namespace networks;

namespace {

using Parameters = std::vector<Tensor>;
using MakeOptimizer = std::function<std::unique_ptr<torch::optim::Optimizer>(Parameters)>;

}  // namespace

TEST_CASE_TEMPLATE("optimizers equal those of torch::optim in a loop by hand, to the last bit",
                   Number, float, double) {
  auto const dtype = torch::CppTypeToScalarType<Number>::value;
  using torch::optim::AdamOptions;
  using torch::optim::AdamWOptions;
  using torch::optim::SGDOptions;
  auto const sgd = [](SGDOptions const& o) -> MakeOptimizer {
    return [o](Parameters p) { return std::make_unique<torch::optim::SGD>(p, o); };
  };
  auto const adam = [](AdamOptions const& o) -> MakeOptimizer {
    return [o](Parameters p) { return std::make_unique<torch::optim::Adam>(p, o); };
  };
  auto const adamw = [](AdamWOptions const& o) -> MakeOptimizer {
    return [o](Parameters p) { return std::make_unique<torch::optim::AdamW>(p, o); };
  };
  std::vector<std::pair<AnyOptimizer, MakeOptimizer>> const pairs{
      {Sgd{.lr = 0.1}, sgd(SGDOptions(0.1))},
      {Sgd{.lr = 0.1, .weight_decay = 0.03}, sgd(SGDOptions(0.1).weight_decay(0.03))},
      {Sgd{.lr = 0.1, .momentum = 0.9}, sgd(SGDOptions(0.1).momentum(0.9))},
      {Sgd{.lr = 0.1, .momentum = 0.9, .dampening = 0.3, .weight_decay = 0.03},
       sgd(SGDOptions(0.1).momentum(0.9).dampening(0.3).weight_decay(0.03))},
      {Sgd{.lr = 0.1, .momentum = 0.8, .weight_decay = 0.03, .nesterov = true},
       sgd(SGDOptions(0.1).momentum(0.8).weight_decay(0.03).nesterov(true))},
      {Adam{.lr = 0.01}, adam(AdamOptions(0.01))},
      {Adam{.lr = 0.01, .beta1 = 0.8, .beta2 = 0.95, .eps = 1e-4, .weight_decay = 0.1},
       adam(AdamOptions(0.01).betas({0.8, 0.95}).eps(1e-4).weight_decay(0.1))},
      {AdamW{.lr = 0.01}, adamw(AdamWOptions(0.01))},
      {AdamW{.lr = 0.01, .weight_decay = 0.2}, adamw(AdamWOptions(0.01).weight_decay(0.2))},
      {RmsProp{.lr = 0.01, .momentum = 0.5, .centered = true},
       [](Parameters p) {
         return std::make_unique<torch::optim::RMSprop>(
             p, torch::optim::RMSpropOptions(0.01).momentum(0.5).centered(true));
       }},
      {Adagrad{.lr = 0.1, .lr_decay = 0.01}, [](Parameters p) {
         return std::make_unique<torch::optim::Adagrad>(
             p, torch::optim::AdagradOptions(0.1).lr_decay(0.01));
       }}};
  for (bool const tasks : {false, true}) {
    auto const experience = rows(80, dtype, 1, tasks);
    for (auto const& pair : pairs) {
      auto const name = pair.first.type_name();
      CAPTURE(tasks);
      CAPTURE(name);
      auto net = tasks ? network_of_tasks(dtype) : plain_network(dtype);
      auto twin = tasks ? network_of_tasks(dtype) : plain_network(dtype);
      AnyLearner learner{Model(net), pair.first, StrategyList{}};
      // Small products in single precision may be those of pawl, which round otherwise.
      auto const engine = dtype == torch::kFloat32 ? Engine::reference : Engine::compiled;
      learner.fit(experience,
                  {.iterations = 50, .batch_size = 8, .shuffle = false, .engine = engine});
      auto const optimizer = pair.second(twin->parameters());
      train_by_hand(twin, *optimizer, experience, 50);
      CHECK(same_bits(copies(*net), copies(*twin)));
    }
  }
}

TEST_CASE(
    "an optimizer of torch::optim is saved and resumed, and made anew when the model changes") {
  auto const path =
      (std::filesystem::temp_directory_path() / "pawl_torch_optimizer.safetensors").string();
  auto const experience = rows(40, torch::kFloat32);
  Training const training{.epochs = 4, .batch_size = 8};
  struct Saves {
    std::function<void()> save;
    void step(Context const& c) {
      if (c.step == 7) save();
    }
  };
  auto const rmsprop = [](Parameters p) {
    return std::make_unique<torch::optim::RMSprop>(
        p, torch::optim::RMSpropOptions(0.01).momentum(0.9));
  };
  auto net = plain_network(torch::kFloat32), twin = plain_network(torch::kFloat32);
  Learner learner{net, TorchOptimizer{.make = rmsprop}};
  learner.fit(experience, training, Saves{[&] { learner.save(path); }});
  Learner resumed{twin, TorchOptimizer{.make = rmsprop}};
  resumed.load(path);
  resumed.save(path);  // before the inner optimizer is made
  resumed.load(path);
  resumed.fit(experience, training);
  CHECK(same_bits(copies(*net), copies(*twin)));
  std::filesystem::remove(path);

  auto growing = growing_network(torch::kFloat32, 2);
  Learner grows{growing, TorchOptimizer{.make = rmsprop}};
  grows.fit(experience, training);
  auto const before = copies(*growing);
  grows.fit(rows(40, torch::kFloat32, 2, false, 1), training);
  for (std::size_t i = 0; i < before.size(); ++i) CHECK_FALSE(before[i].equal(copies(*growing)[i]));

  // A copy of an optimizer in use belongs to no one yet.
  auto other = plain_network(torch::kFloat32);
  auto const theirs = copies(*net), mine = copies(*other);
  Learner copy{other, learner.optimizer()};
  copy.fit(experience, {.batch_size = 8});
  CHECK(same_bits(copies(*net), theirs));
  CHECK_FALSE(same_bits(copies(*other), mine));
}

TEST_CASE("growth keeps the bits of old rows and of their moments, in every optimizer") {
  auto const first = rows(24, torch::kFloat64);
  auto const check = [&](auto optimizer, auto const& stored) {
    auto net = growing_network(torch::kFloat64);
    Learner learner{net, optimizer};
    learner.fit(first, {.epochs = 2, .batch_size = 8});
    auto const& arena = learner.context().arena;
    auto const x = torch::ones({2, 5}, torch::kFloat64);
    auto const logits = learner.scores(x);
    auto const moments = arena.parameter_view(stored(learner.optimizer()), 2).clone();
    auto& head = *learner.context().model.heads.at(0);
    head.announce({0, 1, 2, 3, 4}, -1, {});
    auto const grown = learner.scores(x);
    CHECK(grown.size(1) == 5);
    CHECK(grown.narrow(1, 0, 3).allclose(logits, 1e-14, 1e-14));  // another shape of product
    auto const after = arena.parameter_view(stored(learner.optimizer()), 2);
    CHECK(after.narrow(0, 0, 3).equal(moments));
    CHECK(after.narrow(0, 3, 2).abs().max().template item<double>() == 0);
  };
  check(Sgd{.lr = 0.1, .momentum = 0.9}, [](auto& o) { return o.velocity; });
  check(Adam{.lr = 0.01}, [](auto& o) { return o.first; });
  check(AdamW{.lr = 0.01}, [](auto& o) { return o.second; });
}

TEST_CASE("the learning rate of an optimizer of LibTorch can be set at any time") {
  for (auto const* name : {"rmsprop", "adagrad"}) {
    auto net = plain_network(torch::kFloat64);
    AnyLearner learner{Model(net), make_optimizer(name), StrategyList{}};
    learner.fit(rows(8, torch::kFloat64), {.batch_size = 8});
    set_option(learner.optimizer(), "lr", "0");
    auto const before = net->parameters()[0].clone();
    learner.fit(rows(8, torch::kFloat64, 2), {.batch_size = 8});
    CHECK(net->parameters()[0].equal(before));
  }
  auto const two_groups = [](Parameters const& all) {
    auto optimizer =
        std::make_unique<torch::optim::SGD>(Parameters{all[0]}, torch::optim::SGDOptions(0));
    optimizer->add_param_group(torch::optim::OptimizerParamGroup(
        {all[1], all[2], all[3]}, std::make_unique<torch::optim::SGDOptions>(0.1)));
    return optimizer;
  };
  auto net = plain_network(torch::kFloat64);
  Learner learner{net, TorchOptimizer{two_groups}};
  auto const frozen = net->parameters()[0].clone(), moved = net->parameters()[1].clone();
  learner.fit(rows(24, torch::kFloat64),
              {.epochs = 3, .batch_size = 8, .lr_schedule = Schedule::cosine});
  CHECK(net->parameters()[0].equal(frozen));
  CHECK(net->parameters()[1].isfinite().all().item<bool>());
  CHECK_FALSE(net->parameters()[1].equal(moved));
}
