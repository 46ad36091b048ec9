// Hand values and behaviour of the strategies that replay rows, distil, or compare means.

#include <cmath>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include <torch/nn/modules/activation.h>
#include <pawl/core/learner.hpp>
#include <pawl/heads/multi_head.hpp>
#include <pawl/memory/quota.hpp>
#include <pawl/memory/reservoir.hpp>
#include <pawl/memory/ring.hpp>
#include <pawl/metrics/evaluate.hpp>
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

/// z = W x without bias, W [C, d] as given.
nn::Sequential linear(Tensor const& w) {
  nn::Sequential net(nn::Linear(nn::LinearOptions(w.size(1), w.size(0)).bias(false)));
  net->to(torch::kFloat64);
  torch::NoGradGuard no_grad;
  net->parameters()[0].copy_(w);
  return net;
}

Rows rows_of(Tensor const& x, Tensor const& y, Tensor const& logits = {}) {
  Rows rows;
  rows.stored = x;
  rows.y = rows.labels = y;
  rows.id = torch::arange(y.numel());
  rows.logits = logits;
  return rows;
}

/// A memory of the user's own, that answers every draw with the same rows.
struct Answers {
  Rows rows;
  void insert(Rows const&, Generator) {}
  Rows draw(std::int64_t, Generator) { return rows; }
  bool empty() const { return rows.size() == 0; }
};

struct Recorder {
  static constexpr bool wants_penalties = true;
  std::vector<double> loss;
  std::vector<double> penalty;
  Tensor gradient{};
  void step(Context const& c) {
    loss.push_back(c.task_loss.item<double>());
    for (auto const& p : c.penalties) penalty.push_back(p.second.item<double>());
    gradient = const_cast<Context&>(c).gradient().clone();
  }
};

Tensor integers(std::vector<std::int64_t> const& values) { return torch::tensor(values); }

/// Two-class logits (a, 0) whose cross-entropy for label 0 is `ce`.
double logit_of(double ce) { return -std::log(std::exp(ce) - 1); }

Experience blobs(std::int64_t index, std::vector<std::int64_t> const& classes, std::int64_t n = 40,
                 std::int64_t task = -1) {
  auto x = torch::empty({n, 4}, float64);
  fill_normal(x, 0, 0.5, Seed{9}.generator("blobs", index));
  auto const position = torch::arange(n) % static_cast<std::int64_t>(classes.size());
  auto const y = integers(classes).index_select(0, position);
  x.add_((y + 2 * index).to(torch::kFloat64).unsqueeze(1));
  return make_experience(x, y, classes, index, task);
}

nn::Sequential small(std::int64_t outputs = 4) {
  nn::Sequential net(nn::Linear(4, 8), nn::Tanh(), nn::Linear(8, outputs));
  net->to(torch::kFloat64);
  std::int64_t i = 0;
  for (auto& p : net->parameters()) fill_normal(p, 0, 0.4, Seed{3}.generator("net", i++));
  return net;
}

Tensor all_of(nn::Sequential net) {
  std::vector<Tensor> parts;
  for (auto const& p : net->parameters()) parts.push_back(p.detach().reshape({-1}).clone());
  return torch::cat(parts);
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
  Learner learner{small(), Sgd{}, Replay{Counts{&held}}};
  learner.fit(blobs(0, {0, 1}), {.batch_size = 10});
  CHECK(held == std::vector<std::int64_t>{10, 20, 30});  // nothing to draw at the first step
}

TEST_CASE("naive rehearsal joins the memory to the training set, as often as it fits") {
  Replay replay{Quota{.capacity = 12, .by = GroupBy::task, .remainder = Remainder::drop}};
  replay.insert = Replay::Insert::at_end;
  replay.mix = Replay::Mix::dataset;
  Learner learner{small(8), Sgd{}, replay};
  struct Sizes {
    std::vector<std::int64_t> train, steps;
    void begin(Context const& c) { train.push_back(c.train.size()), steps.push_back(c.steps); }
  } sizes;
  for (std::int64_t e = 0; e < 4; ++e) {
    learner.fit(blobs(e, {2 * e, 2 * e + 1}), {.batch_size = 10}, sizes);
  }
  // Memory before experience e: 0, 12, 6 + 6, 4 + 4 + 4 rows, repeated floor(40 / 12) = 3 times.
  CHECK(sizes.train == std::vector<std::int64_t>{40, 76, 76, 76});
  auto const held = learner.strategy<Replay>().memory.contents();
  CHECK(held.size() == 12);
  for (std::int64_t e = 0; e < 4; ++e) CHECK(held.task.eq(e).sum().item<std::int64_t>() == 3);

  Replay wrong{Reservoir{}};
  wrong.mix = Replay::Mix::dataset;
  Learner refused{small(), Sgd{}, wrong};
  CHECK_THROWS_WITH_AS(refused.fit(blobs(0, {0, 1}), {.batch_size = 10}),
                       doctest::Contains("insert = at_end"), Error);
}

