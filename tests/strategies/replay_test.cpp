// Experience replay: what the loss is a mean of, what is drawn, and what is kept.

#include <cstdint>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "../core/views.hpp"
#include "by_hand.hpp"
#include "toys.hpp"

#include <torch/nn/modules/activation.h>
#include <pawl/core/learner.hpp>
#include <pawl/memory/quota.hpp>
#include <pawl/memory/reservoir.hpp>
#include <pawl/memory/ring.hpp>
#include <pawl/strategies/replay.hpp>

#include <doctest/doctest.h>  // after LibTorch, whose own CHECK must not win

using namespace pawl;
using namespace by_hand;
using namespace toys;

namespace {

std::vector<std::int64_t> sorted(Tensor const& t) {
  auto const s = std::get<0>(t.sort()).contiguous();
  return {s.data_ptr<std::int64_t>(), s.data_ptr<std::int64_t>() + s.numel()};
}

}  // namespace

TEST_CASE("replay is one mean over fresh and replayed rows, or a weighted sum of two means") {
  // Three fresh rows with cross-entropy 1, one replayed row with 3.
  auto const x = torch::full({3, 1}, logit_of(1), float64);
  auto const old = rows_of(torch::full({1, 1}, logit_of(3), float64), integers({0}));
  auto const w = torch::tensor({{1.0}, {0.0}}, float64);
  auto const loss_of = [&](Replay::Weighting weighting, std::int64_t index, std::int64_t shards) {
    Replay replay{Answers{old}};
    replay.weighting = weighting;
    replay.new_weight = 0.75;
    Learner learner{linear(w), Sgd{.lr = 0}, replay};
    Recorder seen;
    learner.fit(make_experience(x, torch::zeros({3}, torch::kInt64), {0, 1}, index),
                {.batch_size = 3, .shards = shards}, seen);
    return seen.loss.at(0);
  };
  for (std::int64_t const shards : {1, 2, 3}) {
    CHECK(loss_of(Replay::Weighting::joint, 0, shards) == doctest::Approx(1.5).epsilon(1e-12));
    CHECK(loss_of(Replay::Weighting::fixed, 0, shards) ==
          doctest::Approx(0.75 * 1 + 0.25 * 3).epsilon(1e-12));
    CHECK(loss_of(Replay::Weighting::one_over_t, 3, shards) ==
          doctest::Approx(0.25 * 1 + 0.75 * 3).epsilon(1e-12));
    CHECK(loss_of(Replay::Weighting::sum, 3, shards) == doctest::Approx(1 + 3).epsilon(1e-12));
  }
}

TEST_CASE("rows of a memory that do not fit are refused in words") {
  auto const refused = [](Rows const& old, Training training, std::string const& says) {
    Learner learner{network(4), Sgd{.lr = 0.1}, Replay{Answers{old}}};
    training.batch_size = 8;
    CHECK_THROWS_WITH_AS(learner.fit(blobs(0, {0, 1}), training), doctest::Contains(says.c_str()),
                         Error);
  };
  auto const x = torch::zeros({1, 4}, float64);
  refused(rows_of(x, integers({9})), {}, "has label 9 but the model has 4 outputs");
  refused(rows_of(x, integers({3})), {.active = Active::seen}, "no class seen so far");
  refused(rows_of(x, integers({3})), {.active = Active::current},
          "not among the classes of the experience");
  refused(rows_of(torch::zeros({1, 5}, float64), integers({0})), {}, "rows of one shape");
}

TEST_CASE("classes of an experience that have no output are refused in words") {
  Learner learner{network(4), Sgd{.lr = 0.1}};
  auto experience = blobs(0, {0, 1});
  experience.classes = {0, 1, 7};
  CHECK_THROWS_WITH_AS(learner.fit(experience, {.batch_size = 8}),
                       doctest::Contains("has label 7 but the model has 4 outputs"), Error);
}

