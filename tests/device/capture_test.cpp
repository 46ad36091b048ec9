// Steps that a device replays are the steps that it would have run: on a device made for tests,
// which counts what is asked of it. (On CUDA: cuda_test.cpp.)

#include <pawl/torch.hpp>

#ifdef PAWL_ANY_GRAPH

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "../core/named.hpp"
#include "../core/rehearses.hpp"
#include "fake_device.hpp"
#include "toy.hpp"

#include <doctest/doctest.h>  // after LibTorch, whose own CHECK must not win

using namespace pawl;
using namespace toy;

namespace {

bool starts_with(std::string const& text, std::string const& start) {
  return text.compare(0, start.size(), start) == 0;
}

/// The losses of all steps, added up on the device.
struct Sum {
  static constexpr bool only_losses = true;
  Tensor total{};
  std::int64_t steps = 0;
  void step(Context const& c) {
    total = total.defined() ? total + c.task_loss : c.task_loss.clone();
    ++steps;
  }
};

Learner<nn::Sequential, Sgd, StrategySet<Rehearses>> small_learner(torch::Device device,
                                                                   std::string const& kind) {
  auto net = network(kind, torch::kFloat32);
  net->to(device);
  return {net, Sgd{.lr = 0.05}, Rehearses{}};
}

/// The learning rates of all steps.
struct Rates {
  static constexpr bool only_losses = true;
  std::vector<double> seen;
  void step(Context const& c) { seen.push_back(c.learning_rate()); }
};

struct Stop {};
struct Stops {
  static constexpr bool only_losses = true;
  std::int64_t at = 0;
  void step(Context const& c) {
    if (c.step == at) throw Stop{};
  }
};

template <class L>
struct SavesAhead {
  static constexpr bool only_losses = true;
  L& learner;
  std::filesystem::path path;
  void step(Context const& c) {
    if (c.step == 70) learner.save(path);
  }
};

/// A strategy of one's own whose steps depend on the learning rate as a number.
struct ShrinksByRate {
  bool capturable() const { return true; }
  void after_step(Context& c) { c.weights().mul_(1 - 0.01 * c.learning_rate()); }
};

/// What a run on the device made for tests says about its steps, and whether it learned what the
/// same run learned step by step.
template <class Make>
std::string engine_of(Make&& make, Experience const& experience, Training training) {
  auto captured = make();
  training.engine = Engine::compiled;
  captured.fit(experience, training);
  auto eager = make();
  training.engine = Engine::eager;
  eager.fit(experience, training);
  CHECK(captured.context().weights().equal(eager.context().weights()));
  return captured.context().engine();
}

}  // namespace

TEST_CASE("the device made for tests refuses what CUDA refuses, and only notes what it records") {
  auto const there = fake::device();
  auto const x = torch::ones({3}).to(there);
  auto kept = torch::zeros({3}).to(there), lost = torch::zeros({3}).to(there);
  auto const record = [](auto&& work) {
    auto graph = std::make_unique<DeviceGraph>(fake::device());
    graph->begin();
    try {
      work();
    } catch (...) {
      graph->abandon();
      throw;
    }
    graph->end();
    return graph;
  };
  auto const graph = record([&] { kept.add_(x); });
  CHECK(kept.cpu().equal(torch::zeros({3})));
  graph->replay();
  graph->replay();
  CHECK(kept.cpu().equal(torch::full({3}, 2.0)));
  CHECK_THROWS(record([&] { x.cpu(); }));
  CHECK_THROWS(record([&] { torch::ones({3}).to(there); }));
  CHECK_THROWS(record([&] { x.sum().item<float>(); }));
  CHECK_THROWS(record([&] { x.nonzero(); }));
  auto const dangling = record([&] { lost.add_(x); });
  lost.reset();
  CHECK_THROWS(dangling->replay());
}