TEST_CASE("a hundred per class, drawn by a loader that cycles through the memory") {
  Replay replay{Quota{.per_group = 5}};
  replay.insert = Replay::Insert::at_end;
  replay.draw = Draw::cycle;
  replay.batch = 5;
  Learner learner{small(), Sgd{}, replay};
  learner.fit(blobs(0, {0, 1}), {.batch_size = 10});
  struct Ids {
    Learner<nn::Sequential, Sgd, StrategySet<Replay>>& learner;
    std::vector<Tensor> drawn;
    void step(Context const&) { drawn.push_back(learner.strategy<Replay>().drawn.id); }
  } ids{learner, {}};
  learner.fit(blobs(1, {2, 3}), {.batch_size = 10}, ids);
  REQUIRE(ids.drawn.size() == 4);
  auto const held = learner.strategy<Replay>().memory.contents();
  CHECK(held.size() == 20);
  for (std::int64_t label = 0; label < 4; ++label) {
    CHECK(held.labels.eq(label).sum().item<std::int64_t>() == 5);
  }
  for (std::size_t pass = 0; pass < 2; ++pass) {  // two draws of 5 are one pass over 10 rows
    auto const both = torch::cat({ids.drawn[2 * pass], ids.drawn[2 * pass + 1]});
    CAPTURE(c10::str(both));
    CHECK(std::get<0>(at::_unique(both)).numel() == 10);
  }
}

TEST_CASE("distillation: value and gradient by hand") {
  // Teacher (2 ln 3, 0), student (0, 0), T = 2: KL .130812, T^2 KL .523248, gradient in z (-.5,
  // .5).
  struct Forgets {
    void begin(Context& c, Experience const&) {
      if (c.index == 1) c.arena.weights().zero_();
    }
  };
  auto const x = torch::ones({1, 1}, float64);
  for (bool const squared : {true, false}) {
    auto net = linear(torch::tensor({{2 * std::log(3.0)}, {0.0}}, float64));
    Learner learner{net, Sgd{.lr = 0}, Lwf{.strength = 1, .t_squared = squared}, Forgets{}};
    learner.fit(make_experience(x, integers({0}), {0, 1}, 0), {.batch_size = 1});
    Recorder seen;
    learner.fit(make_experience(x, integers({0}), {0, 1}, 1), {.batch_size = 1}, seen);
    CHECK(seen.penalty.at(0) == doctest::Approx(squared ? 0.523248 : 0.130812).epsilon(1e-5));
    // The supervised loss at (0, 0) adds p - onehot = (-.5, .5).
    auto const expected = squared ? -0.5 : -0.125;
    CHECK(seen.gradient[0].item<double>() == doctest::Approx(expected - 0.5).epsilon(1e-9));
    CHECK(seen.gradient[1].item<double>() == doctest::Approx(0.5 - expected).epsilon(1e-9));
  }
}

