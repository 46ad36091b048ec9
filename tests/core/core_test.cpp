#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <locale>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "messages.hpp"

#include <torch/nn/functional/activation.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/dropout.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/rmsprop.h>
#include <torch/optim/sgd.h>
#include <pawl/core/any_learner.hpp>
#include <pawl/core/learner.hpp>
#include <pawl/metrics/evaluate.hpp>
#include <pawl/optimizers/torch_optimizer.hpp>

#include <doctest/doctest.h>  // after LibTorch, whose own CHECK must not win

using namespace pawl;

namespace {

/// Two gaussian blobs per class, inputs [n, 4].
Experience blobs(std::int64_t n = 60, std::int64_t classes = 3,
                 torch::Dtype dtype = torch::kFloat32, std::uint64_t seed = 1,
                 std::int64_t index = 0) {
  auto x = torch::empty({n, 4}, dtype);
  fill_normal(x, 0, 1, Seed{seed}.generator("x"));
  auto const y = torch::arange(n, torch::kInt64) % classes;
  x = x + y.to(dtype).unsqueeze(1);
  return make_experience(x, y, {}, index);
}

/// A small network with weights of its own seed, whatever LibTorch drew for it.
nn::Sequential network(std::int64_t outputs = 3, torch::Dtype dtype = torch::kFloat32) {
  nn::Sequential net(nn::Linear(4, 8), nn::ReLU(), nn::Linear(8, outputs));
  net->to(dtype);
  std::int64_t i = 0;
  for (auto& p : net->parameters()) fill_normal(p, 0, 0.5, Seed{7}.generator("net", i++));
  return net;
}

nn::Sequential network_with_noise_and_norm(torch::Dtype dtype = torch::kFloat32) {
  nn::Sequential net(nn::Linear(4, 8), nn::BatchNorm1d(8), nn::ReLU(), nn::Dropout(0.4),
                     nn::Linear(8, 3));
  net->to(dtype);
  std::int64_t i = 0;
  for (auto& p : net->parameters()) fill_normal(p, 0.1, 0.5, Seed{7}.generator("net", i++));
  return net;
}

Tensor flat_parameters(nn::Sequential const& net) {
  std::vector<Tensor> all;
  for (auto const& p : net->parameters()) all.push_back(p.detach().reshape({-1}).clone());
  return torch::cat(all);
}

bool same_bits(Tensor const& a, Tensor const& b) {
  return a.defined() == b.defined() && (!a.defined() || (a.sizes() == b.sizes() && a.equal(b)));
}

std::filesystem::path scratch(std::string const& name) {
  auto const folder = std::filesystem::temp_directory_path() / "pawl_core_test";
  std::filesystem::create_directories(folder);
  return folder / name;
}

/// Pulls every weight towards 1 in closed form, and counts its calls.
struct Pull {
  static constexpr char const* name = "pull";
  double strength = 0.1;
  void describe(Options& o) { o("strength", strength, at_least(0), "pull"); }
  void edit_gradient(Context& c) { c.gradient().add_(c.weights() - 1, strength); }
  Tensor penalty_value(Context& c) { return (c.weights() - 1).square().sum() * (strength / 2); }
  void after_step(Context&) { ++calls; }
  void state(Archive& a) { a("calls", calls); }
  std::int64_t calls = 0;
};

/// A penalty through autograd: half the mean square of the logits over the step.
struct SmallLogits {
  double strength = 0.3;
  Tensor penalty(Context& c) {
    return c.logits.square().sum() * (strength / 2 / static_cast<double>(c.step_rows));
  }
};

/// Keeps the gradient of the supervised loss that the engine hands over.
struct KeepsTaskGradient {
  static constexpr bool needs_task_gradient = true;
  Tensor kept;
  void after_step(Context& c) { kept = c.task_gradient.clone(); }
};

/// Replays the very first rows it saw, with a weight of its own.
struct Echo {
  Rows first;
  double weight = default_weight;
  Batch extend(Context& c, Batch b) {
    if (first.size() > 0) {
      auto const slice = c.slice(first.size());
      b.append(this, first.slice(slice.begin, slice.end), first.size(), weight);
    }
    return b;
  }
  void after_step(Context& c) {
    if (first.size() == 0) first = c.fresh;
  }
};

struct Owner {
  static constexpr char const* name = "owner";
  Tensor loss(Context& c) { return c.weighted_cross_entropy(); }
};

struct Explodes {
  static constexpr char const* name = "explodes";
  Tensor penalty(Context& c) { return c.logits.sum() * (c.step == 2 ? INFINITY : 0.0); }
};

struct Recorder {
  static constexpr bool wants_penalties = true;
  std::vector<double> losses, penalties;
  void step(Context const& c) {
    losses.push_back(c.task_loss.item<double>());
    for (auto const& [name, value] : c.penalties) penalties.push_back(value.item<double>());
  }
};

struct SavesAt {
  std::function<void()> save;
  std::int64_t at;
  void step(Context const& c) {
    if (c.step == at) save();
  }
};

}  // namespace

TEST_CASE("a message is its parts, one after another") {
  std::string const text = "text";
  auto const x = torch::zeros({2, 3}, torch::kFloat64);
  CHECK(text_of({text, " ", std::string_view("view"), " ", 1, " ", 2U, " ", std::int64_t{-3}, " ",
                 text.size(), " ", 5LL, " ", 0.25, " ", 1e30, " ", true}) ==
        "text view 1 2 -3 4 5 0.25 1e+30 1");
  CHECK(text_of({x.sizes(), ", ", x.dtype(), ", ", torch::kInt64, ", ", x.device(), ", ",
                 torch::Device(torch::kCUDA, 1)}) == "[2, 3], Double, Long, cpu, cuda:1");
  CHECK(text_of({"", text, MessagePart{}, ""}) == text);
  CHECK_THROWS_WITH_AS(fail({"no ", 1}), "pawl: no 1", Error);
  CHECK_THROWS_WITH_AS(fail("no"), "pawl: no", Error);
  CHECK_THROWS_WITH_AS(require(false, {"no ", 1}), "pawl: no 1", Error);
  CHECK_THROWS_WITH_AS(require(false, "no"), "pawl: no", Error);
  CHECK_NOTHROW(require(true, {"no ", 1}));
}