TEST_CASE("every strategy learns the same captured as step by step, and as on the host") {
  struct Case {
    std::string network, optimizer;
    std::int64_t shards;
  };
  for (auto const& name : all_strategies()) {
    for (auto const& one :
         {Case{"linear", "sgd", 1}, Case{"linear", "adam", 1}, Case{"norm", "momentum", 1},
          Case{"norm", "sgd", 2}, Case{"growing", "adam", 1}}) {
      INFO("strategy: ", name, ", network: ", one.network, ", optimizer: ", one.optimizer,
           ", shards: ", one.shards);
      Training training{.epochs = 4, .batch_size = 14, .shards = one.shards};
      auto const run_on = [&](torch::Device device) {
        return run(name, one.network, device, torch::kFloat64, optimizer_named(one.optimizer),
                   training);
      };
      auto const captured = run_on(fake::device());
      auto const host = run_on(torch::kCPU);
      training.engine = Engine::eager;
      auto const eager = run_on(fake::device());
      CHECK(starts_with(captured.engine, "captured, "));
      CHECK(starts_with(eager.engine, "not captured (engine = eager"));
      CHECK(captured.weights.equal(eager.weights));
      CHECK(captured.losses == eager.losses);
      CHECK(captured.accuracy == eager.accuracy);
      CHECK(distance(captured.weights, host.weights) < 1e-7);
    }
  }
}

TEST_CASE("steps that nobody looks at are planned many at a time") {
  auto const experience = images(Scenario::classes, fake::device())[0];
  Training const training{.epochs = 200, .batch_size = 12};  // 1000 steps
  auto learner = small_learner(fake::device(), "linear");
  learner.fit(experience, {.epochs = 20, .batch_size = 12});  // the memory fills up
  fake::counts = {};
  learner.fit(experience, training);
  auto const& counts = fake::counts;
  // Two steps run as written; one is recorded, and the 16 of a table follow; a series of eight is
  // recorded, and the other 973, in tables of up to 256, are 121 series and five steps.
  CHECK(counts.replays == 1 + 16 + 1 + 121 + 5);
  CHECK(counts.recorded == 2);
  // The losses are looked at once per table.
  CHECK(counts.to_device < 20);
  CHECK(counts.waits <= 8);
  CHECK(counts.kernels < 200);
}

TEST_CASE("a captured step asks the device for nothing but its replay") {
  auto const stream = images(Scenario::classes, fake::device());
  auto const asked = [&](std::string const& name, Engine engine, std::int64_t epochs) {
    std::vector<AnyStrategy> strategies;
    if (name != "naive") strategies.push_back(configured(name));
    auto learner = learner_of(network("linear", torch::kFloat32), fake::device(),
                              std::move(strategies), Sgd{.lr = 0.01});
    learner.fit(stream[0], {.epochs = 4, .batch_size = 10});  // the memory fills up
    fake::counts = {};
    learner.fit(stream[1], {.epochs = epochs, .batch_size = 10, .engine = engine});
    return fake::counts;
  };
  std::puts("operations, copies to the device, waits of the host, replays; per step");
  for (auto const& name : all_strategies()) {
    INFO("strategy: ", name);
    for (auto const engine : {Engine::eager, Engine::compiled}) {
      constexpr double steps = 6 * 200;
      auto const few = asked(name, engine, 100), more = asked(name, engine, 300);
      auto const per_step = [&](auto of) {
        return static_cast<double>(more.*of - few.*of) / steps;
      };
      auto const kernels = per_step(&fake::Counts::kernels);
      auto const copies = per_step(&fake::Counts::to_device);
      auto const waits = per_step(&fake::Counts::waits);
      auto const replays = per_step(&fake::Counts::replays);
      std::printf("%-8s %-8s %5.1f %6.3f %6.3f %4.1f\n", name.c_str(),
                  engine == Engine::eager ? "eager" : "captured", kernels, copies, waits, replays);
      if (engine == Engine::eager) continue;
      CHECK(replays == 1.0 / 8);  // a graph for eight steps
      CHECK(kernels < 0.01);      // a table in 256 steps
      CHECK(copies < 0.01);
      CHECK(waits < 0.01);  // a look at the losses
    }
  }
}

