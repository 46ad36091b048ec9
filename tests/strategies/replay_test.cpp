// Strategies with a memory: replay, DER, DER++, ER-ACE, A-GEM and class means in a learner. Values
// worked out by hand are in hand_values_test.cpp.

#include <cmath>
#include <filesystem>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <torch/nn/modules/activation.h>
#include <pawl/core/learner.hpp>
#include <pawl/heads/growing.hpp>
#include <pawl/heads/multi_head.hpp>
#include <pawl/heads/nearest_mean.hpp>
#include <pawl/strategies/a_gem.hpp>
#include <pawl/strategies/der.hpp>
#include <pawl/strategies/er_ace.hpp>
#include <pawl/strategies/lwf.hpp>
#include <pawl/strategies/ncm.hpp>
#include <pawl/strategies/replay.hpp>

#include <doctest/doctest.h>  // after LibTorch, whose own CHECK must not win

using namespace pawl;

namespace {

auto const float64 = torch::TensorOptions(torch::kFloat64);

/// n rows [n, 4]; labels go round the given classes.
Experience blobs(std::int64_t index, std::vector<std::int64_t> const& classes, std::int64_t n = 24,
                 std::int64_t task = -1) {
  auto const position = torch::arange(n) % static_cast<std::int64_t>(classes.size());
  auto const y = torch::tensor(classes).index_select(0, position);
  auto x = torch::empty({n, 4}, float64);
  fill_normal(x, 0, 1, Seed{5}.generator("blobs", index));
  return make_experience(x + y.unsqueeze(1), y, classes, index, task);
}

nn::Sequential filled(nn::Sequential net) {
  net->to(torch::kFloat64);
  std::int64_t i = 0;
  for (auto& p : net->parameters()) fill_normal(p, 0, 0.5, Seed{3}.generator("net", i++));
  return net;
}

nn::Sequential network(std::int64_t outputs = 6) {
  return filled(nn::Sequential(nn::Linear(4, 8), nn::Tanh(), nn::Linear(8, outputs)));
}
nn::Sequential normed() {
  return filled(nn::Sequential(nn::Linear(4, 8), nn::BatchNorm1d(8), nn::Tanh(), nn::Linear(8, 6)));
}
nn::Sequential headed(std::int64_t tasks = 3) {
  nn::Sequential net(nn::Linear(4, 8), nn::Tanh());
  net->push_back(MultiHead(8, 2, tasks, Seed{2}));
  return filled(net);
}

Tensor weights_of(nn::Sequential const& net) {
  std::vector<Tensor> all;
  for (auto const& p : net->parameters()) all.push_back(p.detach().reshape({-1}).clone());
  return torch::cat(all);
}

double distance(Tensor const& a, Tensor const& b) { return (a - b).abs().max().item<double>(); }

/// Weights after three experiences of two classes each.
template <class... S>
Tensor trained(nn::Sequential net, S... strategies) {
  Learner learner{net, Sgd{.lr = 0.05, .momentum = 0.9, .weight_decay = 0.01}, strategies...};
  for (std::int64_t e = 0; e < 3; ++e) {
    learner.fit(blobs(e, {2 * e, 2 * e + 1}), {.epochs = 2, .batch_size = 7});
  }
  return weights_of(net);
}

/// A memory that is offered rows and keeps none.
struct Rejects {
  void insert(Rows const&, Generator) {}
  Rows draw(std::int64_t, Generator) { return {}; }
  bool empty() const { return false; }
};

/// A memory of the user's own without `Slots`, that gives all it was ever given.
struct Hoard {
  std::vector<Rows> all;
  void insert(Rows const& rows, Generator) { all.push_back(rows); }
  Rows draw(std::int64_t, Generator) {
    Rows joined;
    for (auto const column : {&Rows::stored, &Rows::y, &Rows::task}) {
      std::vector<Tensor> parts;
      for (auto const& rows : all) parts.push_back(rows.*column);
      joined.*column = torch::cat(parts);
    }
    return joined;
  }
  bool empty() const { return all.empty(); }
};

/// Calls a function after every step.
struct Watches {
  std::function<void(Context const&)> look;
  void step(Context const& c) { look(c); }
};

struct Recorder {
  std::vector<double> loss, penalty;
  void step(Context const& c) {
    loss.push_back(c.task_loss.item<double>());
    for (auto const& p : c.penalties) penalty.push_back(p.second.item<double>());
  }
};

template <class S>
S with(S strategy, std::vector<std::pair<std::string, std::string>> const& options) {
  for (auto const& [name, value] : options) set_option(strategy, name, value);
  return strategy;
}

/// Calls `f` with every strategy here, in each form of its forward pass.
template <class F>
void each_strategy(F&& f) {
  f("replay", Replay{Reservoir{.capacity = 20}});
  f("replay one_over_t", with(Replay{}, {{"weighting", "one_over_t"}}));
  f("replay sum", with(Replay{}, {{"weighting", "sum"}}));
  f("lwf", Lwf{});
  for (std::string const forward : {"joint", "separate"}) {
    f("der " + forward, with(Der{}, {{"forward", forward}}));
    f("derpp " + forward, with(DerPlusPlus{}, {{"forward", forward}}));
    f("derpp one draw " + forward, with(DerPlusPlus{}, {{"forward", forward}, {"draws", "one"}}));
    f("er_ace " + forward, with(ErAce{}, {{"forward", forward}}));
  }
  f("a_gem", AGem{});
  f("ncm", Ncm{});
}

std::vector<std::int64_t> sorted(Tensor const& t) {
  auto const s = std::get<0>(t.sort()).contiguous();
  return {s.data_ptr<std::int64_t>(), s.data_ptr<std::int64_t>() + s.numel()};
}

}  // namespace