TEST_CASE("naive training is bit for bit the loop one would write by hand") {
  auto const experience = blobs();
  auto net = network(), compiled = network(), twin = network();
  Training training{.epochs = 2, .batch_size = 16, .shuffle = false};
  Learner by_default{compiled, Sgd{.lr = 0.1}};
  by_default.fit(experience, training);
  Learner learner{net, Sgd{.lr = 0.1}};
  training.engine = Engine::reference;
  learner.fit(experience, training);

  torch::optim::SGD sgd(twin->parameters(), torch::optim::SGDOptions(0.1));
  auto const x = experience.train.read(torch::arange(60)).stored;
  auto const y = experience.train.labels;
  for (int epoch = 0; epoch < 2; ++epoch) {
    for (std::int64_t begin = 0; begin < 60; begin += 16) {
      auto const end = std::min<std::int64_t>(60, begin + 16);
      sgd.zero_grad();
      at::cross_entropy_loss(twin->forward(x.slice(0, begin, end)), y.slice(0, begin, end))
          .backward();
      sgd.step();
    }
  }
  CHECK(same_bits(flat_parameters(net), flat_parameters(twin)));
  CHECK(flat_parameters(compiled).allclose(flat_parameters(twin), 1e-5, 1e-6));
}

TEST_CASE("a gradient longer than clip_norm is scaled down to it, as in a loop by hand") {
  auto const experience = blobs(60, 3, torch::kFloat64);
  auto net = network(3, torch::kFloat64), twin = network(3, torch::kFloat64);
  Learner learner{net, Sgd{.lr = 0.1, .momentum = 0.9}};
  learner.fit(experience, {.epochs = 2, .batch_size = 20, .shuffle = false, .clip_norm = 2.5});

  torch::optim::SGD sgd(twin->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9));
  auto const x = experience.train.read(torch::arange(60)).stored;
  auto const y = experience.train.labels;
  int clipped = 0;
  for (std::int64_t step = 0; step < 6; ++step) {
    auto const begin = step % 3 * 20;
    sgd.zero_grad();
    at::cross_entropy_loss(twin->forward(x.slice(0, begin, begin + 20)),
                           y.slice(0, begin, begin + 20))
        .backward();
    std::vector<Tensor> gradients;
    for (auto const& p : twin->parameters()) gradients.push_back(p.grad().flatten());
    auto const norm = torch::cat(gradients).norm().item<double>();
    if (norm > 2.5) ++clipped;
    for (auto& p : twin->parameters()) p.mutable_grad().mul_(std::min(1.0, 2.5 / (norm + 1e-6)));
    sgd.step();
  }
  CHECK(clipped > 0);
  CHECK(clipped < 6);
  CHECK((flat_parameters(net) - flat_parameters(twin)).abs().max().item<double>() < 1e-12);
}

TEST_CASE("a gradient shorter than clip_norm keeps its bits") {
  auto const experience = blobs();
  auto net = network(), free = network();
  Learner{net, Sgd{.lr = 0.1}}.fit(experience, {.batch_size = 20, .clip_norm = 1e6});
  Learner{free, Sgd{.lr = 0.1}}.fit(experience, {.batch_size = 20});
  CHECK(same_bits(flat_parameters(net), flat_parameters(free)));
}

TEST_CASE("the learning rate falls at the milestones of every experience, in any optimizer") {
  auto const rms_prop = [] {
    return TorchOptimizer{.make = [](std::vector<Tensor> parameters) {
      return std::make_unique<torch::optim::RMSprop>(parameters,
                                                     torch::optim::RMSpropOptions(0.01));
    }};
  };
  std::vector<AnyOptimizer> const optimizers{Sgd{.lr = 0.1, .momentum = 0.9}, Adam{.lr = 0.01},
                                             rms_prop()};
  Training const training{.epochs = 6, .batch_size = 20};
  auto scheduled = training;
  scheduled.lr_milestones = {2, 4};
  scheduled.lr_factor = 0.5;
  for (auto const& optimizer : optimizers) {
    INFO("optimizer: ", optimizer.type_name());
    auto net = network(), twin = network();
    AnyLearner learner{Model(net), optimizer, StrategyList{}};
    AnyLearner by_hand{Model(twin), optimizer, StrategyList{}};
    struct Sets {
      AnyLearner& learner;
      double rate = 0;
      void begin(Context const&) { factor(1); }
      void step(Context const& c) {
        if (rate == 0) rate = c.learning_rate();
        if (c.step == 6 || c.step == 12) factor(c.step == 6 ? 0.5 : 0.25);
      }
      void factor(double share) {
        if (rate > 0) learner.optimizer().set_learning_rate(rate * share);
      }
    } sets{by_hand};
    struct Rates {
      std::vector<double> seen;
      void step(Context const& c) { seen.push_back(c.learning_rate()); }
    } rates;
    for (std::int64_t e = 0; e < 2; ++e) {
      auto const experience = blobs(60, 3, torch::kFloat32, 1, e);
      learner.fit(experience, scheduled, rates);
      by_hand.fit(experience, training, sets);
    }
    CHECK(same_bits(flat_parameters(net), flat_parameters(twin)));
    CHECK(rates.seen[5] == rates.seen[0]);
    CHECK(rates.seen[6] == rates.seen[0] / 2);
    CHECK(rates.seen[17] == rates.seen[0] / 4);
    CHECK(rates.seen[18] == rates.seen[0]);
  }
}