TEST_CASE("observers see every step that is replayed") {
  struct Looks {
    std::vector<Tensor> labels, logits, weights;
    std::vector<std::int64_t> steps;
    bool rows_fit = true;
    void step(Context const& c) {
      labels.push_back(c.batch.y.cpu());
      logits.push_back(c.logits.detach().cpu());
      weights.push_back(c.weights().cpu().clone());
      steps.push_back(c.step);
      rows_fit = rows_fit && c.fresh.y.cpu().equal(c.fresh.labels);
      std::vector<Tensor> of_parts;
      for (auto const& part : c.batch.parts) of_parts.push_back(part.rows.labels);
      rows_fit = rows_fit && torch::cat(of_parts).equal(labels.back());
      rows_fit = rows_fit && c.fresh_logits().size(0) == c.fresh.size();
    }
  };
  auto const seen = [&](Engine engine) {
    auto learner = small_learner(fake::device(), "norm");
    Looks looks;
    Sum sum;
    for (auto const& experience : images(Scenario::classes, fake::device())) {
      learner.fit(experience, {.epochs = 6, .batch_size = 14, .engine = engine}, looks, sum);
    }
    CHECK(looks.rows_fit);
    CHECK(sum.steps == static_cast<std::int64_t>(looks.steps.size()));
    return std::pair(looks, sum.total.item<float>());
  };
  auto const [captured, sum] = seen(Engine::compiled);
  auto const [eager, eager_sum] = seen(Engine::eager);
  REQUIRE(captured.steps == eager.steps);
  for (std::size_t i = 0; i < eager.steps.size(); ++i) {
    CHECK(captured.labels[i].equal(eager.labels[i]));
    CHECK(captured.logits[i].equal(eager.logits[i]));
    CHECK(captured.weights[i].equal(eager.weights[i]));
  }
  CHECK(sum == eager_sum);
}

TEST_CASE("an observer of losses alone is told of every step of a table") {
  auto const added = [&](Engine engine) {
    auto learner = small_learner(fake::device(), "linear");
    Sum sum;
    learner.fit(images(Scenario::classes, fake::device())[0],
                {.epochs = 10, .batch_size = 14, .engine = engine}, sum);
    CHECK(sum.steps == 50);
    CHECK(learner.context().step == 50);
    CHECK(learner.context().total_steps == 50);
    return sum.total.item<float>();
  };
  CHECK(added(Engine::compiled) == added(Engine::eager));
}

TEST_CASE("steps that are one graph are the steps that they would have been one by one") {
  auto const stream = images(Scenario::classes, fake::device());
  for (auto const& name : all_strategies()) {
    for (std::string const optimizer : {"sgd", "adam"}) {
      INFO("strategy: ", name, ", optimizer: ", optimizer);
      auto const learned = [&](Engine engine) {
        std::vector<AnyStrategy> strategies;
        if (name != "naive") strategies.push_back(configured(name));
        auto learner = learner_of(network("norm", torch::kFloat32), fake::device(),
                                  std::move(strategies), optimizer_named(optimizer));
        Sum sum;
        for (auto const& experience : stream) {
          learner.fit(experience, {.epochs = 20, .batch_size = 12, .engine = engine}, sum);
        }
        CHECK(sum.steps == 200);
        return std::pair(learner.context().weights().cpu().clone(), sum.total.item<float>());
      };
      fake::counts = {};
      auto const captured = learned(Engine::compiled);
      CHECK(fake::counts.replays > 2 * (1 + 16 + 1));  // a table, before a series is recorded
      CHECK(fake::counts.replays < 100);
      auto const eager = learned(Engine::eager);
      CHECK(captured.first.equal(eager.first));
      CHECK(captured.second == eager.second);
    }
  }
}

TEST_CASE("learners in threads of their own learn on one device what each learns alone") {
  auto const stream = images(Scenario::classes, fake::device());
  Training const training{.epochs = 14, .batch_size = 12};  // 70 steps: tables and series
  for (auto const& name : all_strategies()) {
    INFO("strategy: ", name);
    auto const at_once = four_learners(name, "norm", stream, training, Together::at_once);
    auto const alone = four_learners(name, "norm", stream, training, Together::no);
    for (std::size_t i = 0; i < alone.size(); ++i) {
      CHECK(at_once[i].engine == alone[i].engine);
      CHECK(at_once[i].weights.equal(alone[i].weights));
    }
    CHECK_FALSE(alone[0].weights.equal(alone[1].weights));
  }
}