// ---- equal to naive training ----

TEST_CASE("nothing to replay is naive training bit for bit") {
  auto const naive = trained(network());
  CHECK(trained(network(), Replay{Reservoir{.capacity = 0}}).equal(naive));
  CHECK(trained(network(), Replay{Rejects{}}).equal(naive));
  CHECK(trained(network(), with(Replay{}, {{"weighting", "fixed"}, {"new_weight", "1"}}))
            .equal(naive));
  CHECK(trained(network(), with(Der{}, {{"alpha", "0"}})).equal(naive));
  CHECK(trained(network(), with(DerPlusPlus{}, {{"alpha", "0"}, {"beta", "0"}})).equal(naive));
  CHECK(trained(network(), AGem{Reservoir{.capacity = 0}}).equal(naive));
  CHECK(trained(network(), AGem{Rejects{}}).equal(naive));
  CHECK(trained(network(), Ncm{}).equal(naive));
  CHECK_FALSE(trained(network(), Replay{}).equal(naive));
  CHECK_FALSE(trained(network(), AGem{}).equal(naive));
}

TEST_CASE("a stream of one experience is naive for every strategy that asks for the past") {
  auto const train = [](auto... strategy) {
    auto net = network();
    Learner learner{net, Sgd{.lr = 0.1, .momentum = 0.9}, strategy...};
    learner.fit(blobs(0, {0, 1, 2}), {.epochs = 2, .batch_size = 7});
    return weights_of(net);
  };
  auto const naive = train();
  CHECK(train(with(Replay{}, {{"exclude_current", "true"}})).equal(naive));
  CHECK(train(with(Replay{}, {{"insert", "at_end"}})).equal(naive));
  CHECK(train(with(Replay{}, {{"weighting", "one_over_t"}})).equal(naive));
  CHECK(train(with(Replay{}, {{"insert", "at_end"}, {"mix", "dataset"}})).equal(naive));
  CHECK(train(with(ErAce{}, {{"from_second", "true"}})).equal(naive));
  CHECK(train(AGem{}).equal(naive));
  CHECK_FALSE(train(Replay{}).equal(naive));
}

// ---- replay ----

TEST_CASE("a joined memory keeps the task ids of its rows, so that each trains its own head") {
  auto replay = Replay{Quota{.capacity = 8, .by = GroupBy::task, .remainder = Remainder::drop}};
  set_option(replay, "insert", "at_end");
  set_option(replay, "mix", "dataset");
  auto net = headed();
  Learner learner{net, Sgd{.lr = 0.1}, replay};
  learner.fit(blobs(0, {0, 1}, 24, 0), {.batch_size = 8});
  auto const old_head = net->named_parameters()["2.weight0"].detach().clone();
  Watches tasks{[](Context const& c) {
    CHECK(c.train.size() == 48);
    CHECK(c.train.tasks.eq(0).sum().item<std::int64_t>() == 24);
    CHECK(c.train.tasks.eq(1).sum().item<std::int64_t>() == 24);
  }};
  learner.fit(blobs(1, {0, 1}, 24, 1), {.batch_size = 8}, tasks);
  CHECK_FALSE(net->named_parameters()["2.weight0"].detach().equal(old_head));

  Replay weighted = replay;
  set_option(weighted, "weighting", "one_over_t");
  Learner refused{network(), Sgd{}, weighted};
  CHECK_THROWS_WITH_AS(refused.fit(blobs(0, {0, 1}), {.batch_size = 8}),
                       doctest::Contains("set weighting = joint"), Error);
}

TEST_CASE("the present experience is not replayed when it is excluded, by any memory") {
  auto const check = [](auto memory, std::vector<std::string> const& draws) {
    for (auto const& draw : draws) {
      auto const replay =
          with(Replay{memory}, {{"exclude_current", "true"}, {"batch", "9"}, {"draw", draw}});
      Learner learner{network(), Sgd{}, replay};
      auto& drawn = learner.template strategy<Replay>().drawn;
      std::int64_t replayed = 0;
      Watches rows{[&](Context const& c) {
        for (std::int64_t i = 0; i < drawn.size(); ++i, ++replayed) {
          CHECK(drawn.y[i].template item<std::int64_t>() < 2 * c.index);
        }
      }};
      for (std::int64_t e = 0; e < 3; ++e) {
        learner.fit(blobs(e, {2 * e, 2 * e + 1}), {.batch_size = 8}, rows);
      }
      CHECK(replayed > 45);  // six draws of nine, of which a cycle cuts some short
    }
  };
  check(Reservoir{}, {"uniform", "class_balanced", "task_balanced", "cycle"});
  check(Hoard{}, {"uniform"});
}