TEST_CASE_TEMPLATE("an optimizer on the arena equals torch::optim to the last bit", Dtype, float,
                   double) {
  auto const dtype = torch::CppTypeToScalarType<Dtype>::value;
  auto const experience = blobs(64, 3, dtype);
  auto const compare = [&](AnyOptimizer ours, auto make_theirs) {
    auto net = network(3, dtype), twin = network(3, dtype);
    // In float32 and optimised programs, Adam goes in one pass, in which a root rounds otherwise.
    auto const in_one_pass = dtype == torch::kFloat32 && ours.type_name().rfind("adam", 0) == 0;
    Training const training{.epochs = 12,
                            .batch_size = 16,
                            .shuffle = false,
                            .engine = in_one_pass ? Engine::reference : Engine::compiled};
    AnyLearner learner{Model(net), std::move(ours), StrategyList{}};
    learner.fit(experience, training);
    AnyLearner theirs{Model(twin), AnyOptimizer(TorchOptimizer{make_theirs, nullptr, {}, {}}),
                      StrategyList{}};
    theirs.fit(experience, training);
    return same_bits(flat_parameters(net), flat_parameters(twin));
  };
  using Parameters = std::vector<Tensor>;
  CHECK(compare(Sgd{.lr = 0.1}, [](Parameters p) {
    return std::make_unique<torch::optim::SGD>(p, torch::optim::SGDOptions(0.1));
  }));
  CHECK(compare(Sgd{.lr = 0.1, .weight_decay = 0.01}, [](Parameters p) {
    return std::make_unique<torch::optim::SGD>(p, torch::optim::SGDOptions(0.1).weight_decay(0.01));
  }));
  CHECK(compare(
      Sgd{.lr = 0.1, .momentum = 0.9, .dampening = 0.2, .weight_decay = 0.01}, [](Parameters p) {
        return std::make_unique<torch::optim::SGD>(
            p, torch::optim::SGDOptions(0.1).momentum(0.9).dampening(0.2).weight_decay(0.01));
      }));
  CHECK(compare(Sgd{.lr = 0.1, .momentum = 0.9, .nesterov = true}, [](Parameters p) {
    return std::make_unique<torch::optim::SGD>(
        p, torch::optim::SGDOptions(0.1).momentum(0.9).nesterov(true));
  }));
  CHECK(compare(Adam{.lr = 0.01}, [](Parameters p) {
    return std::make_unique<torch::optim::Adam>(p, torch::optim::AdamOptions(0.01));
  }));
  CHECK(compare(Adam{.lr = 0.01, .weight_decay = 0.1}, [](Parameters p) {
    return std::make_unique<torch::optim::Adam>(p,
                                                torch::optim::AdamOptions(0.01).weight_decay(0.1));
  }));
  CHECK(compare(AdamW{.lr = 0.01, .weight_decay = 0.1}, [](Parameters p) {
    return std::make_unique<torch::optim::AdamW>(
        p, torch::optim::AdamWOptions(0.01).weight_decay(0.1));
  }));
}

namespace {

/// A module of bare parameters, of sizes that vector instructions divide and of others.
struct BareImpl : nn::Module {
  explicit BareImpl(torch::Dtype dtype) {
    std::int64_t i = 0;
    for (auto const& shape : shapes) {
      auto p = torch::empty(shape, dtype);
      fill_normal(p, 0, 1, Seed{5}.generator("bare", i));
      register_parameter(c10::str("p", i++), p);
    }
  }
  static inline std::vector<std::vector<std::int64_t>> const shapes{{16, 16}, {20}, {8, 4, 3, 3},
                                                                    {5, 7},   {1},  {64, 33}};
};

enum class Where { in_arena, apart };

/// Steps of an optimizer of ours on an arena, and of one of LibTorch, under the same gradients; the
/// second parameter has none in every third step. Returns the largest difference of weights.
template <class Ours, class Theirs>
double drift(Ours ours, Theirs&& make_theirs, torch::Dtype dtype, Where where) {
  BareImpl mine(dtype), twin(dtype);
  Arena arena(mine);
  std::unique_ptr<torch::optim::Optimizer> theirs = make_theirs(twin.parameters());
  for (std::int64_t step = 0; step < 20; ++step) {
    arena.clear_gradients();
    for (std::size_t i = 0; i < arena.parameters().size(); ++i) {
      auto const& p = arena.parameters()[i];
      auto g = torch::empty(p.sizes(), dtype);
      fill_normal(g, 0, 1, Seed{6}.generator("g", step, static_cast<std::int64_t>(i)));
      if (p.dim() == 4) g = g.contiguous(at::MemoryFormat::ChannelsLast);
      if (i == 1 && step % 3 == 2) g = Tensor();
      arena.parameters()[i].mutable_grad() = g;
      twin.parameters()[i].mutable_grad() = g.defined() ? g.clone() : g;
    }
    arena.note_active();
    if (where == Where::in_arena) arena.gradient();
    ours.step(arena);
    theirs->step();
  }
  double furthest = 0;
  for (std::size_t i = 0; i < mine.parameters().size(); ++i) {
    auto const apart = (mine.parameters()[i] - twin.parameters()[i]).abs().max();
    furthest = std::max(furthest, apart.template item<double>());
  }
  return furthest;
}

}  // namespace

TEST_CASE("momentum in one pass gives the bits of torch::optim, wherever gradients lie") {
  using torch::optim::SGDOptions;
  std::vector<std::pair<Sgd, SGDOptions>> const kinds{
      {Sgd{.lr = 0.1, .momentum = 0.9}, SGDOptions(0.1).momentum(0.9)},
      {Sgd{.lr = 0.1, .momentum = 0.9, .nesterov = true},
       SGDOptions(0.1).momentum(0.9).nesterov(true)},
      {Sgd{.lr = 0.1, .momentum = 0.5, .dampening = 0.3, .weight_decay = 0.02},
       SGDOptions(0.1).momentum(0.5).dampening(0.3).weight_decay(0.02)}};
  for (auto const dtype : {torch::kFloat32, torch::kFloat64}) {
    for (auto const where : {Where::in_arena, Where::apart}) {
      for (auto const& kind : kinds) {
        auto const& ours = kind.first;
        INFO("dtype: ", c10::toString(dtype), ", in arena: ", where == Where::in_arena,
             ", weight decay: ", ours.weight_decay, ", nesterov: ", ours.nesterov);
        auto const make = [o = kind.second](std::vector<Tensor> parameters) {
          return std::make_unique<torch::optim::SGD>(std::move(parameters), o);
        };
        CHECK(drift(ours, make, dtype, where) == 0);
      }
    }
  }
}