TEST_CASE("a fleet's learners share graphs and products, and learn what each learns alone") {
  auto const stream = images(Scenario::classes, fake::device());
  Training const training{.epochs = 14, .batch_size = 12};
  for (auto const& name : all_strategies()) {
    for (std::string const kind : {"linear", "norm"}) {
      INFO("strategy: ", name, ", network: ", kind);
      fake::counts = {};
      auto const fleet = four_learners(name, kind, stream, training, Together::as_fleet);
      auto const of_fleet = fake::counts;
      auto const alone = four_learners(name, kind, stream, training, Together::no);
      for (std::size_t i = 0; i < alone.size(); ++i) {
        CHECK(distance(fleet[i].weights, alone[i].weights) < 1e-9);
        if (name == "er_ace") continue;  // how many rows it replays depends on what it drew
        CHECK(starts_with(fleet[i].engine, "captured together"));
      }
      if (name == "er_ace") continue;
      CHECK(of_fleet.recorded == 2 * (4 + 1));  // in each experience one step each, and a series
      // Of the 70 steps each runs three as written (with Adam), records one and replays 16 of a
      // table by itself; the other 50 are six series of all, and two steps.
      CHECK(of_fleet.replays == 2 * (4 * (1 + 16 + 2) + 6));
      // Two products on the way to the logits and three on the way back, for all at once.
      CHECK((of_fleet.stacked >= 2 * 8 * 5) == (kind == "linear"));
    }
  }
}

TEST_CASE("a fleet goes on when a learner ends early, fails, or learns something else") {
  auto const there = fake::device();
  auto const stream = images(Scenario::classes, there);
  struct Course {
    std::int64_t epochs[2];
    std::string strategy;
    std::int64_t stops = -1;  // in the second experience, by an observer
    std::string engine;       // in the end
  };
  auto const runs_of = [&](std::vector<Course> const& courses, bool as_fleet) {
    std::vector<nn::Sequential> nets;
    for (std::size_t i = 0; i < courses.size(); ++i) {
      nets.push_back(network("linear", torch::kFloat64));
    }
    std::vector<toy::Run> runs(courses.size());
    Fleet fleet(courses.size());
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i < courses.size(); ++i) {
      threads.emplace_back([&, i] {
        std::optional<Fleet::Member> member;
        if (as_fleet) member.emplace(fleet, i);
        auto learner =
            learner_of(nets[i], there, {configured(courses[i].strategy)}, Sgd{.lr = 0.05});
        learner.seed({i});
        learner.fit(stream[0], {.epochs = courses[i].epochs[0], .batch_size = 12});
        Stops stops{courses[i].stops};
        try {
          learner.fit(stream[1], {.epochs = courses[i].epochs[1], .batch_size = 12}, stops);
        } catch (Stop const&) {
        }
        runs[i].weights = learner.context().weights().cpu().clone();
        runs[i].engine = learner.context().engine();
      });
    }
    for (auto& thread : threads) thread.join();
    return runs;
  };
  std::string const together = "captured together, compiled", apart = "captured, compiled";
  for (auto const& courses : {
           std::vector<Course>{{{60, 70}, "ewc", -1, together},
                               {{20, 65}, "ewc", -1, together},
                               {{70, 80}, "ewc", -1, together}},
           std::vector<Course>{{{60, 90}, "ewc", -1, together}, {{60, 90}, "ewc", 300, together}},
           std::vector<Course>{{{60, 90}, "ewc", 10, apart}, {{60, 90}, "ewc", -1, apart}},
           std::vector<Course>{{{60, 60}, "ewc", -1, apart}, {{60, 60}, "si", -1, apart}},
           std::vector<Course>{{{60, 60}, "ewc", -1, apart}},
       }) {
    auto const fleet = runs_of(courses, true), alone = runs_of(courses, false);
    for (std::size_t i = 0; i < courses.size(); ++i) {
      INFO("learner ", i, " of ", courses.size(), ": ", courses[i].strategy, ", stops at ",
           courses[i].stops);
      CHECK(fleet[i].engine == courses[i].engine);
      CHECK(distance(fleet[i].weights, alone[i].weights) < 1e-9);
    }
  }
}

TEST_CASE("a fleet refuses a number that it has not, and a second membership of a thread") {
  Fleet fleet(2);
  CHECK_THROWS_WITH(Fleet::Member(fleet, 2), doctest::Contains("a number below 2"));
  Fleet::Member const member(fleet, 0);
  CHECK_THROWS_WITH(Fleet::Member(fleet, 1), doctest::Contains("a thread is one member at a time"));
}

TEST_CASE("a step of another kind ends the series that is being recorded") {
  auto const experience = images(Scenario::classes, fake::device())[0];
  auto const make = [] {
    return learner_of(network("linear", torch::kFloat32), fake::device(), {ShrinksByRate{}},
                      Sgd{.lr = 0.05});
  };
  // Three steps run as written (that the rate is used is seen in the first), one is recorded, 16
  // are in the first table; from step 25 on the learning rate is another one.
  fake::counts = {};
  auto const engine =
      engine_of(make, experience, {.epochs = 60, .batch_size = 12, .lr_milestones = {5}});
  CHECK(engine == "captured, compiled");
  // A step of either rate, five of the first, eight of the other.
  CHECK(fake::counts.recorded == 4);
}