TEST_CASE("a loader over the memory may leave out the short batch at the end of a pass") {
  for (bool const drop_last : {false, true}) {
    auto const replay =
        with(Replay{Reservoir{.capacity = 10}}, {{"insert", "at_end"},
                                                 {"draw", "cycle"},
                                                 {"drop_last", drop_last ? "true" : "false"},
                                                 {"batch", "4"}});
    Learner learner{network(), Sgd{}, replay};
    std::vector<std::int64_t> sizes;
    Watches rows{[&](Context const&) { sizes.push_back(learner.strategy<Replay>().drawn.size()); }};
    learner.fit(blobs(0, {0, 1}), {.batch_size = 8}, rows);
    learner.fit(blobs(1, {2, 3}), {.iterations = 6, .batch_size = 8}, rows);
    auto const expected = drop_last ? std::vector<std::int64_t>{0, 0, 0, 4, 4, 4, 4, 4, 4}
                                    : std::vector<std::int64_t>{0, 0, 0, 4, 4, 2, 4, 4, 2};
    CHECK(sizes == expected);
  }
}

TEST_CASE("with several passes on a batch every row is inserted once, and none replays itself") {
  Learner learner{network(), Sgd{}, Replay{Reservoir{.capacity = 100}}};
  std::int64_t seen = 0;
  Watches rows{[&](Context const& c) {
    auto const& replay = learner.strategy<Replay>();
    CHECK(replay.memory.size() == c.step / c.training.passes * 8);  // c.step are done
    if (replay.drawn.size() == 0) return;
    for (auto const id : sorted(replay.drawn.id)) {
      CHECK_FALSE(c.fresh.id.eq(id).any().item<bool>());
      ++seen;
    }
  }};
  learner.fit(blobs(0, {0, 1}), {.batch_size = 8, .passes = 3}, rows);
  CHECK(seen == 2 * 3 * 8);
  CHECK(sorted(learner.strategy<Replay>().memory.contents().id) == sorted(torch::arange(24)));
}

TEST_CASE("the memory and its options are flags of the strategy") {
  Replay replay;
  set_option(replay, "memory", "quota");
  set_option(replay, "per_group", "7");
  set_option(replay, "by", "task");
  REQUIRE(replay.memory.get_if<Quota>() != nullptr);
  CHECK(replay.memory.get_if<Quota>()->per_group == 7);
  CHECK(replay.memory.get_if<Quota>()->by == GroupBy::task);
  set_option(replay, "draw", "class_balanced");
  CHECK(replay.draw == Draw::class_balanced);
  CHECK_THROWS_WITH_AS(set_option(replay, "memory", "resevoir"),
                       doctest::Contains("did you mean 'reservoir'"), Error);
  CHECK_THROWS_WITH_AS((Learner{network(), Sgd{}, with(Replay{}, {{"new_weight", "2"}})}),
                       doctest::Contains("[0, 1]"), Error);
}

TEST_CASE("a draw of a user's memory is completed, or refused in a sentence") {
  struct Bare {
    std::int64_t inputs = 2;
    bool on_host = false;
    void insert(Rows const&, Generator) {}
    Rows draw(std::int64_t, Generator) {
      Rows rows;
      if (inputs > 0) rows.stored = torch::ones({inputs, 4}, float64);
      (on_host ? rows.labels : rows.y) = torch::tensor({0, 1});
      return rows;
    }
    bool empty() const { return false; }
  };
  Learner learner{network(), Sgd{}, Replay{Bare{}}};
  learner.fit(blobs(0, {0, 1}), {.batch_size = 8, .active = Active::seen});
  CHECK(learner.strategy<Replay>().drawn.labels.equal(torch::tensor({0, 1})));
  CHECK(
      trained(network(), Replay{Bare{.on_host = true}}).equal(trained(network(), Replay{Bare{}})));
  for (std::int64_t const inputs : {0, 3}) {
    Learner wrong{network(), Sgd{}, Replay{Bare{.inputs = inputs}}};
    CHECK_THROWS_WITH_AS(wrong.fit(blobs(0, {0, 1}), {.batch_size = 8}),
                         doctest::Contains("a draw must fill `stored` [n, ...] and `y` [n]"),
                         Error);
  }
  Learner dark{network(), Sgd{}, Der{Bare{}}};
  CHECK_THROWS_WITH_AS(dark.fit(blobs(0, {0, 1}), {.batch_size = 8}),
                       doctest::Contains("rows without logits"), Error);
}

TEST_CASE("a user's memory that tells nothing of its rows serves what needs them all") {
  auto const run = [](AnyMemory const& memory) {
    Learner means{network(), Sgd{.lr = 0.1}, with(Ncm{memory}, {{"source", "memory"}})};
    Learner joined{network(), Sgd{.lr = 0.1},
                   with(Replay{memory}, {{"insert", "at_end"}, {"mix", "dataset"}})};
    for (std::int64_t e = 0; e < 2; ++e) {
      means.fit(blobs(e, {2 * e, 2 * e + 1}), {.batch_size = 8});
      joined.fit(blobs(e, {2 * e, 2 * e + 1}), {.batch_size = 8});
    }
    auto const x = blobs(0, {0, 1}).train.read(torch::arange(24)).stored;
    return torch::cat({means.scores(x).flatten(), joined.scores(x).flatten()});
  };
  CHECK(distance(run(Hoard{}), run(Reservoir{.capacity = 100})) < 1e-12);
}

TEST_CASE("accuracy over all classes grows with the memory") {
  auto const accuracy = [](std::int64_t capacity) {
    Learner learner{network(), Sgd{.lr = 0.1}, Replay{Reservoir{.capacity = capacity}}};
    for (std::int64_t e = 0; e < 3; ++e) {
      learner.fit(blobs(e, {2 * e, 2 * e + 1}, 60), {.epochs = 20, .batch_size = 10});
    }
    double right = 0;
    for (std::int64_t e = 0; e < 3; ++e) {
      auto const rows = blobs(e, {2 * e, 2 * e + 1}, 60).train.read(torch::arange(60));
      right += learner.predict(rows.stored).eq(rows.y).sum().item<double>();
    }
    return right / 180;
  };
  auto const none = accuracy(0), few = accuracy(12), many = accuracy(100);
  CHECK(few > none + 0.05);
  CHECK(many > few + 0.02);
  CHECK(many > 1 / 3. + 0.1);  // what the last experience alone is worth
}