TEST_CASE("distillation is zero at the teacher's own weights, and its schedules scale both terms") {
  auto const past = blobs(0, {0, 1}), now = blobs(1, {2, 3});
  auto const record = [&](Lwf lwf, std::int64_t shards = 1) {
    Learner learner{small(), Sgd{.lr = 0}, lwf};
    learner.fit(past, {.batch_size = 10});
    Recorder seen;
    learner.fit(now, {.batch_size = 40, .shards = shards, .shuffle = false}, seen);
    return seen;
  };
  auto const plain = record({});
  CHECK(std::abs(plain.penalty.at(0)) < 1e-12);
  auto const net = small();
  Learner naive{small(), Sgd{.lr = 0}};
  Recorder reference;
  naive.fit(now, {.batch_size = 40, .shuffle = false}, reference);
  CHECK((plain.gradient - reference.gradient).abs().max().item<double>() < 1e-7);
  CHECK(record({.weighting = Lwf::Weighting::one_over_t}).loss[0] ==
        doctest::Approx(reference.loss[0] / 2).epsilon(1e-12));
  CHECK(record({.task_weight = Lwf::TaskWeight::one_over_t}, 3).loss[0] ==
        doctest::Approx(reference.loss[0] / 2).epsilon(1e-12));
  CHECK(record({.weighting = Lwf::Weighting::count}).loss[0] ==
        doctest::Approx(reference.loss[0]).epsilon(1e-12));
  CHECK(record({.strengths = {0, 0}}).penalty.empty());
}

TEST_CASE("the teacher does not change while the student trains, and shares no storage with it") {
  auto net = small();
  Learner learner{net, Sgd{.lr = 0.1}, Lwf{}};
  learner.fit(blobs(0, {0, 1}), {.batch_size = 10});
  auto const before = all_of(net);
  struct Watches {
    Learner<nn::Sequential, Sgd, StrategySet<Lwf>>& learner;
    std::vector<Tensor> seen;
    void step(Context const&) { seen.push_back(learner.strategy<Lwf>().teacher.weights.clone()); }
  } watches{learner, {}};
  learner.fit(blobs(1, {2, 3}), {.batch_size = 10}, watches);
  REQUIRE(watches.seen.size() == 4);
  CHECK(watches.seen.front().equal(watches.seen.back()));
  CHECK_FALSE(all_of(net).equal(before));
}

TEST_CASE("with a head per task, distillation moves the old heads and naive training does not") {
  auto const train = [](bool distil) {
    nn::Sequential net(nn::Linear(4, 6), nn::Tanh(), MultiHead(6, 2));
    net->to(torch::kFloat64);
    Learner learner{net, Sgd{.lr = 0.1, .momentum = 0.9, .weight_decay = 0.01},
                    Lwf{.strength = distil ? 1.0 : 0.0}};
    learner.fit(blobs(0, {0, 1}, 40, 0), {.batch_size = 10});
    auto const head = net->named_parameters()["2.weight0"].detach().clone();
    learner.fit(blobs(1, {0, 1}, 40, 1), {.epochs = 2, .batch_size = 10});
    return (net->named_parameters()["2.weight0"].detach() - head).abs().max().item<double>();
  };
  CHECK(train(false) == 0);
  CHECK(train(true) > 0);
}

TEST_CASE(
    "dark replay: the error in stored logits by hand, over rows and logits of the whole step") {
  // z = (1, 0) against stored (0, 0), alpha .5: .5 (1 + 0) / 2 = .25; a second row without error
  // halves it.
  auto const w = torch::tensor({{1.0}, {0.0}}, float64);
  auto const x = torch::ones({2, 1}, float64);
  auto const value = [&](Tensor const& stored, std::int64_t n, std::int64_t shards) {
    Der der{
        Answers{rows_of(torch::ones({n, 1}, float64), torch::zeros({n}, torch::kInt64), stored)}};
    Learner learner{linear(w), Sgd{.lr = 0}, der};
    Recorder seen;
    learner.fit(make_experience(x, integers({0, 1})),
                {.batch_size = 2, .shards = shards, .shuffle = false}, seen);
    CHECK(seen.loss[0] ==
          doctest::Approx((std::log1p(std::exp(-1)) + std::log1p(std::exp(1))) / 2));
    return seen.penalty.at(0);
  };
  CHECK(value(torch::zeros({1, 2}, float64), 1, 1) == doctest::Approx(0.25).epsilon(1e-12));
  auto const one_right = torch::tensor({{0.0, 0.0}, {1.0, 0.0}}, float64);
  CHECK(value(one_right, 2, 1) == doctest::Approx(0.125).epsilon(1e-12));
  CHECK(value(one_right, 2, 2) == doctest::Approx(0.125).epsilon(1e-12));
  // Stored with one column only: one logit is compared for that row, and three in all.
  auto const narrow = torch::tensor({{0.0, std::nan("")}, {0.0, 0.0}}, float64);
  CHECK(value(narrow, 2, 1) == doctest::Approx(0.5 * 2 / 3).epsilon(1e-12));
  CHECK(value(torch::zeros({1, 1}, float64), 1, 1) == doctest::Approx(0.5).epsilon(1e-12));
  // Stored with more columns than the head has: those that both have.
  CHECK(value(torch::zeros({1, 5}, float64), 1, 1) == doctest::Approx(0.25).epsilon(1e-12));
}