TEST_CASE("fused Adam is Adam to rounding, wherever gradients lie") {
  auto const adam = [](std::vector<Tensor> parameters) {
    return std::make_unique<torch::optim::Adam>(std::move(parameters),
                                                torch::optim::AdamOptions(0.01).weight_decay(0.05));
  };
  auto const adamw = [](std::vector<Tensor> parameters) {
    return std::make_unique<torch::optim::AdamW>(
        std::move(parameters), torch::optim::AdamWOptions(0.01).weight_decay(0.05));
  };
  for (auto const where : {Where::in_arena, Where::apart}) {
    CAPTURE(where == Where::in_arena);
    Adam ours{.lr = 0.01, .weight_decay = 0.05};
    AdamW decoupled{.lr = 0.01, .weight_decay = 0.05};
    CHECK(drift(ours, adam, torch::kFloat32, where) == 0);
    CHECK(drift(decoupled, adamw, torch::kFloat32, where) == 0);
    ours.fused = decoupled.fused = true;
    auto const rounding = drift(ours, adam, torch::kFloat32, where);
    CHECK(rounding > 0);  // or nothing was fused
    CHECK(rounding < 1e-6);
    CHECK(drift(ours, adam, torch::kFloat64, where) < 1e-14);
    CHECK(drift(decoupled, adamw, torch::kFloat32, where) < 1e-6);
    CHECK(drift(decoupled, adamw, torch::kFloat64, where) < 1e-14);
  }
}

TEST_CASE("closed-form gradients and autograd penalties add up with the loss") {
  auto const experience = blobs(12, 3, torch::kFloat64);
  auto net = network(3, torch::kFloat64), twin = network(3, torch::kFloat64);
  Learner learner{net, Sgd{.lr = 0.1}, Pull{.strength = 0.2}, SmallLogits{}};
  Recorder seen;
  learner.fit(experience, {.batch_size = 12, .shuffle = false}, seen);

  auto const x = experience.train.read(torch::arange(12)).stored;
  auto const z = twin->forward(x);
  auto const loss = at::cross_entropy_loss(z, experience.train.labels);
  auto const logits_penalty = z.square().sum() * (0.3 / 2 / 12);
  auto pull = torch::zeros({}, torch::kFloat64);
  for (auto const& p : twin->parameters()) pull = pull + (p - 1).square().sum() * 0.1;
  (loss + logits_penalty + pull).backward();
  torch::NoGradGuard no_grad;
  for (auto& p : twin->parameters()) p.sub_(p.grad(), 0.1);
  CHECK(flat_parameters(net).allclose(flat_parameters(twin), 1e-12, 1e-14));
  CHECK(seen.losses[0] == doctest::Approx(loss.item<double>()).epsilon(1e-12));
  CHECK(seen.penalties.size() == 2);
  CHECK(seen.penalties[0] == doctest::Approx(logits_penalty.item<double>()).epsilon(1e-12));
}

TEST_CASE("the task gradient leaves penalties out, with and without shards") {
  auto const experience = blobs(12, 3, torch::kFloat64);
  for (std::int64_t shards : {1, 3}) {
    CAPTURE(shards);
    auto net = network(3, torch::kFloat64), twin = network(3, torch::kFloat64);
    Learner learner{net, Sgd{.lr = 0.1}, KeepsTaskGradient{}, SmallLogits{}, Pull{}};
    learner.fit(experience, {.batch_size = 12, .shards = shards, .shuffle = false});
    auto const x = experience.train.read(torch::arange(12)).stored;
    at::cross_entropy_loss(twin->forward(x), experience.train.labels).backward();
    Arena arena(*twin);  // only for its layout
    auto const& kept = learner.strategy<KeepsTaskGradient>().kept;
    auto parameters = network(3, torch::kFloat64);
    auto const z = parameters->forward(x);
    auto const gradients = torch::autograd::grad(
        {at::cross_entropy_loss(z, experience.train.labels)}, parameters->parameters());
    SideGradient expected(arena, torch::zeros_like(arena.weights()));
    expected.add(gradients);
    CHECK(kept.allclose(expected.whole(), 1e-12, 1e-14));
  }
}

TEST_CASE("row weights are absolute: a default row counts one over the rows of the step") {
  auto const experience = blobs(8, 2, torch::kFloat64);
  for (std::int64_t shards : {1, 2}) {
    for (double const weight : {default_weight, 0.0, 0.25}) {
      CAPTURE(shards);
      CAPTURE(weight);
      auto net = network(2, torch::kFloat64);
      Learner learner{net, Sgd{.lr = 0}, Echo{.first = {}, .weight = weight}};
      Recorder seen;
      learner.fit(experience, {.batch_size = 4, .shards = shards, .shuffle = false}, seen);
      auto const x = experience.train.read(torch::arange(8)).stored;
      auto const each =
          at::cross_entropy_loss(net->forward(x), experience.train.labels, {}, at::Reduction::None);
      auto const fresh = each.slice(0, 4, 8).sum().item<double>();
      auto const echoed = each.slice(0, 0, 4).sum().item<double>();
      auto const expected = std::isnan(weight) ? (fresh + echoed) / 8 : fresh / 4 + weight * echoed;
      CHECK(seen.losses[1] == doctest::Approx(expected).epsilon(1e-12));
    }
  }
}

TEST_CASE("a step cut into shards is the whole step, and BatchNorm statistics are their mean") {
  auto const experience = blobs(12, 3, torch::kFloat64);
  auto const train = [&](std::int64_t shards) {
    auto net = network(3, torch::kFloat64);
    Learner learner{net, Adam{.lr = 0.05}, SmallLogits{}, Pull{}};
    learner.fit(experience, {.epochs = 4, .batch_size = 12, .shards = shards});
    return flat_parameters(net);
  };
  CHECK(train(1).allclose(train(4), 1e-9, 1e-12));
  CHECK(train(1).allclose(train(5), 1e-9, 1e-12));
  CHECK(same_bits(train(5), train(5)));

  nn::Sequential net(nn::BatchNorm1d(4), nn::Linear(4, 3));
  net->to(torch::kFloat64);
  Learner learner{net, Sgd{}};
  learner.fit(experience, {.batch_size = 12, .shards = 3, .shuffle = false});
  auto const x = experience.train.read(torch::arange(12)).stored;
  auto expected = torch::zeros({4}, torch::kFloat64);
  for (int v = 0; v < 3; ++v) expected += 0.1 * x.slice(0, 4 * v, 4 * v + 4).mean(0) / 3;
  CHECK(net->named_buffers()["0.running_mean"].allclose(expected, 1e-12));
  CHECK(net->named_buffers()["0.num_batches_tracked"].item<std::int64_t>() == 1);
}