TEST_CASE(
    "a learning rate of every epoch needs no graph of its own, unless it is used as a number") {
  auto const experience = images(Scenario::classes, fake::device())[0];
  Training training{.epochs = 40, .batch_size = 4};  // 15 steps each
  training.lr_schedule = Schedule::cosine;
  for (std::string const optimizer : {"sgd", "momentum", "adam", "adamw"}) {
    for (AnyStrategy const& strategy : {configured("ewc"), AnyStrategy(ShrinksByRate{})}) {
      INFO("optimizer: ", optimizer, ", strategy: ", strategy.type_name());
      auto const make = [&] {
        return learner_of(network("linear", torch::kFloat32), fake::device(), {strategy},
                          optimizer_named(optimizer));
      };
      fake::counts = {};
      CHECK(engine_of(make, experience, training) == "captured, compiled");
      if (strategy.type_name() == "ewc") {
        CHECK(fake::counts.recorded == 2);  // a step and a series, which serve all rates
        CHECK(fake::counts.replays < 600 / 8 + 30);
      } else {
        CHECK(fake::counts.recorded > 38);
        CHECK(fake::counts.replays > 600 - 40 * 3 - 300);
      }
    }
  }
}

TEST_CASE("an observer of losses alone sees the rate of every step") {
  auto const rates = [](Engine engine) {
    auto learner = small_learner(fake::device(), "linear");
    Training training{.epochs = 40, .batch_size = 4, .engine = engine};
    training.lr_schedule = Schedule::cosine;
    Rates observer;
    learner.fit(images(Scenario::classes, fake::device())[0], training, observer);
    return observer.seen;
  };
  CHECK(rates(Engine::compiled) == rates(Engine::eager));
}

TEST_CASE("in half precision, rates and factors on a device are not rounded to it") {
  auto net = network("linear", torch::kFloat32);
  for (auto& p : net->parameters()) fill_normal(p, 0, 1, Seed{4}.generator("net"));
  net->to(fake::device(), torch::kBFloat16);
  auto const updated = [&](auto optimizer, double scale) {
    Arena arena(*net);
    for (auto p : arena.parameters()) p.mutable_grad() = p.detach() * scale;
    arena.note_active();
    arena.gradient();
    auto const before = arena.weights().cpu().to(torch::kFloat32);
    optimizer.step(arena);
    return std::pair(before, arena.weights().cpu().clone());
  };
  auto const rounded = [](Tensor const& x) { return x.to(torch::kBFloat16); };
  auto const [from, to] = updated(Sgd{.lr = 0.0997}, 1);  // 0.0996 in bfloat16
  CHECK(to.equal(rounded(from - 0.0997 * from)));
  CHECK_FALSE(to.equal(rounded(from - rounded(torch::tensor(0.0997)).to(torch::kFloat32) * from)));
  auto const [whole, less] = updated(AdamW{.lr = 0.1, .weight_decay = 0.02}, 0);
  CHECK(less.equal(rounded(whole * 0.998)));  // which is 1 in bfloat16
  CHECK_FALSE(less.equal(rounded(whole)));
}

TEST_CASE("a rate is a number for an optimizer that does not upload it") {
  struct Own {
    Sgd sgd{};
    void step(Arena& arena) { count(arena), apply(arena); }
    void count(Arena&) {}
    void apply(Arena& arena) {
      torch::NoGradGuard const no_grad;
      arena.gradient();
      arena.weights().add_(arena.gradient(), -sgd.lr);
    }
    void reset() {}
    void state(Archive&) {}
    double learning_rate() const { return sgd.lr; }
    void set_learning_rate(double rate) { sgd.lr = rate; }
  };
  auto const experience = images(Scenario::classes, fake::device())[0];
  auto const make = [] {
    return learner_of(network("linear", torch::kFloat32), fake::device(), {configured("ewc")},
                      Own{});
  };
  Training training{.epochs = 12, .batch_size = 4, .lr_milestones = {3, 6}};
  fake::counts = {};
  CHECK(engine_of(make, experience, training) == "captured, compiled");
  CHECK(fake::counts.recorded >= 3);  // a step of each rate
}