TEST_CASE("DER++ adds the mean cross-entropy of its second draw, and is DER without it") {
  auto const w = torch::tensor({{1.0}, {0.0}}, float64);
  auto const held = rows_of(torch::full({1, 1}, logit_of(3), float64), integers({0}),
                            torch::tensor({{logit_of(3), 0.0}}, float64));
  DerPlusPlus derpp{Answers{held}};
  derpp.beta = 0.5;
  Learner learner{linear(w), Sgd{.lr = 0}, derpp};
  Recorder seen;
  learner.fit(make_experience(torch::full({2, 1}, logit_of(1), float64), integers({0, 0}), {0, 1}),
              {.batch_size = 2}, seen);
  CHECK(seen.loss[0] == doctest::Approx(1 + 0.5 * 3).epsilon(1e-9));
  CHECK(seen.penalty.at(0) == doctest::Approx(0).epsilon(1e-12));

  auto const train = [](auto strategy) {
    auto net = small();
    Learner trained{net, Sgd{.lr = 0.1}, strategy};
    for (std::int64_t e = 0; e < 2; ++e) {
      trained.fit(blobs(e, {2 * e, 2 * e + 1}), {.epochs = 2, .batch_size = 8});
    }
    return all_of(net);
  };
  auto const der = train(Der{Reservoir{.capacity = 20}});
  DerPlusPlus without{Reservoir{.capacity = 20}};
  without.beta = 0;
  CHECK(train(without).equal(der));
  Der off{Reservoir{.capacity = 20}};
  off.alpha = 0;
  Replay nothing{Reservoir{.capacity = 0}};
  CHECK(train(off).equal(train(nothing)));
}

TEST_CASE("rows are stored with the logits of the training forward that saw them") {
  auto net = small();
  Learner learner{net, Sgd{.lr = 0}, Der{Reservoir{.capacity = 100}}};
  learner.fit(blobs(0, {0, 1}), {.batch_size = 10, .shards = 3});
  auto const held = learner.strategy<Der>().memory.contents();
  CHECK(held.size() == 40);
  CHECK(held.logits.allclose(net->forward(held.stored).detach(), 1e-12));
}

TEST_CASE("DER++ without its first term is replay with another normaliser") {
  // CE_f + (m/B) CE_r = ((B + m)/B) L_ER, so the learning rate makes up for it.
  auto const past =
      rows_of(torch::ones({4, 4}, float64), integers({0, 1, 0, 1}), torch::zeros({4, 4}, float64));
  auto a = small(), b = small();
  DerPlusPlus derpp{Answers{past}};
  derpp.alpha = 0;
  derpp.beta = 4.0 / 10;
  Learner dark{a, Sgd{.lr = 0.1 * 10 / 14}, derpp};
  Learner replay{b, Sgd{.lr = 0.1}, Replay{Answers{past}}};
  dark.fit(blobs(1, {2, 3}), {.batch_size = 10});
  replay.fit(blobs(1, {2, 3}), {.batch_size = 10});
  CHECK(all_of(a).allclose(all_of(b), 1e-6, 1e-9));
}