TEST_CASE("the same seed gives the same bits, another seed others, dropout included") {
  auto const experience = blobs();
  auto const train = [&](std::uint64_t seed) {
    auto net = network_with_noise_and_norm();
    Learner learner{net, Sgd{.lr = 0.1}};
    learner.seed({seed}).fit(experience, {.epochs = 2, .batch_size = 16});
    return flat_parameters(net);
  };
  torch::manual_seed(3);
  auto const first = train(1);
  torch::manual_seed(4);
  CHECK(same_bits(first, train(1)));
  CHECK_FALSE(same_bits(first, train(2)));
}

TEST_CASE("training leaves the process-wide generator as found") {
  auto generator = at::detail::getDefaultCPUGenerator();
  auto const before = generator.get_state().clone();
  Learner learner{network_with_noise_and_norm(), Sgd{}};
  auto const untouched = generator.get_state().clone();
  learner.fit(blobs(), {.batch_size = 20});
  learner.predict(torch::zeros({2, 4}));
  CHECK(same_bits(generator.get_state(), untouched));
}

TEST_CASE("a run that is killed in the middle of an experience continues bit for bit") {
  auto const path = scratch("resume.safetensors");
  auto const first = blobs(60, 3, torch::kFloat32, 1, 0),
             second = blobs(60, 3, torch::kFloat32, 2, 1);
  Training const training{.epochs = 2, .batch_size = 13};
  auto const compose = [](nn::Sequential const& net) {
    Learner learner{net, Adam{.lr = 0.01}, Pull{}, Echo{}};
    learner.seed({5});
    return learner;
  };
  auto net = network_with_noise_and_norm();
  auto learner = compose(net);
  learner.fit(first, training);
  learner.fit(second, training, SavesAt{[&] { learner.save(path); }, 4});

  auto twin = network_with_noise_and_norm();
  auto resumed = compose(twin);
  resumed.load(path);
  resumed.strategy<Echo>().first = learner.strategy<Echo>().first;  // Echo has no state()
  CHECK(resumed.context().step == 4);
  resumed.fit(second, training);
  CHECK(same_bits(flat_parameters(net), flat_parameters(twin)));
  CHECK(same_bits(net->named_buffers()["1.running_var"], twin->named_buffers()["1.running_var"]));
  CHECK(resumed.strategy<Pull>().calls == learner.strategy<Pull>().calls);
  CHECK(resumed.context().total_steps == learner.context().total_steps);
}

TEST_CASE("typed and run-time compositions train to the same bits and exchange checkpoints") {
  auto const path = scratch("exchange.safetensors");
  auto const experience = blobs();
  auto net = network(), twin = network();
  Learner typed{net, Adam{}, Pull{}};
  AnyLearner erased{Model(twin), AnyOptimizer(Adam{}), StrategyList({AnyStrategy(Pull{})})};
  typed.fit(experience, {.batch_size = 20});
  erased.fit(experience, {.batch_size = 20});
  CHECK(same_bits(flat_parameters(net), flat_parameters(twin)));
  CHECK(typed.text() == erased.text());
  typed.save(path);
  erased.load(path);
  CHECK(erased.strategies().strategies[0].get<Pull>()->calls == 3);
}

TEST_CASE("accuracy does not depend on how many rows are evaluated at a time") {
  auto x = torch::empty({150, 2, 5, 5}, torch::kFloat64);
  fill_normal(x, 0, 1, Seed{1}.generator("x"));
  auto const y = torch::arange(150) % 3;
  auto const experience = make_experience(x, y);
  Stream const stream{.name = "one", .outputs = 3, .experiences = {experience}};
  nn::Sequential const convolving(nn::Conv2d(2, 4, 3), nn::Flatten(), nn::Linear(36, 3)),
      linear(nn::Flatten(), nn::Linear(50, 3));
  for (auto net : {convolving, linear}) {
    net->to(torch::kFloat64);
    Learner learner{net, Sgd{.lr = 0.1}};
    learner.fit(experience, {.iterations = 2});
    CHECK(evaluation_rows(learner.context()) == (net->size() == 3 ? 64 : 1000));
    auto const right = learner.predict(x).eq(y).to(torch::kFloat64).mean().item<double>();
    for (std::int64_t const rows : {0, 7, 150, 1000}) {
      auto const accuracy = evaluate(learner, stream, {.batch_size = rows}).accuracy[0];
      CHECK(accuracy == doctest::Approx(right).epsilon(1e-12));
    }
  }
}

TEST_CASE("observers and evaluation change nothing") {
  auto const experience = blobs();
  Stream const stream{"blobs", Scenario::classes, 3, {experience}};
  auto net = network_with_noise_and_norm(), twin = network_with_noise_and_norm();
  Learner plain{net, Sgd{.lr = 0.1}}, watched{twin, Sgd{.lr = 0.1}};
  plain.fit(experience, {.epochs = 2, .batch_size = 16});
  struct Evaluates {
    std::function<void()> look;
    void step(Context const&) { look(); }
  };
  watched.fit(experience, {.epochs = 2, .batch_size = 16},
              Evaluates{[&] { evaluate(watched, stream); }}, Recorder{});
  CHECK(same_bits(flat_parameters(net), flat_parameters(twin)));
  CHECK(same_bits(net->named_buffers()["1.running_mean"], twin->named_buffers()["1.running_mean"]));
}

TEST_CASE("a snapshot is a copy, and a scope under it leaves the live weights as they were") {
  auto net = network_with_noise_and_norm();
  Learner learner{net, Sgd{.lr = 0.1}};
  auto const x = torch::ones({3, 4});
  net->eval();
  auto const before = net->forward(x).detach();
  auto const taken = learner.snapshot();
  net->train();
  learner.fit(blobs(), {.batch_size = 20});
  net->eval();
  auto const after = net->forward(x).detach();
  CHECK_FALSE(before.allclose(after));
  {
    WithWeights scope(learner.context(), taken);
    CHECK(same_bits(net->forward(x).detach(), before));
  }
  CHECK(same_bits(net->forward(x).detach(), after));
  learner.roll_back(taken);
  CHECK(same_bits(net->forward(x).detach(), before));
}