TEST_CASE("property 49: permuted class ids with permuted head rows give permuted scores") {
  each_strategy([](std::string const& name, auto strategy) {
    INFO("strategy: ", name);
    auto const order = torch::tensor({3, 0, 5, 1, 4, 2});  // the new id of each class
    auto const run = [&](bool renamed) {
      auto net = network();
      if (renamed) {
        torch::NoGradGuard no_grad;
        for (auto& p : {net->parameters()[2], net->parameters()[3]}) {
          p.copy_(p.clone().index_select(0, order.argsort()));
        }
      }
      Learner learner{net, Sgd{.lr = 0.1}, strategy};
      for (std::int64_t e = 0; e < 3; ++e) {
        auto const rows = blobs(e, {2 * e, 2 * e + 1}).train.read(torch::arange(24));
        auto const y = renamed ? order.index_select(0, rows.y) : rows.y;
        learner.fit(make_experience(rows.stored, y, {}, e), {.batch_size = 8});
      }
      auto const x = blobs(0, {0, 1}).train.read(torch::arange(24)).stored;
      return learner.scores(x);
    };
    CHECK(distance(run(true).index_select(1, order), run(false)) < 1e-6);
  });
}

// ---- shards and separate forwards ----

TEST_CASE("a step cut into three shards is the whole step to 1e-12, for every strategy here") {
  each_strategy([](std::string const& name, auto strategy) {
    for (bool const heads : {false, true}) {
      if (heads && name == "ncm") continue;
      auto const run = [&](std::int64_t shards) {
        auto net = heads ? headed() : network();
        Learner learner{net, Sgd{.lr = 0.1}, strategy};
        learner.fit(heads ? blobs(0, {0, 1}, 24, 0) : blobs(0, {0, 1}), {.batch_size = 8});
        learner.fit(heads ? blobs(1, {0, 1}, 23, 1) : blobs(1, {2, 3}, 23),
                    {.batch_size = 23, .shards = shards});
        return weights_of(net);
      };
      INFO("strategy: ", name, ", heads per task: ", heads);
      CHECK(distance(run(1), run(3)) < 1e-12);
    }
  });
}

TEST_CASE("without BatchNorm a separate forward is the joint one") {
  auto const pair = [](auto strategy, std::string const& name) {
    INFO("strategy: ", name);
    auto const joint = trained(network(), with(strategy, {{"forward", "joint"}}));
    auto const separate = trained(network(), with(strategy, {{"forward", "separate"}}));
    CHECK(distance(joint, separate) < 1e-12);
  };
  pair(Der{}, "der");
  pair(DerPlusPlus{}, "derpp");
  pair(with(DerPlusPlus{}, {{"draws", "one"}}), "derpp, one draw");
  pair(ErAce{}, "er_ace");
}

TEST_CASE("with BatchNorm a separate forward shows fresh rows to themselves alone") {
  auto const record = [](auto... strategy) {
    auto net = normed();
    Learner learner{net, Sgd{.lr = 0}, strategy...};
    Tensor logits;
    std::int64_t batches = 0;
    Watches step{[&](Context const& c) { logits = c.fresh_logits().clone(); }};
    learner.fit(blobs(0, {0, 1}), {.batch_size = 8, .shuffle = false}, step);
    batches = net->named_buffers()["1.num_batches_tracked"].item<std::int64_t>();
    return std::pair(logits, batches);
  };
  auto const naive = record();
  CHECK(naive.second == 3);  // the memory is empty in the first of three steps
  auto const check = [&](auto strategy, std::int64_t more) {
    auto const joint = record(with(strategy, {{"forward", "joint"}}));
    CHECK_FALSE(joint.first.equal(naive.first));
    CHECK(joint.second == 3);
    auto const separate = record(with(strategy, {{"forward", "separate"}}));
    CHECK(separate.first.equal(naive.first));
    CHECK(separate.second == 3 + 2 * more);
  };
  check(Der{}, 1);
  check(DerPlusPlus{}, 2);
  check(with(DerPlusPlus{}, {{"draws", "one"}}), 1);
  check(ErAce{}, 1);
}

TEST_CASE("the draws of DER++ pass one after the other: BatchNorm sees x, x' and x''") {
  auto net = normed(), by_hand = normed();
  Learner learner{net, Sgd{.lr = 0}, with(DerPlusPlus{}, {{"forward", "separate"}})};
  Watches steps{[&](Context const& c) {
    auto const& s = learner.strategy<DerPlusPlus>();
    by_hand->forward(c.fresh.stored);
    if (s.dark.drawn.size() == 0) return;
    by_hand->forward(s.dark.drawn.stored);
    by_hand->forward(s.labelled.stored);
  }};
  learner.fit(blobs(0, {0, 1}), {.batch_size = 8}, steps);
  for (std::size_t i = 0; i < net->buffers().size(); ++i) {
    CHECK(net->buffers()[i].equal(by_hand->buffers()[i]));
  }
}

// ---- dark replay ----