TEST_CASE("the asymmetric loss by hand: classes outside the fresh batch get no gradient from it") {
  // z = (2, 0, 1, 0), batch classes {2, 3}: CE of label 2 is log(1 + e^-1) = .313262, of label 3
  // one more.
  auto const w = torch::tensor({{2.0}, {0.0}, {1.0}, {0.0}}, float64);
  auto const fresh = make_experience(torch::ones({2, 1}, float64), integers({2, 3}), {2, 3});
  auto const record = [&](ErAce ace, std::int64_t shards) {
    Learner learner{linear(w), Sgd{.lr = 0}, ace};
    Recorder seen;
    learner.fit(fresh, {.batch_size = 2, .shards = shards, .shuffle = false}, seen);
    return seen;
  };
  ErAce ace{Reservoir{.capacity = 0}};
  ace.keep_unseen = false;
  for (std::int64_t const shards : {1, 2}) {
    auto const seen = record(ace, shards);
    CHECK(seen.loss[0] == doctest::Approx(0.313262 + 0.5).epsilon(1e-5));
    CHECK(seen.gradient[0].item<double>() == 0);
    CHECK(seen.gradient[1].item<double>() == 0);
    CHECK(seen.gradient[2].item<double>() != 0);
  }
  ace.keep_unseen = true;  // classes 0 and 1 were never met: all four compete
  auto const z = torch::tensor({{2.0, 0.0, 1.0, 0.0}, {2.0, 0.0, 1.0, 0.0}}, float64);
  CHECK(record(ace, 1).loss[0] ==
        doctest::Approx(at::cross_entropy_loss(z, integers({2, 3})).item<double>()));
  ace.memory = Answers{rows_of(torch::ones({1, 1}, float64), integers({2}))};
  ace.replay_over = ErAce::Over::all;
  ace.keep_unseen = false;
  auto const replayed = at::cross_entropy_loss(z.slice(0, 0, 1), integers({2})).item<double>();
  CHECK(record(ace, 1).loss[0] == doctest::Approx(0.813262 + replayed).epsilon(1e-5));
  ace.halve = true;
  CHECK(record(ace, 2).loss[0] == doctest::Approx((0.813262 + replayed) / 2).epsilon(1e-5));
  // A row of a class that no experience had: it has been replayed, so it is seen, and {0, 2, 3}
  // compete: log(e^2 + e + 1) - 2 = .407606.
  ace = ErAce{Answers{rows_of(torch::ones({1, 1}, float64), integers({0}))}};
  for (bool const keep : {false, true}) {  // class 1 is left
    ace.keep_unseen = keep;
    auto const open = z.slice(0, 0, 1).narrow(1, 1, 3);
    auto const fresh =
        keep ? at::cross_entropy_loss(open, integers({1})).item<double>() + 0.5 : 0.813262;
    CHECK(record(ace, 1).loss[0] == doctest::Approx(fresh + 0.407606).epsilon(1e-5));
  }
}

namespace {

/// Keeps the gradient as it stands at its place in the list.
struct Before {
  Tensor gradient{};
  void edit_gradient(Context& c) { gradient = c.gradient().clone(); }
};
struct After {
  Tensor gradient{}, reference{};
  AnyMemory* memory = nullptr;
  void edit_gradient(Context& c) {
    gradient = c.gradient().clone();
    auto const held = memory->contents();
    if (held.size() == 0) return;
    auto const past = held.task.lt(c.index).nonzero().view({-1});
    if (past.numel() == 0) return;
    auto const x = held.stored.index_select(0, past);
    reference = c.gradient_on(rows_of(x, held.labels.index_select(0, past)));
  }
};

}  // namespace

TEST_CASE("A-GEM removes what points uphill on the memory, and touches nothing else") {
  auto net = small();
  Learner learner{net, Sgd{.lr = 0.1}, Before{}, AGem{}, After{}};
  auto& after = learner.strategy<After>();
  after.memory = &learner.strategy<AGem>().memory;
  struct Checks {
    Before& before;
    After& after;
    int projected = 0, left = 0;
    void step(Context const&) {
      auto const &g = before.gradient, &r = after.reference;
      if (!r.defined()) {
        CHECK(g.equal(after.gradient));  // nothing of the past yet
        return;
      }
      auto const dot = g.dot(r).item<double>();
      if (dot >= 0) {
        ++left;
        CHECK(g.equal(after.gradient));
      } else {
        ++projected;
        auto const expected = g - r * (dot / r.dot(r).item<double>());
        CHECK(after.gradient.allclose(expected, 1e-9, 1e-12));
        auto const norms = after.gradient.norm().item<double>() * r.norm().item<double>();
        CHECK(std::abs(after.gradient.dot(r).item<double>()) <= 1e-9 * norms);
      }
    }
  } checks{learner.strategy<Before>(), after};
  for (std::int64_t e = 0; e < 3; ++e) {
    learner.fit(blobs(e, {e % 3, (e + 1) % 3}), {.epochs = 12, .batch_size = 10}, checks);
  }
  CHECK(checks.projected > 0);
  CHECK(checks.left > 0);
}