TEST_CASE("an observer that throws stops training after the steps that were planned") {
  auto const experience = images(Scenario::classes, fake::device())[0];
  Training const training{.epochs = 100, .batch_size = 12};
  for (std::int64_t const at : {10, 22, 80}) {  // in a table, in a series that is recorded, in one
    auto learner = small_learner(fake::device(), "linear");
    Stops stops{at};
    CHECK_THROWS_AS(learner.fit(experience, training, stops), Stop);
    auto& c = learner.context();
    auto const stopped = c.step;
    CHECK(stopped > at);
    CHECK((at == 22) == (stopped <= at + 8));  // a series ends sooner than a table
    // As if it had been asked for so many steps; the memory holds what was written to it.
    auto other = small_learner(fake::device(), "linear");
    auto fewer = training;
    fewer.iterations = stopped;
    fewer.engine = Engine::eager;
    other.fit(experience, fewer);
    CHECK(c.weights().equal(other.context().weights()));
    auto const held = learner.strategy<Rehearses>().memory.contents();
    CHECK(held.stored.equal(other.strategy<Rehearses>().memory.contents().stored));
    CHECK(held.y.cpu().equal(held.labels));
  }
}

TEST_CASE("an observer of losses alone cannot save what is not there yet") {
  auto const experience = images(Scenario::classes, fake::device())[0];
  auto learner = small_learner(fake::device(), "linear");
  auto const path = std::filesystem::temp_directory_path() / "pawl_saved_ahead";
  SavesAhead<decltype(learner)> saves{learner, path};
  CHECK_THROWS_WITH(learner.fit(experience, {.epochs = 30, .batch_size = 12}, saves),
                    doctest::Contains("an observer that saves must not say only_losses"));
  CHECK_FALSE(std::filesystem::exists(path));
}

TEST_CASE("a learning rate that changes and a gradient that is clipped are captured") {
  auto const experience = images(Scenario::classes, fake::device())[0];
  for (std::string const optimizer : {"sgd", "momentum", "adamw"}) {
    INFO("optimizer: ", optimizer);
    auto const make = [&] {
      return learner_of(network("linear", torch::kFloat32), fake::device(), {configured("ewc")},
                        optimizer_named(optimizer));
    };
    fake::counts = {};
    auto const engine =
        engine_of(make, experience,
                  {.epochs = 9, .batch_size = 12, .clip_norm = 0.1, .lr_milestones = {3, 6}});
    CHECK(engine == "captured, compiled");
    CHECK(fake::counts.recorded == 2);  // a step and a series
  }
}

TEST_CASE("several passes over the same rows are captured") {
  auto const stream = images(Scenario::classes, fake::device());
  for (auto const& name : all_strategies()) {
    for (std::int64_t const passes : {2, 3}) {
      INFO("strategy: ", name, ", passes: ", passes);
      Training training{.epochs = 6, .batch_size = 14, .passes = passes};
      auto const run_on = [&](torch::Device device) {
        return run(name, "linear", device, torch::kFloat64, optimizer_named("momentum"), training);
      };
      auto const captured = run_on(fake::device()), host = run_on(torch::kCPU);
      training.engine = Engine::eager;
      auto const eager = run_on(fake::device());
      CHECK(captured.engine == "captured, compiled");
      CHECK(captured.weights.equal(eager.weights));
      CHECK(captured.losses == eager.losses);
      CHECK(distance(captured.weights, host.weights) < 1e-7);
    }
  }
}

TEST_CASE("images that are varied anew in every step are captured, and as on the host") {
  Training const training{.epochs = 6, .batch_size = 12, .augment = {.crop = 2, .flip = true}};
  auto eager = training, host = training;
  eager.engine = Engine::eager;
  for (auto const& name : all_strategies()) {
    INFO("strategy: ", name);
    auto const run_on = [&](torch::Device device, Training const& how) {
      return run(name, "linear", device, torch::kFloat64, optimizer_named("sgd"), how);
    };
    auto const captured = run_on(fake::device(), training), slow = run_on(fake::device(), eager);
    CHECK(captured.engine == "captured, compiled");
    CHECK(captured.weights.equal(slow.weights));
    CHECK(captured.losses == slow.losses);
    CHECK(distance(captured.weights, run_on(torch::kCPU, host).weights) < 1e-9);
  }
}

