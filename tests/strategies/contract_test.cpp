// The contract that every strategy keeps, whatever it does. A new strategy in the catalogue is
// tried at once; one whose defaults do not suit the toy stream gets a line in `toy_options`.

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/dropout.h>
#include <pawl/core/any_learner.hpp>
#include <pawl/heads/growing.hpp>
#include <pawl/heads/multi_head.hpp>
#include <pawl/memory/catalogue.hpp>
#include <pawl/metrics/evaluate.hpp>
#include <pawl/optimizers/catalogue.hpp>
#include <pawl/stream/joint.hpp>
#include <strategies/compiled.hpp>

#include <doctest/doctest.h>  // after LibTorch, whose own CHECK must not win

using namespace pawl;
using compiled::make_strategy;
using compiled::strategy_names;

namespace {

using Settings = std::vector<std::pair<std::string, std::string>>;

Settings toy_options(std::string const& name) {
  static std::map<std::string, Settings> const table{
      {"ewc", {{"strength", "5"}}},
      {"mas", {{"strength", "0.2"}}},
      {"si", {{"strength", "0.5"}}},
      {"lwf", {{"strength", "0.5"}}},
      {"a_gem", {{"batch", "16"}}},
      {"der", {{"alpha", "0.3"}}},
      {"derpp", {{"alpha", "0.3"}, {"beta", "0.5"}}},
  };
  auto const found = table.find(name);
  auto settings = found == table.end() ? Settings{} : found->second;
  auto probe = make_strategy(name);
  for (auto const& option : options_of(probe).all()) {
    if (option.name == "capacity") settings.emplace_back("capacity", "40");
  }
  return settings;
}

AnyStrategy configured(std::string const& name) {
  auto strategy = make_strategy(name);
  for (auto const& [option, value] : toy_options(name)) set_option(strategy, option, value);
  return strategy;
}

/// Class c is a gaussian around its own corner of the cube, 30 rows a class; experience e has two
/// classes.
Stream toy_stream(Scenario scenario = Scenario::classes, torch::Dtype dtype = torch::kFloat64,
                  std::int64_t experiences = 2) {
  Stream stream{"blobs", scenario, scenario == Scenario::task ? 2 : 2 * experiences, {}};
  for (std::int64_t e = 0; e < experiences; ++e) {
    auto const y = torch::arange(60, torch::kInt64) % 2;
    auto x = torch::empty({60, 6}, dtype);
    fill_normal(x, 0, 0.5, Seed{11}.generator("toy", e));
    auto const label = y + 2 * e;
    for (std::int64_t bit = 0; bit < 3; ++bit) {
      x.select(1, bit).add_(label.bitwise_right_shift(bit).bitwise_and(1).to(dtype) * 3);
    }
    x.select(1, 3).add_(1);
    stream.experiences.push_back(scenario == Scenario::task
                                     ? make_experience(x, y, {0, 1}, e, e)
                                     : make_experience(x, label, {2 * e, 2 * e + 1}, e));
  }
  return stream;
}

nn::Sequential network(std::string const& kind, std::int64_t outputs,
                       torch::Dtype dtype = torch::kFloat64) {
  nn::Sequential net;
  net->push_back(nn::Linear(6, 12));
  if (kind == "norm" || kind == "noise") net->push_back(nn::BatchNorm1d(12));
  net->push_back(nn::Tanh());
  if (kind == "noise") net->push_back(nn::Dropout(0.3));
  if (kind == "growing") {
    net->push_back(GrowingHead(12));
  } else if (kind == "multi") {
    net->push_back(MultiHead(12, outputs));
  } else {
    net->push_back(nn::Linear(12, outputs));
  }
  net->to(dtype);
  std::int64_t i = 0;
  for (auto& p : net->parameters()) fill_normal(p, 0, 0.4, Seed{3}.generator("net", i++));
  return net;
}

struct Built {
  nn::Sequential net;
  AnyLearner learner;
};

Built build(std::vector<AnyStrategy> strategies, std::string const& kind = "linear",
            std::int64_t outputs = 4, torch::Dtype dtype = torch::kFloat64,
            AnyOptimizer optimizer = Sgd{.lr = 0.1}) {
  auto net = network(kind, outputs, dtype);
  AnyLearner learner{Model(net), std::move(optimizer), StrategyList(std::move(strategies))};
  learner.seed({4});
  return {net, std::move(learner)};
}

Tensor weights_of(Built const& built) {
  std::vector<Tensor> all;
  for (auto const& p : built.net.ptr()->parameters())
    all.push_back(p.detach().reshape({-1}).clone());
  return torch::cat(all);
}

Training const usual{.epochs = 6, .batch_size = 10};

AccuracyMatrix train(Built& built, Stream const& stream, Training const& training = usual) {
  AccuracyMatrix accuracy;
  for (auto const& experience : stream) {
    built.learner.fit(experience, training);
    accuracy.append(evaluate(built.learner, stream));
  }
  return accuracy;
}

bool has_option(std::string const& strategy, std::string const& option) {
  auto probe = make_strategy(strategy);
  auto const options = options_of(probe).all();
  return std::any_of(options.begin(), options.end(),
                     [&](auto const& o) { return o.name == option; });
}

/// Calls something after one step of the second experience.
struct CallsAt {
  std::function<void()> call;
  std::int64_t at = 17;
  void step(Context const& c) {
    if (c.index == 1 && c.step == at) call();
  }
};

/// Watches all there is, and looks further.
struct Watches {
  static constexpr bool wants_penalties = true;
  std::function<void()> look;
  std::int64_t steps = 0;
  void begin(Context const&) {}
  void step(Context const&) { ++steps, look(); }
  void end(Context const&) { look(); }
};

std::string bytes_of(std::filesystem::path const& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// Trains three experiences with and without a kill, in the middle of the second and at its end,
/// and compares all that a checkpoint holds, byte for byte.
void check_resume(std::function<Built()> const& fresh, Stream const& stream,
                  Training const& training) {
  auto const folder = std::filesystem::temp_directory_path() / "pawl_contract_test";
  std::filesystem::create_directories(folder);
  auto const middle = folder / "middle", boundary = folder / "boundary", end = folder / "end";
  auto const rows = stream[0].train.read(torch::arange(20));
  auto whole = fresh();
  Tensor scores;
  whole.learner.fit(stream[0], training);
  whole.learner.fit(stream[1], training, CallsAt{[&] {
                      scores = whole.learner.scores(rows.stored, rows.task);
                      whole.learner.save(middle);
                    }});
  whole.learner.save(boundary);
  whole.learner.fit(stream[2], training);
  whole.learner.save(end);
  auto const expected = bytes_of(end);

  auto resumed = fresh();
  resumed.learner.load(middle);
  resumed.learner.load(middle);
  CHECK(resumed.learner.context().step == 17);
  CHECK(resumed.learner.scores(rows.stored, rows.task).equal(scores));
  resumed.learner.save(end);
  CHECK(bytes_of(end) == bytes_of(middle));
  resumed.learner.fit(stream[1], training);
  resumed.learner.save(end);
  CHECK(bytes_of(end) == bytes_of(boundary));
  resumed.learner.fit(stream[2], training);
  resumed.learner.save(end);
  CHECK(bytes_of(end) == expected);

  auto later = fresh();
  later.learner.load(boundary);
  later.learner.fit(stream[2], training);
  later.learner.save(end);
  CHECK(bytes_of(end) == expected);
  scores = whole.learner.scores(rows.stored, rows.task);
  CHECK(later.learner.scores(rows.stored, rows.task).equal(scores));
  CHECK(later.learner.state_bytes() == whole.learner.state_bytes());
  std::filesystem::remove_all(folder);
}

}  // namespace

TEST_CASE("every strategy learns two experiences and forgets no more than naive training") {
  auto const stream = toy_stream();
  auto naive = build({});
  auto const reference = train(naive, stream);
  for (auto const& name : strategy_names()) {
    INFO("strategy: ", name);
    auto built = build({configured(name)});
    auto const parameters = weights_of(built).numel();
    auto const accuracy = train(built, stream);
    CHECK(accuracy.forgetting() <= reference.forgetting() + 0.02);
    CHECK(accuracy.learning_accuracy() >= 0.9 * reference.learning_accuracy());
    auto const weights = weights_of(built);
    CHECK(weights.isfinite().all().item<bool>());
    CHECK(weights.numel() == parameters);
    CHECK(weights.dtype() == torch::kFloat64);
  }
}

TEST_CASE("the same seed gives the same bits for every strategy") {
  auto const stream = toy_stream(Scenario::classes, torch::kFloat32);
  for (auto const& name : strategy_names()) {
    INFO("strategy: ", name);
    auto one = build({configured(name)}, "norm", 4, torch::kFloat32);
    auto two = build({configured(name)}, "norm", 4, torch::kFloat32);
    train(one, stream), train(two, stream);
    CHECK(weights_of(one).equal(weights_of(two)));
  }
}

TEST_CASE("every strategy gives the same with and without autograd's graph") {
  for (auto const& name : strategy_names()) {
    CAPTURE(name);
    auto const run = [&](Engine engine) {
      auto built = build({configured(name)});
      auto training = usual;
      training.engine = engine;
      train(built, toy_stream(), training);
      return weights_of(built);
    };
    CHECK(run(Engine::compiled).allclose(run(Engine::reference), 1e-10, 1e-12));
  }
}

TEST_CASE("a strategy of strength 0, or with a memory of capacity 0, is naive bit for bit") {
  auto const stream = toy_stream();
  auto naive = build({});
  train(naive, stream);
  std::int64_t tried = 0;
  for (auto const& name : strategy_names()) {
    for (std::string const option : {"strength", "capacity"}) {
      if (!has_option(name, option) || name == "er_ace" || name == "ncm") continue;
      INFO("strategy: ", name, ", option: ", option);
      auto strategy = configured(name);
      set_option(strategy, option, "0");
      if (option == "capacity" && has_option(name, "per_group")) {
        set_option(strategy, "per_group", "0");
      }
      auto built = build({strategy});
      train(built, stream);
      CHECK(weights_of(built).equal(weights_of(naive)));
      ++tried;
    }
  }
  CHECK(tried >= 6);
}

TEST_CASE("strategies that need a past leave the first experience naive, bit for bit") {
  auto const stream = toy_stream();
  auto naive = build({});
  naive.learner.fit(stream[0], usual);
  for (std::string const name : {"ewc", "si", "mas", "lwf", "a_gem", "ncm"}) {
    INFO("strategy: ", name);
    auto built = build({configured(name)});
    built.learner.fit(stream[0], usual);
    CHECK(weights_of(built).equal(weights_of(naive)));
  }
}

TEST_CASE("a run that is killed continues bit for bit, for every strategy and kind of training") {
  struct Setup {
    std::string kind;
    std::string optimizer;
    Training training;
  };
  std::vector<Setup> const setups{
      {"norm", "adam", usual},
      {"growing", "sgd", {.epochs = 4, .batch_size = 10}},
      {"noise", "adamw", {.epochs = 4, .batch_size = 10, .shards = 3}},
      {"multi", "adam", {.epochs = 6, .batch_size = 10, .idle_heads = IdleHeads::zero_gradient}},
      {"linear", "sgd", {.iterations = 21, .batch_size = 11, .passes = 2, .drop_last = true}},
      {"growing", "adam", {.epochs = 2, .batch_size = 10, .passes = 2, .shards = 3}}};
  auto names = strategy_names();
  names.emplace_back("naive");
  for (auto const& name : names) {
    for (auto const& setup : setups) {
      if (name == "ncm" && setup.kind == "multi") continue;  // class means know labels, not tasks
      INFO("strategy: ", name, ", network: ", setup.kind, ", optimizer: ", setup.optimizer);
      auto const tasks = setup.kind == "multi";
      auto const stream =
          toy_stream(tasks ? Scenario::task : Scenario::classes, torch::kFloat32, 3);
      check_resume(
          [&] {
            auto optimizer = make_optimizer(setup.optimizer);
            if (setup.optimizer == "sgd") set_option(optimizer, "momentum", "0.9");
            std::vector<AnyStrategy> strategies;
            if (name != "naive") strategies.push_back(configured(name));
            return build(strategies, setup.kind, stream.outputs, torch::kFloat32, optimizer);
          },
          stream, setup.training);
    }
  }
}

TEST_CASE("a run that is killed continues bit for bit with every memory") {
  auto const stream = toy_stream(Scenario::classes, torch::kFloat64, 3);
  for (auto const& name : strategy_names()) {
    if (!has_option(name, "memory")) continue;
    for (auto const& memory : memory_names()) {
      INFO("strategy: ", name, ", memory: ", memory);
      auto strategy = make_strategy(name);
      set_option(strategy, "memory", memory);
      if (name == "ncm") set_option(strategy, "source", "memory");
      auto const options = options_of(strategy).all();
      for (auto const& option : options) {
        if (option.name == "capacity") option.set("30");
        if (option.name == "draw") option.set("cycle");
      }
      check_resume([&] { return build({strategy}, "linear", 6); }, stream, usual);
    }
  }
}

TEST_CASE("two strategies of one kind keep their states apart in a checkpoint") {
  auto const stream = toy_stream(Scenario::classes, torch::kFloat64, 3);
  check_resume(
      [] {
        return build({configured("replay"), configured("lwf"), configured("replay"),
                      configured("si"), configured("a_gem")},
                     "growing");
      },
      stream, usual);
}

TEST_CASE("a step cut into shards is the whole step for every strategy, and the same bits again") {
  auto const stream = toy_stream();
  auto const run = [&](std::string const& name, std::int64_t shards) {
    auto built = build({configured(name)});
    built.learner.fit(stream[0], usual);  // the same past for both
    built.learner.fit(stream[1], {.iterations = 3, .batch_size = 11, .shards = shards});
    return weights_of(built);
  };
  for (auto const& name : strategy_names()) {
    INFO("strategy: ", name);
    auto const one = run(name, 1), three = run(name, 3);
    CHECK((one - three).abs().max().item<double>() < 1e-9);
    CHECK(three.equal(run(name, 3)));
  }
}

TEST_CASE("every strategy works with a growing head, a head per task and BatchNorm") {
  for (auto const& name : strategy_names()) {
    INFO("strategy: ", name);
    for (std::string const kind : {"growing", "norm"}) {
      INFO("network: ", kind);
      auto built = build({configured(name)}, kind);
      auto const accuracy = train(built, toy_stream(Scenario::classes, torch::kFloat64, 2));
      CHECK(accuracy.learning_accuracy() > 0.6);  // chance is .25 or .5
      CHECK(weights_of(built).isfinite().all().item<bool>());
    }
    if (name == "ncm") continue;  // class means know labels, not tasks
    auto built = build({configured(name)}, "multi", 2);
    auto const accuracy = train(built, toy_stream(Scenario::task, torch::kFloat64, 3));
    CHECK(accuracy.learning_accuracy() > 0.6);  // chance is .25 or .5
    CHECK(weights_of(built).isfinite().all().item<bool>());
  }
}

TEST_CASE("no strategy touches the process-wide generator, the training flag or the stream") {
  auto const stream = toy_stream(), untouched = toy_stream();
  for (auto const& name : strategy_names()) {
    INFO("strategy: ", name);
    auto built = build({configured(name)}, "norm");
    auto const before = at::detail::getDefaultCPUGenerator().get_state().clone();
    train(built, stream);
    CHECK(at::detail::getDefaultCPUGenerator().get_state().equal(before));
    for (auto const& part : built.net->modules()) CHECK(part->is_training());
    for (std::int64_t e = 0; e < stream.size(); ++e) {
      auto const &now = stream[e].train, &then = untouched[e].train;
      CHECK(now.rows.equal(then.rows));
      CHECK(now.labels.equal(then.labels));
      CHECK(now.read(now.rows).stored.equal(then.read(then.rows).stored));
    }
  }
}

TEST_CASE("watching every step, and evaluating after it, changes nothing for any strategy") {
  auto const stream = toy_stream();
  for (auto const& name : strategy_names()) {
    INFO("strategy: ", name);
    auto alone = build({configured(name)}, "noise"), watched = build({configured(name)}, "noise");
    for (auto const& experience : stream) {
      alone.learner.fit(experience, usual);
      // Class means of an experience are there when it has ended.
      Watches watches{[&] {
        if (name != "ncm" || experience.index > 0) evaluate(watched.learner, stream);
      }};
      watched.learner.fit(experience, usual, watches, Watches{[] {}});
      CHECK(watches.steps == 36);
    }
    CHECK(weights_of(alone).equal(weights_of(watched)));
    CHECK(alone.learner.state_bytes() == watched.learner.state_bytes());
  }
}

TEST_CASE("property 9: joint training on any split is training on the union") {
  auto const stream = toy_stream(Scenario::classes, torch::kFloat64, 3);
  std::vector<Tensor> x, y;
  for (auto const& experience : stream) {
    x.push_back(experience.train.read(torch::arange(experience.train.size())).stored);
    y.push_back(experience.train.labels);
  }
  auto split = build({}, "norm", 6), whole = build({}, "norm", 6);
  for (auto const& experience : joint(stream)) split.learner.fit(experience, usual);
  whole.learner.fit(make_experience(torch::cat(x), torch::cat(y)), usual);
  CHECK(weights_of(split).equal(weights_of(whole)));
}

TEST_CASE("adding a strategy that only watches does not change the draws of another") {
  auto const stream = toy_stream();
  auto alone = build({configured("replay")});
  auto with = build({configured("ncm"), configured("replay")});
  train(alone, stream), train(with, stream);
  CHECK(weights_of(alone).equal(weights_of(with)));
}

TEST_CASE("every strategy says what it is, and every option of it can be read and set") {
  for (auto const& name : strategy_names()) {
    INFO("strategy: ", name);
    auto strategy = make_strategy(name);
    CHECK(strategy.record().name == name);
    CHECK_FALSE(strategy.record().hooks.empty());
    for (auto const& option : options_of(strategy).all()) {
      INFO("option: ", option.name);
      CHECK_FALSE(option.help.empty());
      // Choosing a component makes another one, and the options at hand would refer to the old.
      if (option.kind != Option::Kind::component) option.set(option.get());
    }
    CHECK_THROWS_AS(set_option(strategy, "no_such_option", "1"), Error);
  }
}