TEST_CASE("A-GEM by hand: g = (2, 1) against r = (-1, 1) becomes (1.5, 1.5)") {
  auto const g = torch::tensor({2.0, 1.0}, float64), r = torch::tensor({-1.0, 1.0}, float64);
  auto const projected = [&](Tensor const& against) {
    auto result = g.clone();
    AGem{}.project(result, against);
    return result;
  };
  CHECK(projected(r).equal(torch::tensor({1.5, 1.5}, float64)));
  CHECK(projected(torch::zeros_like(r)).equal(g));
  CHECK(projected(g).equal(g));
}

TEST_CASE("the nearest class mean by hand") {
  nn::Sequential net(nn::Flatten(), nn::Linear(1, 3));
  net->to(torch::kFloat64);
  Learner learner{net, Sgd{.lr = 0}, Ncm{}};
  auto const x = torch::tensor({{1.0}, {3.0}, {10.0}}, float64);
  learner.fit(make_experience(x, integers({0, 0, 1}), {0, 1}), {.batch_size = 3});
  auto const& ncm = learner.strategy<Ncm>().means;
  auto const mu = ncm.means();
  CHECK(mu.view({-1}).equal(torch::tensor({2.0, 10.0}, float64)));
  auto const probe = torch::tensor({{5.9}, {6.1}}, float64);
  CHECK(learner.predict(probe).equal(integers({0, 1})));
  auto const scores = learner.scores(probe);
  CHECK(scores[0][0].item<double>() == doctest::Approx(-3.9 * 3.9).epsilon(1e-12));

  // A class that is skipped never wins, and the order of rows does not matter.
  Learner other{net, Sgd{.lr = 0}, Ncm{}};
  other.fit(make_experience(x.flip(0), integers({2, 0, 0}), {0, 2}), {.batch_size = 3});
  CHECK(std::isinf(other.scores(probe)[0][1].item<double>()));
  CHECK(other.strategy<Ncm>().means.sums[0].equal(ncm.sums[0]));
}

TEST_CASE("class means of a memory follow the weights") {
  Ncm ncm{Reservoir{.capacity = 100}};
  ncm.source = Ncm::Source::memory;
  auto net = small();
  Learner learner{net, Sgd{.lr = 0.2}, ncm};
  learner.fit(blobs(0, {0, 1}), {.batch_size = 10});
  auto const x = blobs(0, {0, 1}).train.read(torch::arange(40)).stored;
  auto const first = learner.scores(x);
  CHECK(learner.scores(x).equal(first));
  learner.fit(blobs(1, {2, 3}), {.batch_size = 10});
  auto const& held = learner.strategy<Ncm>();
  auto const rows = held.memory.contents();
  learner.scores(x);
  Tensor phi;
  {
    torch::NoGradGuard no_grad;
    phi = learner.context().model.features(rows.stored);
  }
  auto const mask = rows.labels.eq(2);
  auto const mean = phi.index_select(0, mask.nonzero().view({-1})).mean(0);
  CHECK(held.means.means()[2].allclose(mean, 1e-9));
}

TEST_CASE("a memory with one row per class replays every class, where a reservoir may lose one") {
  Replay ring{Ring{.capacity = 3}};
  Learner learner{small(6), Sgd{}, ring};
  for (std::int64_t e = 0; e < 3; ++e) learner.fit(blobs(e, {e}), {.batch_size = 10});
  auto const held = learner.strategy<Replay>().memory.contents();
  for (std::int64_t c = 0; c < 3; ++c) CHECK(held.labels.eq(c).sum().item<std::int64_t>() == 1);

  // A reservoir of three keeps a row of each class with probability 3!/27 at best: all 20 seeds
  // would do so less than once in 1e13.
  std::int64_t complete = 0;
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    Reservoir reservoir{.capacity = 3};
    for (std::int64_t e = 0; e < 3; ++e) {
      reservoir.insert(blobs(e, {e}).train.read(torch::arange(40)), Generator(seed));
    }
    complete += std::get<0>(at::_unique(reservoir.contents().labels)).numel() == 3;
  }
  CHECK(complete < 20);
}