TEST_CASE("replay draws before the update and inserts after it") {
  struct Counts {
    std::vector<std::int64_t>* held;
    Reservoir inner{.capacity = 100};
    void insert(Rows const& rows, Generator g) { inner.insert(rows, g); }
    Rows draw(std::int64_t n, Generator g) {
      held->push_back(inner.size());
      return inner.draw(n, g);
    }
    bool empty() const { return inner.empty(); }
  };
  std::vector<std::int64_t> held;
  Learner learner{network(4), Sgd{}, Replay{Counts{&held}}};
  learner.fit(blobs(0, {0, 1}, 40), {.batch_size = 10});
  CHECK(held == std::vector<std::int64_t>{10, 20, 30});  // nothing to draw at the first step
}

TEST_CASE("replay from a memory that keeps nothing is naive training bit for bit") {
  auto const naive = trained(Learner{network(), usual});
  CHECK(trained(Learner{network(), usual, Replay{Rejects{}}}).equal(naive));
}

// ---- the memory joins the training set ----

TEST_CASE("naive rehearsal joins the memory to the training set, as often as it fits") {
  Replay replay{Quota{.capacity = 12, .by = GroupBy::task, .remainder = Remainder::drop}};
  replay.insert = Replay::Insert::at_end;
  replay.mix = Replay::Mix::dataset;
  Learner learner{network(8), Sgd{}, replay};
  struct Sizes {
    std::vector<std::int64_t> train, steps;
    void begin(Context const& c) { train.push_back(c.train.size()), steps.push_back(c.steps); }
  } sizes;
  for (std::int64_t e = 0; e < 4; ++e) {
    learner.fit(blobs(e, {2 * e, 2 * e + 1}, 40), {.batch_size = 10}, sizes);
  }
  // Memory before experience e: 0, 12, 6 + 6, 4 + 4 + 4 rows, repeated floor(40 / 12) = 3 times.
  CHECK(sizes.train == std::vector<std::int64_t>{40, 76, 76, 76});
  auto const held = learner.strategy<Replay>().memory.contents();
  CHECK(held.size() == 12);
  for (std::int64_t e = 0; e < 4; ++e) CHECK(held.task.eq(e).sum().item<std::int64_t>() == 3);

  Replay wrong{Reservoir{}};
  wrong.mix = Replay::Mix::dataset;
  Learner refused{network(4), Sgd{}, wrong};
  CHECK_THROWS_WITH_AS(refused.fit(blobs(0, {0, 1}, 40), {.batch_size = 10}),
                       doctest::Contains("insert = at_end"), Error);
}

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

TEST_CASE("a user's memory that tells nothing of its rows joins the training set all the same") {
  auto const run = [](AnyMemory const& memory) {
    Learner learner{network(), Sgd{.lr = 0.1},
                    with(Replay{memory}, {{"insert", "at_end"}, {"mix", "dataset"}})};
    for (std::int64_t e = 0; e < 2; ++e) {
      learner.fit(blobs(e, {2 * e, 2 * e + 1}), {.batch_size = 8});
    }
    return learner.scores(blobs(0, {0, 1}).train.read(torch::arange(24)).stored);
  };
  CHECK(distance(run(Hoard{}), run(Reservoir{.capacity = 100})) < 1e-12);
}

// ---- what is drawn ----