TEST_CASE("rows of DER leave the weights of supervised rows alone, in either order") {
  auto const losses = [](auto... strategies) {
    Learner learner{network(), Sgd{.lr = 0}, strategies...};
    Recorder seen;
    learner.fit(blobs(1, {0, 1}), {.batch_size = 8}, seen);
    return seen.loss;
  };
  for (std::string const weighting : {"joint", "fixed", "one_over_t", "sum"}) {
    INFO("weighting: ", weighting);
    auto const replay = with(Replay{}, {{"weighting", weighting}, {"new_weight", "0.2"}});
    auto const alone = losses(replay), before = losses(Der{}, replay),
               after = losses(replay, Der{});
    for (std::size_t i = 0; i < alone.size(); ++i) {
      CHECK(before[i] == doctest::Approx(alone[i]).epsilon(1e-12));
      CHECK(after[i] == doctest::Approx(alone[i]).epsilon(1e-12));
    }
  }
}

TEST_CASE("a draw with fewer rows than shards still adds up, beside another penalty") {
  for (std::string const forward : {"joint", "separate"}) {
    auto const run = [&](std::int64_t shards) {
      Learner learner{network(), Sgd{.lr = 0.1},
                      with(DerPlusPlus{}, {{"batch", "1"}, {"forward", forward}}), Lwf{}};
      learner.fit(blobs(0, {0, 1}), {.batch_size = 8});
      std::vector<std::pair<std::string, double>> values;
      Watches step{[&](Context const& c) {
        for (auto const& p : c.penalties) values.emplace_back(p.first, p.second.item<double>());
      }};
      learner.fit(blobs(1, {2, 3}), {.iterations = 1, .batch_size = 9, .shards = shards}, step);
      return values;
    };
    auto const whole = run(1), cut = run(3);
    REQUIRE(whole.size() == 2);
    REQUIRE(cut.size() == 2);
    for (std::size_t i = 0; i < 2; ++i) {
      CHECK(whole[i].first == cut[i].first);
      CHECK(whole[i].second == doctest::Approx(cut[i].second).epsilon(1e-12));
    }
  }
}

TEST_CASE("without alpha the memory of DER still fills, logits included") {
  Learner learner{network(), Sgd{.lr = 0.1}, with(Der{}, {{"alpha", "0"}})};
  learner.fit(blobs(0, {0, 1}), {.batch_size = 8});
  auto const held = learner.strategy<Der>().memory.contents();
  CHECK(held.size() == 24);
  CHECK(held.logits.sizes() == std::vector<std::int64_t>{24, 6});
  CHECK(held.logits.isfinite().all().item<bool>());
}

TEST_CASE("DER++ without beta is DER bit for bit, in both forms of the forward pass") {
  for (std::string const forward : {"joint", "separate"}) {
    auto const der = trained(normed(), with(Der{}, {{"forward", forward}}));
    CHECK(trained(normed(), with(DerPlusPlus{}, {{"forward", forward}, {"beta", "0"}})).equal(der));
    CHECK(trained(normed(),
                  with(DerPlusPlus{}, {{"forward", forward}, {"beta", "0"}, {"draws", "one"}}))
              .equal(der));
    CHECK_FALSE(trained(normed(), with(DerPlusPlus{}, {{"forward", forward}})).equal(der));
  }
}

TEST_CASE("right after insertion, without an update, the error in stored logits is 0") {
  Learner learner{network(), Sgd{.lr = 0}, Der{}};
  Recorder seen;
  learner.fit(blobs(0, {0, 1}), {.epochs = 2, .batch_size = 8}, seen);
  REQUIRE(seen.penalty.size() == 5);
  for (auto const value : seen.penalty) CHECK(value < 1e-25);
}

TEST_CASE("one draw serves logits and labels, two are independent") {
  for (bool const one : {true, false}) {
    Learner learner{network(), Sgd{.lr = 0.1},
                    with(DerPlusPlus{}, {{"batch", "5"}, {"draws", one ? "one" : "two"}})};
    std::int64_t different = 0;
    Watches draws{[&](Context const& c) {
      auto const& s = learner.strategy<DerPlusPlus>();
      if (c.index == 0 && c.step == 1) return;  // the memory was empty
      CHECK(s.dark.drawn.size() == 5);
      CHECK(s.labelled.size() == (one ? 0 : 5));
      CHECK(c.step_rows == c.fresh.size() + (one ? 5 : 10));
      if (!one) different += !s.labelled.id.equal(s.dark.drawn.id);
    }};
    learner.fit(blobs(0, {0, 1}), {.batch_size = 8}, draws);
    learner.fit(blobs(1, {2, 3}), {.batch_size = 8}, draws);
    CHECK(different == (one ? 0 : 5));
  }
}