TEST_CASE("a scope under other weights does not disturb a backward pass around it") {
  auto net = network(), twin = network();
  struct LooksBack {
    Snapshot old;
    Tensor seen;
    void begin(Context& c, Experience const&) {
      old = Snapshot::of(c);
      old.weights.zero_();
    }
    Tensor penalty(Context& c) {
      torch::NoGradGuard no_grad;
      WithWeights scope(c, old);
      seen = c.forward(c.batch.x);
      return {};
    }
  };
  Learner looking{net, Sgd{.lr = 0.1}, LooksBack{}};
  Learner plain{twin, Sgd{.lr = 0.1}};
  looking.fit(blobs(), {.batch_size = 20});
  plain.fit(blobs(), {.batch_size = 20});
  CHECK(looking.strategy<LooksBack>().seen.abs().max().item<double>() == 0);
  CHECK(same_bits(flat_parameters(net), flat_parameters(twin)));
}

TEST_CASE("parameters that lost their place in the arena are bound anew") {
  auto net = network();
  Learner learner{net, Sgd{.lr = 0.1, .momentum = 0.9}};
  learner.fit(blobs(), {.batch_size = 20});
  net->to(torch::kFloat64);
  Learner moved{net, Sgd{.lr = 0.1}};
  moved.fit(blobs(60, 3, torch::kFloat64), {.batch_size = 20});
  CHECK(moved.context().weights().dtype() == torch::kFloat64);
  {
    torch::NoGradGuard no_grad;
    net->parameters()[0].set_data(torch::zeros({8, 4}, torch::kFloat64));
  }
  moved.fit(blobs(60, 3, torch::kFloat64), {.batch_size = 20});
  CHECK(moved.context().arena.bound());
  net->zero_grad();
  moved.fit(blobs(60, 3, torch::kFloat64), {.batch_size = 20});
  CHECK(same_bits(moved.context().arena.parameter_view(moved.context().weights(), 0),
                  net->parameters()[0].detach()));
}

TEST_CASE("the gradient on the side is that of the mean loss, and disturbs nothing") {
  auto net = network_with_noise_and_norm();
  struct Asks {
    Tensor gradient;
    void edit_gradient(Context& c) {
      auto const mine = c.gradient().clone();
      gradient = c.gradient_on(c.fresh);
      REQUIRE(same_bits(mine, c.gradient()));
    }
  };
  auto twin = network_with_noise_and_norm();
  Learner asking{net, Sgd{.lr = 0.1}, Asks{}};
  Learner plain{twin, Sgd{.lr = 0.1}};
  asking.fit(blobs(), {.epochs = 2, .batch_size = 20});
  plain.fit(blobs(), {.epochs = 2, .batch_size = 20});
  CHECK(same_bits(flat_parameters(net), flat_parameters(twin)));
  CHECK(asking.strategy<Asks>().gradient.norm().item<double>() > 0);
}

TEST_CASE("gradients on the side may be kept, and each is its own") {
  // Holds on to the last gradient and its first, and lets go of those between.
  struct Keeps {
    std::vector<Tensor> held{}, copies{};
    void edit_gradient(Context& c) {
      auto const g = c.gradient_on(c.fresh);
      auto const half = c.gradient_on(c.fresh.slice(0, c.fresh.size() / 2));
      CHECK_FALSE(same_bits(g, half));
      CHECK(same_bits(g, c.gradient_on(c.fresh)));
      if (held.size() == 2) held.pop_back(), copies.pop_back();
      held.push_back(c.arena.parameter_view(half, 1)), copies.push_back(held.back().clone());
      for (std::size_t i = 0; i < held.size(); ++i) CHECK(same_bits(held[i], copies[i]));
    }
  };
  for (auto const engine : {Engine::compiled, Engine::reference}) {
    Learner learner{network(), Sgd{.lr = 0.1}, Keeps{}};
    learner.fit(blobs(), {.epochs = 2, .batch_size = 20, .engine = engine});
    CHECK(learner.strategy<Keeps>().held.size() == 2);
  }
}

TEST_CASE("one image is a batch for BatchNorm, where its maps have several pixels") {
  torch::manual_seed(2);
  auto const images = make_experience(torch::rand({11, 1, 4, 4}), torch::arange(11) % 3);
  auto const learn = [&](std::int64_t stride, Training training) {
    torch::manual_seed(3);
    nn::Conv2d convolution(nn::Conv2dOptions(1, 2, 4).stride(stride).padding(stride == 1 ? 1 : 0));
    auto const pixels = stride == 1 ? 9 : 1;
    nn::Sequential net(convolution, nn::BatchNorm2d(2), nn::Flatten(), nn::Linear(2 * pixels, 3));
    Learner learner{net, Sgd{.lr = 0.1}};
    learner.fit(images, training);
    return flat_parameters(net);
  };
  for (Training const& training : {Training{.batch_size = 5}, Training{.batch_size = 1},
                                   Training{.batch_size = 11, .shards = 6}}) {
    auto reference = training;
    reference.engine = Engine::reference;
    CHECK(learn(1, training).allclose(learn(1, reference), 1e-4, 1e-5));
    CHECK(contains(message_of([&] { learn(4, training); }), "one value per channel"));
  }
}