TEST_CASE("a run that is saved and resumed in the middle of captured steps gives the same bits") {
  auto const folder = std::filesystem::temp_directory_path() / "pawl_capture_test";
  std::filesystem::create_directories(folder);
  auto const stream = images(Scenario::classes, fake::device());
  Training const training{.epochs = 6, .batch_size = 12};
  for (auto const& name : all_strategies()) {
    INFO("strategy: ", name);
    auto const fresh = [&] {
      std::vector<AnyStrategy> strategies;
      if (name != "naive") strategies.push_back(configured(name));
      return learner_of(network("growing", torch::kFloat32), fake::device(), std::move(strategies),
                        Sgd{.lr = 0.05, .momentum = 0.9});
    };
    struct Saves {
      AnyLearner& learner;
      std::filesystem::path path;
      void step(Context const& c) {
        if (c.index == 1 && c.step == 14) learner.save(path);
      }
    };
    auto whole = fresh();
    whole.fit(stream[0], training);
    whole.fit(stream[1], training, Saves{whole, folder / "middle"});
    whole.save(folder / "end");
    auto resumed = fresh();
    resumed.load(folder / "middle");
    resumed.fit(stream[1], training);
    resumed.save(folder / "resumed");
    CHECK(bytes_of(folder / "resumed") == bytes_of(folder / "end"));
  }
  std::filesystem::remove_all(folder);
}

TEST_CASE("heads per task are captured where all rows of an experience have one task") {
  for (auto const& name : all_strategies()) {
    INFO("strategy: ", name);
    if (name == "ncm") continue;  // compares all classes
    Training training{.epochs = 5, .batch_size = 12};
    auto const captured =
        run(name, "multi", fake::device(), torch::kFloat64, optimizer_named("momentum"), training);
    training.engine = Engine::eager;
    auto const eager =
        run(name, "multi", fake::device(), torch::kFloat64, optimizer_named("momentum"), training);
    auto const has_memory =
        name == "replay" || name == "er_ace" || name == "a_gem" || name == "der" || name == "derpp";
    CHECK(starts_with(captured.engine, "captured") == !has_memory);
    CHECK(captured.weights.equal(eager.weights));
    CHECK(captured.losses == eager.losses);
  }
}

TEST_CASE("what cannot be captured runs step by step, and says why") {
  auto const there = fake::device();
  auto const experience = images(Scenario::classes, there)[0];
  Training const training{.epochs = 5, .batch_size = 12};
  auto const replay = named("replay");
  auto const of = [&](AnyStrategy strategy, AnyOptimizer optimizer = Sgd{.lr = 0.05},
                      std::string const& kind = "linear") {
    return [=] { return learner_of(network(kind, torch::kFloat32), there, {strategy}, optimizer); };
  };
  auto const why = [&](auto const& make, Experience const& e, Training const& t) {
    auto const text = engine_of(make, e, t);
    return text.substr(0, text.find(')') + 1);
  };
  CHECK(why(of(replay), images()[0], training) ==
        "not captured ('tensors' does not lie on the device)");
  auto active = training;
  active.active = Active::batch;
  CHECK(why(of(replay), experience, active) ==
        "not captured (each batch has its own active classes)");
  CHECK(why(of(named("replay", {{"draw", "cycle"}})), experience, training) ==
        "not captured (the strategy 'replay' does not say that it is capturable)");
  CHECK(why(of(replay, make_optimizer("rmsprop")), experience, training) ==
        "not captured (the optimizer has no  count  and  apply)");
  CHECK(why(of(replay, Sgd{.lr = 0.05}, "noise"), experience, training) ==
        "not captured (the model draws random numbers)");
  auto tasks = images(Scenario::task, there)[0];
  CHECK(why(of(replay, Sgd{.lr = 0.05}, "multi"), tasks, training) ==
        "not captured (rows have heads of their own)");
}