TEST_CASE("with a growing head only the logits that a row was stored with are compared") {
  nn::Sequential net(nn::Linear(4, 8), nn::Tanh());
  net->push_back(GrowingHead(8, 2, Seed{4}));
  filled(net);
  Learner learner{net, Sgd{.lr = 0.1}, Der{Reservoir{.capacity = 100}}};
  learner.fit(blobs(0, {0, 1}), {.batch_size = 8});
  Tensor logits;  // of the whole batch, before the update
  Watches errors{[&](Context const& c) {
    auto const& part = *c.batch.part(&learner.strategy<Der>());
    auto const z = c.logits.detach().narrow(0, part.begin, part.size);
    double sum = 0, compared = 0;
    for (std::int64_t i = 0; i < part.size; ++i) {
      auto const columns = part.rows.labels[i].item<std::int64_t>() < 2 ? 2 : 4;
      auto const stored = part.rows.logits[i].narrow(0, 0, columns);
      CHECK(stored.isfinite().all().item<bool>());
      sum += (z[i].narrow(0, 0, columns) - stored).square().sum().item<double>();
      compared += columns;
    }
    CHECK(c.penalties.at(0).second.item<double>() ==
          doctest::Approx(0.5 * sum / compared).epsilon(1e-12));
  }};
  learner.fit(blobs(1, {2, 3}), {.epochs = 2, .batch_size = 8}, errors);
  auto const held = learner.strategy<Der>().memory.contents();
  CHECK(held.logits.size(1) == 4);
  CHECK(held.logits.isnan().sum().item<std::int64_t>() == 24 * 2);
  CHECK(net->parameters().back().isfinite().all().item<bool>());
}

TEST_CASE("with several passes the logits of the first are stored, also over a kill and a resume") {
  auto const path = std::filesystem::temp_directory_path() / "pawl_der_passes.safetensors";
  auto const train = [&](bool resumed) {
    auto net = network();
    Learner learner{net, Sgd{.lr = 0.1}, Der{}};
    std::vector<Tensor> first;
    Watches steps{[&](Context const& c) {
      if (c.pass == 0) first.push_back(c.fresh_logits().clone());
      if (!resumed && c.step == 3) learner.save(path);  // between two passes on the second batch
    }};
    if (resumed) learner.load(path);
    learner.fit(blobs(0, {0, 1}), {.batch_size = 8, .passes = 2, .shuffle = false}, steps);
    auto const held = learner.strategy<Der>().memory.contents();
    if (!resumed) {
      CHECK(held.logits.equal(torch::cat(first)));
    }
    return torch::cat({weights_of(net), held.logits.flatten()});
  };
  auto const whole = train(false);
  CHECK(train(true).equal(whole));
  std::filesystem::remove(path);
}

// ---- the asymmetric cross-entropy ----

TEST_CASE("when every seen class is in the batch, the asymmetric loss is the sum of two means") {
  auto const run = [](auto strategy, double lr) {
    auto net = network(3);
    Learner learner{net, Sgd{.lr = lr}, strategy};
    Training const plan{.batch_size = 6, .shuffle = false};  // two rows of each of three classes
    learner.fit(blobs(0, {0, 1, 2}), plan);
    return weights_of(net);
  };
  // Half of each mean at twice the rate; the first step has no replay, so start from a filled
  // memory.
  struct Given {
    Reservoir filled{.capacity = 12};
    void insert(Rows const&, Generator) {}
    Rows draw(std::int64_t n, Generator) { return filled.slots.draw(n, Generator(7)); }
    bool empty() const { return false; }
  } given;
  given.filled.insert(blobs(4, {0, 1, 2}, 12).train.read(torch::arange(12)), Generator(1));
  auto const halves = with(Replay{given}, {{"weighting", "fixed"}, {"new_weight", "0.5"}});
  CHECK(distance(run(ErAce{given}, 0.05), run(halves, 0.1)) < 1e-12);
}

TEST_CASE("a class is seen once met, or once announced, and unseen ones may compete") {
  // Classes 0 to 3 are announced; the first batch has 0 and 1 alone.
  auto const x = torch::ones({4, 4}, float64);
  auto const e = make_experience(x, torch::tensor({0, 1, 2, 3}), {0, 1, 2, 3});
  auto const first_loss = [&](ErAce const& ace) {
    Learner learner{network(), Sgd{.lr = 0}, ace};
    Recorder seen;
    learner.fit(e, {.batch_size = 2, .shuffle = false}, seen);
    return seen.loss.front();
  };
  auto const z = network()->forward(x.narrow(0, 0, 2)).detach();
  auto const over = [&](std::vector<std::int64_t> const& columns) {
    auto const open = z.index_select(1, torch::tensor(columns));
    return at::cross_entropy_loss(open, torch::tensor({0, 1})).item<double>();
  };
  CHECK(first_loss(ErAce{}) == doctest::Approx(over({0, 1, 2, 3, 4, 5})).epsilon(1e-12));
  CHECK(first_loss(with(ErAce{}, {{"seen", "announced"}})) ==
        doctest::Approx(over({0, 1, 4, 5})).epsilon(1e-12));
  CHECK(first_loss(with(ErAce{}, {{"keep_unseen", "false"}})) ==
        doctest::Approx(over({0, 1})).epsilon(1e-12));
}

TEST_CASE("old head rows move less under the asymmetric loss when new classes arrive") {
  auto const movement = [](auto strategy) {
    auto net = network(4);
    Learner learner{net, Sgd{.lr = 0.1}, strategy};
    learner.fit(blobs(0, {0, 1}, 48), {.epochs = 10, .batch_size = 8});
    auto const before = net->parameters()[2].detach().narrow(0, 0, 2).clone();
    learner.fit(blobs(1, {2, 3}, 48), {.iterations = 2, .batch_size = 8});
    return (net->parameters()[2].detach().narrow(0, 0, 2) - before).norm().item<double>();
  };
  CHECK(movement(ErAce{}) < 0.5 * movement(Replay{}));
}