TEST_CASE("a hundred per class, drawn by a loader that cycles through the memory") {
  Replay replay{Quota{.per_group = 5}};
  replay.insert = Replay::Insert::at_end;
  replay.draw = Draw::cycle;
  replay.batch = 5;
  Learner learner{network(4), Sgd{}, replay};
  learner.fit(blobs(0, {0, 1}, 40), {.batch_size = 10});
  std::vector<Tensor> drawn;
  Watches ids{[&](Context const&) { drawn.push_back(learner.strategy<Replay>().drawn.id); }};
  learner.fit(blobs(1, {2, 3}, 40), {.batch_size = 10}, ids);
  REQUIRE(drawn.size() == 4);
  auto const held = learner.strategy<Replay>().memory.contents();
  CHECK(held.size() == 20);
  for (std::int64_t label = 0; label < 4; ++label) {
    CHECK(held.labels.eq(label).sum().item<std::int64_t>() == 5);
  }
  for (std::size_t pass = 0; pass < 2; ++pass) {  // two draws of 5 are one pass over 10 rows
    auto const both = torch::cat({drawn[2 * pass], drawn[2 * pass + 1]});
    CAPTURE(c10::str(both));
    CHECK(std::get<0>(at::_unique(both)).numel() == 10);
  }
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

TEST_CASE("a memory with one row per class replays every class, where a reservoir may lose one") {
  Replay ring{Ring{.capacity = 3}};
  Learner learner{network(6), Sgd{}, ring};
  for (std::int64_t e = 0; e < 3; ++e) learner.fit(blobs(e, {e}, 40), {.batch_size = 10});
  auto const held = learner.strategy<Replay>().memory.contents();
  for (std::int64_t c = 0; c < 3; ++c) CHECK(held.labels.eq(c).sum().item<std::int64_t>() == 1);

  // A reservoir of three keeps a row of each class with probability 3!/27 at best: all 20 seeds
  // would do so less than once in 1e13.
  std::int64_t complete = 0;
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    Reservoir reservoir{.capacity = 3};
    for (std::int64_t e = 0; e < 3; ++e) {
      reservoir.insert(blobs(e, {e}, 40).train.read(torch::arange(40)), Generator(seed));
    }
    complete += std::get<0>(at::_unique(reservoir.contents().labels)).numel() == 3;
  }
  CHECK(complete < 20);
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
  CHECK(trained(Learner{network(), usual, Replay{Bare{.on_host = true}}})
            .equal(trained(Learner{network(), usual, Replay{Bare{}}})));
  for (std::int64_t const inputs : {0, 3}) {
    Learner wrong{network(), Sgd{}, Replay{Bare{.inputs = inputs}}};
    CHECK_THROWS_WITH_AS(wrong.fit(blobs(0, {0, 1}), {.batch_size = 8}),
                         doctest::Contains("a draw must fill `stored` [n, ...] and `y` [n]"),
                         Error);
  }
}

TEST_CASE("rows are shown anew in every step, and kept as they are stored") {
  auto const experiences = views::images();
  auto training = views::both;
  training.epochs = 3;
  Learner learner{views::network(), Sgd{.lr = 0.01}, Replay{Reservoir{.capacity = 20}, 4}};
  views::Shown shown;
  for (auto const& experience : experiences) learner.fit(experience, training, shown);
  std::set<std::string> looks;  // of row 0 of the last experience
  std::int64_t varied = 0, rows = 0;
  for (std::size_t i = 0; i < shown.inputs.size(); ++i) {
    auto const& e = experiences[i / 15];
    for (std::int64_t r = 0; r < 6; ++r) {
      auto const id = shown.fresh[i][r].item<std::int64_t>();
      auto const stored = e.train.read(torch::tensor({id})).stored[0];
      auto const input = shown.inputs[i][r];
      CHECK(shown.stored[i][r].equal(stored));
      CHECK(views::is_view_of(stored, input));
      varied += !input.equal(stored), ++rows;
      if (i >= 15 && id == 0) looks.insert(c10::str(input.flatten()));
    }
  }
  CHECK(rows == 180);
  CHECK(varied > 150);  // 49 of 50 views differ from the image
  CHECK(looks.size() == 3);
  auto const held = learner.strategy<Replay>().memory.contents();
  auto const labels = held.labels;
  for (std::int64_t i = 0; i < held.size(); ++i) {
    auto const& e = experiences[static_cast<std::size_t>(labels[i].item<std::int64_t>() / 2)];
    CHECK(held.stored[i].equal(e.train.read(held.id.narrow(0, i, 1)).stored[0]));
  }
}

// ---- the whole ----

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