namespace {

/// A module that waits for the device in every forward.
struct WaitingImpl : nn::Module {
  WaitingImpl() : inner(register_module("inner", network("linear", torch::kFloat32))) {}
  Tensor forward(Tensor const& x) {
    auto const z = inner->forward(x);
    return z.abs().max().item<float>() > 1e6 ? z * 0 : z;
  }
  nn::Sequential inner;
};
TORCH_MODULE(Waiting);

/// One that does so in one of the steps that are recorded.
struct WaitingOnceImpl : nn::Module {
  explicit WaitingOnceImpl(int in_step)
      : inner(register_module("inner", network("linear", torch::kFloat32))), in_step(in_step) {}
  Tensor forward(Tensor const& x) {
    auto const z = inner->forward(x);
    auto const now = recording() && ++recorded == in_step;
    return now && z.max().item<float>() > 1e6 ? z * 0 : z;
  }
  nn::Sequential inner;
  int in_step, recorded = 0;
};
TORCH_MODULE(WaitingOnce);

/// A strategy of a user who did not think of devices, and one who did.
struct Shrinks {
  void after_step(Context& c) { c.weights().mul_(0.999); }
};
struct ShrinksThere : Shrinks {
  bool capturable() const { return true; }
};

}  // namespace

TEST_CASE("a module that waits for the device is noticed when a step is recorded, and runs on") {
  auto const experience = images(Scenario::classes, fake::device())[0];
  auto const make = [] {
    Waiting module;
    module->to(fake::device());
    return learner_of(module, Adam{.lr = 0.01}, {configured("derpp")});
  };
  CHECK(engine_of(make, experience, {.epochs = 5, .batch_size = 12}) ==
        "not captured (a look at a value is not permitted when a stream is capturing), reference: "
        "the model is not a chain of layers");
}

TEST_CASE("steps are replayed one by one where the device refuses to record a series") {
  auto const experience = images(Scenario::classes, fake::device())[0];
  Training const training{.epochs = 100, .batch_size = 12};
  auto const make = [](int in_step) {
    return [in_step] {
      WaitingOnce module(in_step);
      module->to(fake::device());
      return learner_of(module, Adam{.lr = 0.01}, {configured("derpp")});
    };
  };
  fake::counts = {};
  CHECK(starts_with(engine_of(make(2), experience, training), "captured, reference"));
  // Run as written are three steps while the memory fills up, and the one that was refused.
  CHECK(fake::counts.replays == 500 - 4);
  // Steps before it in the series cannot be taken back.
  CHECK_THROWS_WITH(make(4)().fit(experience, training), doctest::Contains("capturing"));
}

TEST_CASE("a strategy of one's own is captured when it says so") {
  auto const experience = images(Scenario::classes, fake::device())[0];
  auto const engine_with = [&](auto strategy) {
    auto const make = [&] {
      auto net = network("linear", torch::kFloat32);
      net->to(fake::device());
      return Learner{net, Sgd{.lr = 0.05}, strategy};
    };
    return engine_of(make, experience, {.epochs = 5, .batch_size = 12});
  };
  CHECK(starts_with(engine_with(Shrinks{}), "not captured (the strategy '"));
  CHECK(engine_with(ShrinksThere{}) == "captured, compiled");
}

TEST_CASE("a loss that stops being finite is noticed in replayed steps") {
  auto const experience = images(Scenario::classes, fake::device())[0];
  for (auto const engine : {Engine::compiled, Engine::eager}) {
    // In the middle, and in the last steps that are looked at.
    for (std::int64_t const epochs : {100, 21}) {
      auto learner = small_learner(fake::device(), "linear");
      learner.optimizer().lr = 1e38;
      Training const training{.epochs = epochs, .batch_size = 12, .engine = engine};
      CHECK_THROWS_AS(learner.fit(experience, training), Diverged);
    }
  }
}

TEST_CASE("a row that is drawn again while it is planned is drawn the same") {
  auto const experience = images(Scenario::classes, fake::device())[0];
  for (std::string const draw : {"uniform", "class_balanced"}) {
    for (std::string const memory : {"reservoir", "class_balanced", "ring"}) {
      INFO("draw: ", draw, ", memory: ", memory);
      auto const make = [&] {
        auto replay = named("replay");
        set_option(replay, "memory", memory);
        for (auto const& option : options_of(replay).all()) {
          if (option.name == "capacity") set_option(replay, "capacity", "20");
        }
        set_option(replay, "draw", draw);
        set_option(replay, "batch", "7");
        return learner_of(network("linear", torch::kFloat32), fake::device(), {replay},
                          Sgd{.lr = 0.05});
      };
      CHECK(engine_of(make, experience, {.epochs = 9, .batch_size = 13}) == "captured, compiled");
    }
  }
}

#else

#include <cstdio>

#include <doctest/doctest.h>

TEST_CASE("captured steps on a device made for tests") {
  std::puts("not run: this LibTorch records on CUDA alone");
}

#endif