TEST_CASE("rows of another strategy count in the asymmetric loss, with their own weights") {
  auto const run = [](auto... strategies) {
    auto net = network();
    Learner learner{net, Sgd{.lr = 0.1}, strategies...};
    learner.fit(blobs(0, {0, 1}), {.batch_size = 8});
    return weights_of(net);
  };
  auto const alone = run(ErAce{});
  CHECK_FALSE(run(Replay{}, ErAce{}).equal(alone));
  CHECK(distance(run(with(Der{}, {{"alpha", "1e-300"}}), ErAce{}), alone) < 1e-12);
}

// ---- A-GEM ----

TEST_CASE("the reference pass leaves BatchNorm as it was, in either mode") {
  auto const buffers = [](auto... strategy) {
    auto net = normed();
    Learner learner{net, Sgd{.lr = 0}, strategy...};
    for (std::int64_t e = 0; e < 2; ++e) learner.fit(blobs(e, {e}), {.batch_size = 8});
    std::vector<Tensor> all;
    for (auto const& buffer : net->buffers()) all.push_back(buffer.to(torch::kFloat64).flatten());
    return torch::cat(all);
  };
  auto const naive = buffers();
  CHECK(buffers(AGem{}).equal(naive));
  CHECK(buffers(with(AGem{}, {{"reference_mode", "train"}})).equal(naive));
}

TEST_CASE("the reference gradient is that of past experiences alone, under their own heads") {
  struct Before {
    Tensor gradient{};
    void edit_gradient(Context& c) { gradient = c.gradient().clone(); }
  };
  auto const check = [](auto memory) {
    auto net = headed();
    Learner learner{net, Sgd{.lr = 0.1}, Before{}, AGem{memory}};
    auto const past = blobs(0, {0, 1}, 24, 0);
    learner.fit(past, {.batch_size = 8});
    std::int64_t projected = 0;
    Watches steps{[&](Context const& c) {
      auto& open = const_cast<Context&>(c);
      auto const now = open.gradient().clone();
      auto const& g = learner.template strategy<Before>().gradient;
      auto const rows = past.train.read(torch::arange(24));
      // The weights have moved since: step back for the reference, and forth again.
      torch::NoGradGuard no_grad;
      open.arena.weights().add_(now, 0.1);
      auto const r = open.gradient_on(rows);
      open.arena.weights().sub_(now, 0.1);
      auto const dot = g.dot(r).item<double>();
      auto const expected = dot < 0 ? g - r * (dot / r.dot(r).item<double>()) : g;
      CHECK(now.allclose(expected, 1e-9, 1e-12));
      projected += dot < 0;
    }};
    auto now = blobs(1, {0, 1}, 24, 1);
    now.train.labels = 1 - now.train.labels;
    learner.fit(now, {.epochs = 4, .batch_size = 8}, steps);
    CHECK(projected > 0);
  };
  check(Ring{.by = GroupBy::task_and_class, .per_group = 25});
  check(Hoard{});
}

TEST_CASE("heads of the past take part in the steps that A-GEM projects, and in no other") {
  struct Before {
    Tensor gradient{};
    void edit_gradient(Context& c) { gradient = c.gradient().clone(); }
  };
  auto net = headed();
  Learner learner{net, Sgd{.lr = 0.1, .momentum = 0.9, .weight_decay = 0.1}, Before{}, AGem{}};
  learner.fit(blobs(0, {0, 1}, 24, 0), {.epochs = 3, .batch_size = 8});
  auto const old_head = [&] { return net->named_parameters()["2.weight0"].detach().clone(); };
  auto head = old_head();
  std::int64_t projected = 0, left = 0;
  Watches steps{[&](Context const& c) {
    auto const& before = learner.strategy<Before>().gradient;
    auto const touched = !const_cast<Context&>(c).gradient().equal(before);
    CHECK(old_head().equal(head) == !touched);
    head = old_head();
    (touched ? projected : left) += 1;
  }};
  auto now = blobs(1, {0, 1}, 48, 1);
  now.train.labels.narrow(0, 0, 24).copy_(1 - now.train.labels.narrow(0, 0, 24));
  learner.fit(now, {.epochs = 3, .batch_size = 8}, steps);
  CHECK(projected > 0);
  CHECK(left > 0);
}

// ---- class means ----

TEST_CASE("class means do not depend on the order of the rows or on how they are cut") {
  auto features = torch::empty({200, 5}, float64);
  fill_normal(features, 1000, 1, Seed{1}.generator("features"));
  auto const labels = torch::arange(200) % 7;
  auto const probe = features.narrow(0, 0, 20) + 0.1;
  auto const scores = [&](NearestMean means, Tensor const& order, std::int64_t chunk) {
    for (auto const& part : order.split(chunk)) {
      means.add(features.index_select(0, part), labels.index_select(0, part));
    }
    return means.scores(probe);
  };
  auto const shuffled = torch::tensor(Generator(3).permutation(200));
  for (auto const& kind :
       {NearestMean{}, NearestMean{.normalise = true}, NearestMean{.cosine = true}}) {
    auto const whole = scores(kind, torch::arange(200), 200);
    CHECK(distance(whole, scores(kind, shuffled, 200)) < 1e-10);
    CHECK(distance(whole, scores(kind, shuffled, 1)) < 1e-10);
  }
}