TEST_CASE("mistakes at the border of fit get one sentence") {
  auto const fit = [](Experience const& experience, Training training, auto net) {
    return message_of([&] {
      Learner learner{net, Sgd{}};
      learner.fit(experience, training);
    });
  };
  CHECK(contains(fit(blobs(10), {.batch_size = 11}, network()), "choose a smaller batch_size"));
  CHECK(contains(fit(blobs(10), {.epochs = 0, .batch_size = 5}, network()), "'epochs' is '0'"));
  CHECK(contains(fit(blobs(10), {.batch_size = 5, .shards = 6}, network()), "fewer shards"));
  CHECK(contains(fit(blobs(11), {.batch_size = 5}, network_with_noise_and_norm()), "one row"));
  CHECK(contains(fit(blobs(10, 5), {.batch_size = 5}, network()), "label 4 but the model has 3"));
  auto with_nan = torch::zeros({6, 4});
  with_nan[2][1] = std::nan("");
  CHECK(contains(fit(make_experience(with_nan, torch::zeros({6}, torch::kInt64)), {.batch_size = 3},
                     network()),
                 "NaN or infinity"));
  CHECK(contains(fit(make_experience(torch::zeros({6, 4}), -torch::ones({6}, torch::kInt64)),
                     {.batch_size = 3}, network()),
                 "label -1"));
  CHECK(contains(fit(blobs(10), {.batch_size = 5}, nn::Sequential(nn::ReLU())),
                 "no trainable parameter"));
  CHECK(contains(message_of([] { Learner learner{network(), Sgd{.lr = -1}}; }), "'lr' is '-1'"));
  CHECK(contains(message_of([] {
                   make_experience(torch::zeros({3, 4}), torch::zeros({2}));
                 }),
                 "do not pair up"));
  CHECK(contains(message_of([] {
                   AnyLearner{Model(network()), AnyOptimizer(), StrategyList({Owner{}, Owner{}})};
                 }),
                 "'owner' and 'owner' both own  loss"));
}

TEST_CASE("a loss that is not finite stops training before it reaches the weights") {
  auto net = network();
  Learner learner{net, Sgd{}, Explodes{}};
  struct Copies {
    nn::Sequential net;
    Tensor last;
    void step(Context const&) { last = flat_parameters(net); }
  } copies{net, {}};
  try {
    learner.fit(blobs(), {.batch_size = 10}, copies);
    FAIL("no error");
  } catch (Diverged const& error) {
    CHECK(error.experience == 0);
    CHECK(error.step == 2);
    CHECK(std::isfinite(error.task_loss));
    CHECK(error.penalties.at(0).first == "explodes");
    CHECK(contains(error.what(), "lower the learning rate"));
  }
  CHECK(same_bits(flat_parameters(net), copies.last));
}

TEST_CASE("active outputs: a masked output gets no gradient") {
  auto experience = blobs(12, 2, torch::kFloat64);
  for (auto const active : {Active::seen, Active::current, Active::batch}) {
    auto net = network(5, torch::kFloat64);
    auto const before = net->parameters()[2].detach().clone();
    Learner learner{net, Sgd{.lr = 0.1}};
    learner.fit(experience, {.batch_size = 12, .active = active});
    auto const moved = (net->parameters()[2].detach() - before).abs().sum(1);
    CHECK(moved.slice(0, 2, 5).max().item<double>() == 0);
    CHECK(moved.slice(0, 0, 2).min().item<double>() > 0);
  }
}

TEST_CASE(
    "a plan covers every row once per epoch, and depends on seed, experience and epoch alone") {
  Training const training{.epochs = 3, .batch_size = 4};
  Plan plan(10, training, {1}, 2), again(10, training, {1}, 2), other(10, training, {2}, 2);
  CHECK(plan.steps() == 9);
  auto const late = again.positions(7);  // out of order
  std::vector<Tensor> rows, others;
  for (std::int64_t s = 0; s < 9; ++s) {
    rows.push_back(plan.positions(s));
    others.push_back(other.positions(s));
  }
  CHECK(same_bits(late, rows[7]));
  for (int epoch = 0; epoch < 3; ++epoch) {
    auto const all = torch::cat({rows[3 * epoch], rows[3 * epoch + 1], rows[3 * epoch + 2]});
    CHECK(same_bits(std::get<0>(all.sort()), torch::arange(10)));
  }
  CHECK_FALSE(same_bits(torch::cat(rows), torch::cat(others)));
  CHECK_FALSE(same_bits(rows[0], rows[3]));

  Plan capped(10, {.iterations = 7, .batch_size = 4, .drop_last = true}, {1}, 0);
  CHECK(capped.steps() == 7);
  CHECK(capped.epoch_of(6) == 3);
  for (std::int64_t s = 0; s < 7; ++s) CHECK(capped.positions(s).numel() == 4);
  Plan twice(10, {.batch_size = 5, .passes = 2}, {1}, 0);
  CHECK(same_bits(twice.positions(0), twice.positions(1)));
  CHECK(twice.pass_of(1) == 1);
}

TEST_CASE("slices of shards are consecutive, nearly equal and complete") {
  for (std::int64_t n = 0; n < 40; ++n) {
    std::int64_t end = 0;
    for (std::int64_t v = 0; v < 7; ++v) {
      auto const slice = shard_slice(n, v, 7);
      CHECK(slice.begin == end);
      CHECK(slice.size() - n / 7 >= 0);
      CHECK(slice.size() - n / 7 <= 1);
      end = slice.end;
    }
    CHECK(end == n);
  }
}

TEST_CASE("generators are independent, unbiased and stable across platforms") {
  auto generator = Seed{1}.generator("order");
  CHECK(generator.bits() != Seed{1}.generator("draw").bits());
  CHECK(Seed{1}.generator("order", 1, 2).bits() != Seed{1}.generator("order", 2, 1).bits());
  CHECK(Seed{1}.generator("order").bits() == Seed{1}.generator("order").bits());
  CHECK(Generator(0).bits() == 0xe220a8397b1dcdafULL);  // the first word of SplitMix64 from 0
  // Chi-square of 60,000 draws over 6 values: 5 degrees of freedom, false alarm 1e-6 at 36.
  std::vector<double> counts(6);
  for (int i = 0; i < 60000; ++i) counts[static_cast<std::size_t>(generator.below(6))] += 1;
  double chi = 0;
  for (auto const n : counts) chi += (n - 10000) * (n - 10000) / 10000;
  CHECK(chi < 36);
  double sum = 0, square = 0;
  for (int i = 0; i < 40000; ++i) {
    auto const draw = generator.normal();
    sum += draw, square += draw * draw;
  }
  CHECK(std::abs(sum / 40000) < 0.025);  // 5 standard errors
  CHECK(std::abs(square / 40000 - 1) < 0.036);
  auto const sample = generator.sample(5, 1000);
  CHECK(sample.size() == 5);
  CHECK(generator.fork(3).bits() == Generator(generator.key()).fork(3).bits());
}

TEST_CASE("options are read and set by name, and refuse what does not fit") {
  Sgd sgd;
  set_option(sgd, "lr", "0.25");
  CHECK(sgd.lr == 0.25);
  CHECK(contains(message_of([&] { set_option(sgd, "momentun", "0"); }), "did you mean 'momentum'"));
  CHECK(contains(message_of([&] { set_option(sgd, "momentum", "1"); }), "must be [0, 1)"));
  CHECK(contains(message_of([&] { set_option(sgd, "lr", "fast"); }), "'lr' is 'fast'"));
  CHECK(contains(message_of([&] { set_option(sgd, "lr", "nan"); }), "must be"));
  Training training;
  set_option(training, "active", "seen");
  CHECK(training.active == Active::seen);
  CHECK(
      contains(message_of([&] { set_option(training, "active", "sen"); }), "did you mean 'seen'"));
  for (auto& option : options_of(training).all()) {
    auto const before = option.get();
    option.set(before);
    CHECK(option.get() == before);
    CHECK_FALSE(option.help.empty());
  }
}

TEST_CASE("numbers of options read back to the bit, and nothing else passes for one") {
  for (auto const value : {0.0, 0.1, 1.0 / 3, 1e-8, 5e-324, 1.7976931348623157e308, 0.1 + 0.2, 1e15,
                           12345678901234567168.0, -2.5}) {
    CAPTURE(value);
    double same = -1;
    CHECK(read_number(number_text(value), same));
    CHECK(same == value);
  }
  CHECK(number_text(0.1) == "0.1");
  CHECK(number_text(1.0) == "1");
  double real = 0;
  for (auto const* const text : {"", " 1", "1 ", "+1", "1,5", "0x10", "1e", "nan", "inf", "--1"}) {
    CAPTURE(text);
    CHECK_FALSE(read_number(text, real));
  }
  std::int64_t whole = 0;
  CHECK(read_number("-9223372036854775808", whole));
  CHECK(whole == std::numeric_limits<std::int64_t>::min());
  for (auto const* const text : {"9223372036854775808", "1.0", "1e3", "0x10", "+5"}) {
    CAPTURE(text);
    CHECK_FALSE(read_number(text, whole));
  }
}

TEST_CASE("numbers of options do not depend on the program's locale") {
  struct Comma : std::numpunct<char> {
    char do_decimal_point() const override { return ','; }
    char do_thousands_sep() const override { return '.'; }
    std::string do_grouping() const override { return "\3"; }
  };
  auto const found = std::locale::global(std::locale(std::locale(), new Comma));
  double real = 0;
  CHECK(number_text(12345.5) == "12345.5");
  CHECK(read_number("0.25", real));
  CHECK(real == 0.25);
  CHECK_FALSE(read_number("0,25", real));
  CHECK(text_of({12345, " ", 0.5}) == "12345 0.5");
  auto const folder = std::filesystem::temp_directory_path() / "pawl_locale.safetensors";
  nn::Sequential net(nn::Linear(40, 40)), other(nn::Linear(40, 40));
  Learner{net, Sgd{}}.save(folder.string());
  Learner loaded{other, Sgd{}};
  loaded.load(folder.string());
  CHECK(other->parameters()[0].equal(net->parameters()[0]));
  std::filesystem::remove(folder);
  std::locale::global(found);
}

TEST_CASE("labels of tasks are kept apart, ascending and once") {
  TaskLabels labels;
  CHECK(labels.empty());
  for (auto const& [task, label] : {std::pair{2, 5}, {0, 7}, {2, 3}, {0, 1}, {2, 5}, {-1, 4}}) {
    labels.add(task, label);
  }
  using List = std::vector<std::int64_t>;
  CHECK(labels.tasks() == List{-1, 0, 2});
  CHECK(labels.of(0) == List{1, 7});
  CHECK(labels.of(2) == List{3, 5});
  CHECK(labels.of(1).empty());
  Archive save(Archive::Mode::save);
  labels.state(save);
  auto load = save.to_load();
  TaskLabels loaded;
  loaded.state(load);
  CHECK(loaded == labels);
  Archive cut(Archive::Mode::load);
  cut.tensors.insert("tasks", torch::tensor({0, 0}, torch::kInt64));
  cut.tensors.insert("labels", torch::tensor({1}, torch::kInt64));
  CHECK(contains(message_of([&] { loaded.state(cut); }), "2 task ids for 1 labels"));
}

TEST_CASE("a state that is listed twice under one name is refused") {
  Archive save(Archive::Mode::save);
  auto tensor = torch::ones({2});
  std::int64_t number = 3;
  save("w", tensor), save("n", number);
  CHECK(contains(message_of([&] { save("w", tensor); }), "the state 'w' is listed twice"));
  CHECK(contains(message_of([&] { save("n", number); }), "the state 'n' is listed twice"));
}

TEST_CASE("a union of data sets reads each row from where it lies") {
  auto const a = whole(resident(torch::arange(4).view({4, 1}), torch::zeros({4}, torch::kInt64)));
  auto const b =
      whole(resident(10 + torch::arange(3).view({3, 1}), torch::ones({3}, torch::kInt64)));
  auto const view = concatenate({a.select(torch::tensor({3, 1})), b, a});
  CHECK(view.size() == 9);
  auto const rows = view.read(torch::tensor({4, 0, 1, 8}));
  CHECK(same_bits(rows.stored.view({-1}), torch::tensor({12, 3, 1, 3})));
  CHECK(same_bits(rows.labels, torch::tensor({1, 0, 0, 0})));
}

TEST_CASE("inputs are scaled, shifted and divided per channel") {
  Normalise const normalise{.scale = 0.5, .mean = {1, 2}, .deviation = {2, 4}};
  auto const bytes = torch::full({1, 2, 1, 1}, 10, torch::kUInt8);
  auto const x = normalise(bytes, torch::kFloat64);
  CHECK(x[0][0].item<double>() == 2);
  CHECK(x[0][1].item<double>() == 0.75);
  auto const floats = torch::ones({2, 2});
  (Normalise{.scale = 3, .mean = {}, .deviation = {}})(floats, torch::kFloat32);
  CHECK(floats.max().item<double>() == 1);  // the stored rows stay as they are
}

TEST_CASE("a learner says which hooks its strategies were found to have") {
  Learner learner{network(), Sgd{}, Pull{}};
  CHECK(contains(learner.text(), "sgd + pull {edit_gradient, after_step}"));
}