TEST_CASE("class means: norms by hand, ties to the lowest class, and words when misused") {
  auto const x = torch::tensor({{3.0, 0.0}, {0.0, 5.0}, {-2.0, 0.0}}, float64);
  NearestMean raw, unit{.normalise = true}, cosine{.cosine = true};
  for (auto* means : {&raw, &unit, &cosine}) means->add(x, torch::tensor({0, 0, 3}));
  CHECK(raw.means()[0].equal(torch::tensor({1.5, 2.5}, float64)));
  CHECK(unit.means()[0].equal(torch::tensor({0.5, 0.5}, float64)));
  CHECK(cosine.means()[0].allclose(torch::tensor({1.0, 1.0}, float64) / std::sqrt(2.0), 1e-12));
  auto const s = raw.scores(torch::tensor({{1.5, 2.5}}, float64))[0];
  CHECK(s[0].item<double>() == 0);
  CHECK(s[3].item<double>() == doctest::Approx(-(3.5 * 3.5 + 2.5 * 2.5)).epsilon(1e-12));
  CHECK(std::isinf(s[1].item<double>()));
  CHECK(std::isinf(s[2].item<double>()));

  NearestMean line;
  line.add(torch::tensor({{2.0}, {10.0}}, float64), torch::tensor({0, 1}));
  CHECK(line.scores(torch::tensor({{6.0}}, float64)).argmax(1).item<std::int64_t>() == 0);
  CHECK_THROWS_WITH_AS(NearestMean{}.scores(x), doctest::Contains("there are none yet"), Error);
  CHECK_THROWS_WITH_AS(raw.add(x, torch::tensor({0})), doctest::Contains("features [n, d]"), Error);
  CHECK_THROWS_WITH_AS(raw.add(x, torch::tensor({0, -1, 2})), doctest::Contains("negative class"),
                       Error);
  auto const wide = torch::ones({1, 3}, float64);
  CHECK_THROWS_WITH_AS(raw.add(wide, torch::tensor({0})), doctest::Contains("have 2 columns"),
                       Error);
  CHECK_THROWS_WITH_AS(raw.scores(wide), doctest::Contains("have 2 columns"), Error);
}

TEST_CASE("class means of the data are those of eval-mode features over the whole experience") {
  auto net = normed();
  Learner learner{net, Sgd{.lr = 0.1}, Ncm{}};
  auto const e = blobs(0, {0, 2}, 2400);
  auto const x = e.train.read(torch::arange(2400)).stored;
  CHECK_THROWS_WITH_AS(learner.scores(x), doctest::Contains("no class means yet"), Error);
  learner.fit(e, {.batch_size = 24});
  Tensor phi;
  {
    torch::NoGradGuard no_grad;
    ModeScope mode(*net, false);
    phi = learner.context().model.features(x);
  }
  auto const mean = phi.index_select(0, torch::arange(0, 2400, 2)).mean(0);
  auto const& means = learner.strategy<Ncm>().means;
  CHECK(means.means()[0].allclose(mean, 1e-12, 1e-12));
  CHECK(learner.scores(x).size(1) == 3);
  CHECK(net->is_training());
}

TEST_CASE("class means of a memory follow a roll-back of the weights") {
  Learner learner{network(), Sgd{.lr = 0.2}, with(Ncm{}, {{"source", "memory"}})};
  learner.fit(blobs(0, {0, 1}), {.batch_size = 8});
  auto const x = blobs(0, {0, 1}).train.read(torch::arange(24)).stored;
  auto const before = learner.scores(x);
  auto const snapshot = learner.snapshot();
  {
    torch::NoGradGuard no_grad;
    learner.context().weights().mul_(1.5);
  }
  auto const means = learner.strategy<Ncm>().means.means();
  CHECK_FALSE(learner.scores(x).allclose(before));
  CHECK_FALSE(learner.strategy<Ncm>().means.means().allclose(means));
  learner.roll_back(snapshot);
  CHECK(learner.scores(x).equal(before));
}

TEST_CASE("a learner that was loaded takes class means of inputs as they were normalised") {
  auto const path = std::filesystem::temp_directory_path() / "pawl_ncm_loaded.safetensors";
  auto data = blobs(0, {0, 1});
  auto const x = data.train.read(torch::arange(24)).stored;
  for (auto* set : {&data.train, &data.test}) {
    set->normalise = {.scale = 0.5, .mean = {1, 2, 3, 4}, .deviation = {1, 2, 1, 2}};
  }
  auto const ncm = with(Ncm{}, {{"source", "memory"}});
  Learner learner{network(), Sgd{.lr = 0.1}, ncm}, loaded{network(), Sgd{.lr = 0.1}, ncm};
  learner.fit(data, {.batch_size = 8});
  learner.save(path);  // before anything asked for means
  loaded.load(path);
  CHECK(loaded.scores(x).equal(learner.scores(x)));
  std::filesystem::remove(path);
}

TEST_CASE("class means ask for features, and for one head") {
  struct PlainImpl : nn::Module {
    PlainImpl() : layer(register_module("layer", nn::Linear(4, 2))) {}
    Tensor forward(Tensor const& x) { return layer->forward(x); }
    nn::Linear layer;
  };
  Learner plain{std::make_shared<PlainImpl>(), Sgd{}, Ncm{}};
  CHECK_THROWS_WITH_AS(plain.fit(blobs(0, {0, 1}), {.batch_size = 8}),
                       doctest::Contains("Tensor features(Tensor x)"), Error);
  Learner heads{headed(), Sgd{}, Ncm{}};
  CHECK_THROWS_WITH_AS(heads.fit(blobs(0, {0, 1}, 24, 0), {.batch_size = 8}),
                       doctest::Contains("head per task"), Error);
}
