#include <cmath>
#include <cstdint>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <torch/nn/modules/activation.h>
#include <pawl/core/learner.hpp>
#include <pawl/heads/growing.hpp>
#include <pawl/heads/multi_head.hpp>
#include <pawl/strategies/ewc.hpp>
#include <pawl/strategies/mas.hpp>
#include <pawl/strategies/si.hpp>

#include <doctest/doctest.h>  // after LibTorch, whose own CHECK must not win

using namespace pawl;

namespace {

Tensor values(std::vector<double> const& v) { return torch::tensor(v, torch::kFloat64); }

Tensor draws(std::vector<std::int64_t> const& shape, std::int64_t key) {
  auto const x = torch::empty(shape, torch::kFloat64);
  fill_normal(x, 0, 1, Seed{21}.generator("test", key));
  return x;
}

template <class M>
M seeded(M module) {
  module->to(torch::kFloat64);
  std::int64_t i = 0;
  for (auto& p : module->parameters()) fill_normal(p, 0, 0.5, Seed{5}.generator("net", i++));
  return module;
}

nn::Sequential perceptron() {
  return seeded(nn::Sequential(nn::Linear(6, 12), nn::Tanh(), nn::Linear(12, 2)));
}

/// Two classes apart along one axis, which is another one in every experience, with 6 axes.
Experience blobs(std::int64_t e) {
  auto const y = torch::arange(60) % 2;
  auto x = draws({60, 6}, e);
  x.select(1, e % 6).add_((y * 2 - 1).to(torch::kFloat64) * 3);
  return make_experience(x, y, {0, 1}, e);
}

/// A context over a weight vector of n values, outside of any training.
struct Bare {
  explicit Bare(std::vector<double> const& w) {
    auto const n = static_cast<std::int64_t>(w.size());
    nn::Linear layer(nn::LinearOptions(n, 1).bias(false));
    layer->to(torch::kFloat64);
    context.model = Model(nn::Sequential(layer));
    context.arena.bind(*context.model.module);
    context.learning_rate = 0.01;
    context.arena.clear_gradients();
    move(w);
  }
  void move(std::vector<double> const& w) { part(context.weights()).copy_(values(w)); }

  /// The part of a flat tensor that is not padding.
  Tensor part(Tensor const& flat) const {
    return flat.narrow(0, 0, context.arena.layout()[0].size);
  }
  Tensor flat(std::vector<double> const& v) const {
    auto const all = torch::zeros_like(context.weights());
    part(all).copy_(values(v));
    return all;
  }
  Tensor gradient() {
    context.arena.clear_gradients();
    return part(context.gradient());
  }

  Context context;
};

double element(Tensor const& t, std::int64_t i) { return t[i].item<double>(); }
bool close(Tensor const& a, Tensor const& b, double tolerance = 1e-12) {
  return a.sizes() == b.sizes() && (a - b).abs().max().item<double>() <= tolerance;
}

/// Weights after training on some experiences.
template <class... S>
Tensor trained(std::int64_t experiences, nn::Sequential net, double lr, S... strategies) {
  Learner learner{net, Sgd{.lr = lr, .momentum = 0.5}, strategies...};
  for (std::int64_t e = 0; e < experiences; ++e) {
    learner.fit(blobs(e), {.epochs = 3, .batch_size = 10});
  }
  return learner.context().weights().clone();
}

/// The penalties of every step.
struct Trace {
  static constexpr bool wants_penalties = true;
  std::vector<double> values{};
  void step(Context const& c) { values.push_back(c.penalties.at(0).second.item<double>()); }
};

/// L = z^2 / 2 in the place of cross-entropy.
struct HalfSquare {
  Tensor loss(Context& c) { return c.logits.square().sum() / 2; }
};

/// A penalty that goes through autograd.
struct Shrink {
  double strength = 0;
  Tensor penalty(Context& c) {
    Tensor sum;
    for (auto const& p : c.arena.parameters()) {
      sum = sum.defined() ? sum + p.square().sum() : p.square().sum();
    }
    return strength * sum;
  }
};

}  // namespace

// ---- the quadratic anchor ----

TEST_CASE("the anchor's value and gradient are those computed by hand") {
  Bare bare({0, 0});
  QuadraticAnchor anchor;
  anchor.move(bare.context, bare.flat({.25, 1}), "test");
  bare.move({2, -1});
  CHECK(anchor.value(bare.context, 4).item<double>() == doctest::Approx(4));
  auto const g = bare.gradient();
  anchor.pull(bare.context, 4);
  CHECK(close(g, values({2, -4})));
}

TEST_CASE("the closed-form gradient is that of the value") {
  Bare bare({.3, -.2, 1.4, 0});
  QuadraticAnchor anchor;
  anchor.move(bare.context, bare.flat({.5, 2, 0, 1}), "test");
  bare.move({-1, .4, 1, .7});
  anchor.add(bare.context, bare.flat({1, 0, 0, 3}), "test");
  bare.move({.1, .2, .3, .4});
  auto const g = bare.gradient();
  anchor.pull(bare.context, 7);
  auto const eps = 1e-5;
  for (std::int64_t i = 0; i < 4; ++i) {
    auto const w = bare.part(bare.context.weights())[i];
    auto const here = w.clone();
    w.copy_(here + eps);
    auto const up = anchor.value(bare.context, 7).item<double>();
    w.copy_(here - eps);
    auto const down = anchor.value(bare.context, 7).item<double>();
    w.copy_(here);
    CHECK(element(g, i) == doctest::Approx((up - down) / (2 * eps)).epsilon(1e-6));
  }
}

TEST_CASE("without an anchor, or with strength 0, not even the gradient is asked for") {
  Bare bare({1, 2});
  QuadraticAnchor anchor;
  anchor.pull(bare.context, 5);
  CHECK(anchor.value(bare.context, 5).item<double>() == 0);
  anchor.move(bare.context, bare.flat({1, 1}), "test");
  bare.move({3, 3});
  anchor.pull(bare.context, 0);
  CHECK(anchor.value(bare.context, 0).item<double>() == 0);
  CHECK_FALSE(bare.context.arena.packed());
}

TEST_CASE("two pulls are one to the mean weighted by importance, plus a constant") {
  Bare bare({0});
  QuadraticAnchor anchor;
  anchor.move(bare.context, bare.flat({2}), "test");
  bare.move({1});
  anchor.add(bare.context, bare.flat({3}), "test");
  auto const value = [&](double th) {
    bare.move({th});
    return anchor.value(bare.context, 2).item<double>();
  };
  CHECK(value(.6) == doctest::Approx(1.2).epsilon(1e-12));
  CHECK(value(-.4) == doctest::Approx(5 + 1.2).epsilon(1e-12));
  CHECK(value(1.6) == doctest::Approx(5 + 1.2).epsilon(1e-12));
}

TEST_CASE("many pulls have the value and the gradient of their definition") {
  std::vector<Tensor> importances, anchors;
  Bare bare(std::vector<double>(16, 0.0));
  QuadraticAnchor anchor;
  auto& c = bare.context;
  for (std::int64_t k = 0; k < 5; ++k) {
    anchors.push_back(draws({16}, 10 * k));
    importances.push_back(draws({16}, 10 * k + 1).square());
    importances.back()[k] = 0;  // also where one of them does not care
    importances.back()[7] = 0;  // and where none does
    c.weights().copy_(anchors.back());
    anchor.add(c, importances.back(), "test");
  }
  c.weights().copy_(draws({16}, 100));
  auto value = torch::zeros({}, torch::kFloat64), gradient = torch::zeros({16}, torch::kFloat64);
  for (std::size_t k = 0; k < anchors.size(); ++k) {
    auto const way = c.weights() - anchors[k];
    value += 3.0 / 2 * (importances[k] * way.square()).sum();
    gradient += 3 * importances[k] * way;
  }
  auto const g = bare.gradient();
  anchor.pull(c, 3);
  CHECK(close(anchor.value(c, 3), value, 1e-9));
  CHECK(close(g, gradient, 1e-9));
}

TEST_CASE("a step that overshoots the anchor is noticed, or clipped") {
  Bare bare({0, 0});
  auto& c = bare.context;
  c.learning_rate = 0.1;
  QuadraticAnchor calm, wild, clipped{.clip_step = true};
  calm.move(c, bare.flat({.9, .1}), "test");
  for (auto* anchor : {&wild, &clipped}) anchor->move(c, bare.flat({3, .1}), "test");
  bare.move({1, 1});
  calm.pull(c, 10);
  CHECK_FALSE(calm.overshoots);
  auto g = bare.gradient();
  wild.pull(c, 10);
  CHECK(wild.overshoots);
  CHECK(close(g, values({30, 1})));
  g = bare.gradient();
  clipped.pull(c, 10);
  CHECK_FALSE(clipped.overshoots);
  CHECK(close(g, values({10, 1})));  // a step of .1 g lands on the anchor
  CHECK(clipped.value(c, 10).item<double>() == doctest::Approx(5 * (1 + .1)));
}

TEST_CASE("an importance that is not finite is refused at the end of the experience") {
  Bare bare({0, 0});
  bare.context.index = 3;
  QuadraticAnchor anchor;
  for (double const bad : {std::nan(""), HUGE_VAL}) {
    CHECK_THROWS_WITH_AS(anchor.move(bare.context, bare.flat({1, bad}), "ewc"),
                         doctest::Contains("ewc: the importance after experience 3 is not finite"),
                         Error);
  }
  CHECK_FALSE(anchor.importance.defined());
}

TEST_CASE("norms and heads can be left out") {
  auto const importance = [](Model const& net, QuadraticAnchor anchor) {
    Context c;
    c.model = net;
    c.arena.bind(*net.module);
    anchor.move(c, torch::ones_like(c.weights()), "test");
    std::set<std::string> anchored;
    for (std::size_t i = 0; i < c.arena.layout().size(); ++i) {
      auto const part = c.arena.parameter_view(anchor.importance, i);
      CHECK(part.min().item<double>() == part.max().item<double>());
      if (part.max().item<double>() > 0) anchored.insert(c.arena.layout()[i].name);
    }
    return anchored;
  };
  using Names = std::set<std::string>;
  Model const plain = nn::Sequential(nn::Linear(2, 3), nn::BatchNorm1d(3), nn::Linear(3, 3),
                                     nn::Tanh(), nn::Linear(3, 2));
  CHECK(importance(plain, {}).size() == 8);
  CHECK(importance(plain, {.include_norm = false}) ==
        Names{"0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias"});
  CHECK(importance(plain, {.include_head = false}) ==
        Names{"0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"});
  Model const headed = nn::Sequential(nn::Linear(2, 3), nn::Linear(3, 4), GrowingHead(4, 2));
  CHECK(importance(headed, {.include_head = false}) ==
        Names{"0.weight", "0.bias", "1.weight", "1.bias"});
}

// ---- what EWC, MAS and SI have in common ----

TEST_CASE("experience 0, and any experience at strength 0, are naive bit for bit") {
  auto const first = trained(1, perceptron(), .1);
  CHECK(first.equal(trained(1, perceptron(), .1, Ewc{.strength = 1e6})));
  CHECK(first.equal(trained(1, perceptron(), .1, Mas{.strength = 1e6})));
  CHECK(first.equal(trained(1, perceptron(), .1, Si{.strength = 1e6})));
  auto const all = trained(3, perceptron(), .1);
  CHECK(all.equal(trained(3, perceptron(), .1, Ewc{.strength = 0})));
  CHECK(all.equal(trained(3, perceptron(), .1, Mas{.strength = 0})));
  CHECK(all.equal(trained(3, perceptron(), .1, Si{.strength = 0})));
  CHECK_FALSE(all.equal(trained(3, perceptron(), .1, Si{.strength = 1})));
}

TEST_CASE("plain SGD is naive bit for bit as well") {
  auto const run = [](auto... strategies) {
    Learner learner{perceptron(), Sgd{.lr = .1}, strategies...};
    learner.fit(blobs(0), {.epochs = 3, .batch_size = 10});
    learner.fit(blobs(1), {.epochs = 3, .batch_size = 10});
    return learner.context().weights().clone();
  };
  CHECK(run().equal(run(Ewc{.strength = 0}, Mas{.strength = 0}, Si{.strength = 0})));
}

TEST_CASE("the penalty is 0 in experience 0 and positive after one step of experience 1") {
  auto const check = [](auto strategy) {
    Learner learner{perceptron(), Sgd{.lr = .01}, strategy};
    Trace first, second;
    learner.fit(blobs(0), {.batch_size = 10}, first);
    learner.fit(blobs(1), {.batch_size = 10}, second);
    for (auto const value : first.values) CHECK(value == 0);
    CHECK(second.values.at(0) == 0);
    CHECK(second.values.at(1) > 0);
  };
  check(Ewc{.strength = 10});
  check(Ewc{.strength = 10, .mode = Ewc::Mode::separate});
  check(Mas{.strength = 10});
  check(Si{.strength = 10});
}

TEST_CASE("an overwhelming strength freezes what is important") {
  auto const frozen = [](auto strategy) {
    Learner learner{perceptron(), Sgd{.lr = .01}, strategy};
    learner.fit(blobs(0), {.epochs = 3, .batch_size = 10});
    auto const before = learner.context().weights().clone();
    auto const omega = learner.template strategy<decltype(strategy)>().anchor.importance.clone();
    learner.fit(blobs(1), {.epochs = 20, .batch_size = 10});
    auto const moved = (learner.context().weights() - before).abs();
    return torch::where(omega > 1e-6, moved, torch::zeros_like(moved))
        .max()
        .template item<double>();
  };
  CHECK(frozen(Ewc{.strength = 0}) > .1);
  CHECK(frozen(Ewc{.strength = 1e12, .anchor = {.clip_step = true}}) <
        .03);  // one step's task gradient
  CHECK(frozen(Mas{.strength = 1e12, .anchor = {.clip_step = true}}) < .03);
  CHECK(frozen(Si{.strength = 1e12, .anchor = {.clip_step = true}}) < .03);
}

TEST_CASE("listed twice with half the strength is once with the whole") {
  auto const check = [](auto half, auto whole) {
    auto const twice = trained(3, perceptron(), .02, half, half);
    CHECK(close(twice, trained(3, perceptron(), .02, whole), 1e-6));
    CHECK_FALSE(close(twice, trained(3, perceptron(), .02), 1e-3));
  };
  check(Ewc{.strength = 10}, Ewc{.strength = 20});
  check(Ewc{.strength = 10, .mode = Ewc::Mode::separate},
        Ewc{.strength = 20, .mode = Ewc::Mode::separate});
  check(Mas{.strength = .1}, Mas{.strength = .2});
  check(Si{.strength = .5}, Si{.strength = 1});
}

TEST_CASE("the order of penalties does not matter") {
  auto const a =
      trained(3, perceptron(), .02, Ewc{.strength = 10}, Mas{.strength = .1}, Si{.strength = .5});
  auto const b =
      trained(3, perceptron(), .02, Si{.strength = .5}, Ewc{.strength = 10}, Mas{.strength = .1});
  CHECK(close(a, b, 1e-6));
}

TEST_CASE("rows that a head gains have no importance") {
  auto const check = [](auto strategy) {
    auto net = seeded(nn::Sequential(nn::Linear(6, 5), nn::Tanh(), GrowingHead(5)));
    Learner learner{net, Sgd{.lr = .05}, strategy};
    auto two = blobs(1);
    two.train.labels = two.train.labels + 2;
    two.classes = {2, 3};
    learner.fit(blobs(0), {.batch_size = 10});
    auto const& anchor = learner.template strategy<decltype(strategy)>().anchor;
    auto const head = [&](Tensor const& flat) {
      return learner.context().arena.parameter_view(flat, 2).clone();  // [classes, 5]
    };
    auto const old = head(anchor.importance), old_weights = head(anchor.weights);
    CHECK(old.size(0) == 2);
    struct AtStart {
      Tensor importance{}, weights{}, model{};
      QuadraticAnchor const* live = nullptr;
      void begin(Context const& c) {
        importance = c.arena.parameter_view(live->importance, 2).clone();
        weights = c.arena.parameter_view(live->weights, 2).clone();
        model = c.arena.parameter_view(c.weights(), 2).clone();
      }
    };
    AtStart seen;
    seen.live = &anchor;
    learner.fit(two, {.batch_size = 10}, seen);
    CHECK(seen.importance.narrow(0, 0, 2).equal(old));
    CHECK(seen.importance.narrow(0, 2, 2).eq(0).all().template item<bool>());
    CHECK(seen.weights.narrow(0, 0, 2).equal(old_weights));
    CHECK(seen.weights.narrow(0, 2, 2).equal(seen.model.narrow(0, 2, 2)));
    CHECK(head(anchor.importance).narrow(0, 2, 2).max().template item<double>() > 0);
  };
  check(Ewc{.strength = 1});
  check(Ewc{.strength = 1, .mode = Ewc::Mode::separate});
  check(Mas{.strength = 1});
  check(Si{.strength = 1});
}

TEST_CASE("a label met on the way gives SI rows with no past") {
  auto net = seeded(nn::Sequential(nn::Linear(6, 5), nn::Tanh(), GrowingHead(5, 2)));
  Learner learner{net, Sgd{.lr = .05}, Si{}};
  auto e = blobs(0);
  e.train.labels[59] = 2;  // in the last batch of the only epoch, and never announced
  struct Path {
    Si* live;
    std::vector<Tensor> omega{}, start{}, weights{};
    void step(Context const& c) {
      omega.push_back(c.arena.parameter_view(live->omega, 2).clone());
      start.push_back(c.arena.parameter_view(live->start, 2).clone());
      weights.push_back(c.arena.parameter_view(c.weights(), 2).clone());
    }
  };
  Path path{&learner.strategy<Si>()};
  learner.fit(e, {.batch_size = 10, .shuffle = false}, path);
  REQUIRE(path.omega.size() == 6);
  CHECK(path.omega[4].size(0) == 2);
  CHECK(path.omega[5].size(0) == 3);
  CHECK(path.start[5].narrow(0, 0, 2).equal(path.start[4]));
  // The new row has taken one step: omega = -g (-lr g) = lr g^2 = way^2 / lr.
  auto const way = (path.weights[5] - path.start[5])[2];
  CHECK(way.abs().max().item<double>() > 0);
  CHECK(close(path.omega[5][2], way.square() / .05));
}

TEST_CASE("heads of other tasks get no importance and are not moved") {
  auto const check = [](auto strategy) {
    nn::Sequential net(nn::Linear(6, 5), nn::Tanh(), MultiHead(5, 2, 2, Seed{1}));
    net->to(torch::kFloat64);
    Learner learner{net, Adam{.lr = .05}, strategy};
    auto one = blobs(0);
    one.task = 0;
    one.train.tasks = torch::zeros({60}, torch::kInt64);
    auto const start = learner.context().weights().clone();
    learner.fit(one, {.batch_size = 10});
    auto const& c = learner.context();
    auto const& omega = learner.template strategy<decltype(strategy)>().anchor.importance;
    for (std::size_t i = 0; i < c.arena.layout().size(); ++i) {
      auto const other = c.arena.layout()[i].name.ends_with("1");
      auto const own = c.arena.parameter_view(omega, i);
      CHECK((own.max().template item<double>() == 0) == other);
      auto const still =
          c.arena.parameter_view(c.weights(), i).equal(c.arena.parameter_view(start, i));
      CHECK(still == other);
    }
  };
  check(Ewc{});
  check(Mas{});
  check(Si{});
}

TEST_CASE("`end` leaves buffers, gradients, modes and generators as found") {
  auto const check = [](auto strategy) {
    auto net = seeded(nn::Sequential(nn::Linear(6, 8), nn::BatchNorm1d(8), nn::Linear(8, 2)));
    Learner learner{net, Sgd{.lr = .01}};
    auto const e = blobs(0);
    learner.fit(e, {.batch_size = 10});
    auto& c = learner.context();
    c.experience = &e;
    std::vector<Tensor> found;
    auto const generator = at::detail::getDefaultCPUGenerator();
    auto const list = [&] {
      std::vector<Tensor> all{c.weights().clone(), generator.get_state()};
      for (auto const& b : net->buffers()) all.push_back(b.clone());
      for (auto const& p : net->parameters()) all.push_back(p.grad().clone());
      return all;
    };
    if constexpr (HasBegin<decltype(strategy)>) strategy.begin(c, e);
    auto const before = list();
    strategy.end(c, e);
    auto const after = list();
    for (std::size_t i = 0; i < before.size(); ++i) CHECK(before[i].equal(after[i]));
    CHECK(net[1]->is_training());
  };
  check(Ewc{});
  check(Ewc{.fisher = {.labels = FisherLabels::batch}});
  check(Mas{});
  check(Si{});
}

TEST_CASE("options have names of their own, and go round") {
  auto const check = [](auto strategy) {
    std::set<std::string> names;
    Options options;
    strategy.describe(options);
    for (auto const& option : options.all()) {
      CHECK(names.insert(option.name).second);
      option.set(option.get());
    }
  };
  check(Ewc{});
  check(Mas{});
  check(Si{});
}

// ---- EWC ----

TEST_CASE("online EWC decays the running Fisher, and the penalty too where asked") {
  auto const run = [](Ewc ewc) {
    Learner learner{perceptron(), Sgd{.lr = 0}, ewc};  // weights stand still: every Fisher is known
    learner.fit(blobs(0), {.batch_size = 10});
    auto const f0 = learner.strategy<Ewc>().anchor.importance.clone();
    learner.fit(blobs(1), {.batch_size = 10});
    auto const f1 = fisher(learner.context().model, learner.context().arena, blobs(1).train, {});
    auto const& running = learner.strategy<Ewc>().anchor.importance;
    CHECK(close(running, ewc.decay * f0 + f1));
    CHECK(close(f0, fisher(learner.context().model, learner.context().arena, blobs(0).train, {})));
    learner.context().weights().add_(.5);  // the padding too, where the importance is 0
    auto const factor = ewc.decay_penalty ? ewc.decay : 1;
    auto const value = learner.strategy<Ewc>().penalty_value(learner.context());
    CHECK(close(value, factor * 3 * .125 * running.sum()));
  };
  run(Ewc{.strength = 3});
  run(Ewc{.strength = 3, .decay = .25});
  run(Ewc{.strength = 3, .decay = .25, .decay_penalty = true});
}

TEST_CASE(
    "separate EWC is online EWC with one past experience, and with more where nothing moved") {
  auto const separate = Ewc{.strength = 20, .mode = Ewc::Mode::separate};
  auto const online = Ewc{.strength = 20};
  CHECK(trained(2, perceptron(), .02, online).equal(trained(2, perceptron(), .02, separate)));
  CHECK_FALSE(
      close(trained(3, perceptron(), .02, online), trained(3, perceptron(), .02, separate), 1e-6));
  auto const penalty = [](Ewc ewc) {
    Learner learner{perceptron(), Sgd{.lr = 0}, ewc};
    for (std::int64_t e = 0; e < 3; ++e) learner.fit(blobs(e), {.batch_size = 10});
    learner.context().weights().add_(.3);
    return learner.strategy<Ewc>().penalty_value(learner.context());
  };
  CHECK(close(penalty(online), penalty(separate), 1e-9));
}

TEST_CASE("separate EWC pulls to every past experience, in a state of constant size") {
  Learner learner{perceptron(), Sgd{.lr = .02}, Ewc{.strength = 20, .mode = Ewc::Mode::separate}};
  auto& c = learner.context();
  std::vector<Tensor> importances, anchors;
  std::set<std::int64_t> bytes;
  for (std::int64_t e = 0; e < 4; ++e) {
    learner.fit(blobs(e), {.batch_size = 10});
    importances.push_back(fisher(c.model, c.arena, blobs(e).train, {}));
    anchors.push_back(c.weights().clone());
    bytes.insert(learner.state_bytes());
  }
  CHECK(bytes.size() == 1);
  c.weights().add_(draws({c.weights().numel()}, 50));
  auto value = torch::zeros({}, torch::kFloat64);
  for (std::size_t k = 0; k < 4; ++k) {
    value += 10 * (importances[k] * (c.weights() - anchors[k]).square()).sum();
  }
  CHECK(value.item<double>() > 1);
  CHECK(close(learner.strategy<Ewc>().penalty_value(c), value, 1e-9));
}

TEST_CASE("on data whose axes are permuted, EWC forgets less and learns less the stronger it is") {
  auto const run = [](double strength) {  // accuracy on experience 0 and 1, after both
    auto net = perceptron();
    Learner learner{net, Sgd{.lr = .05}, Ewc{.strength = strength, .anchor = {.clip_step = true}}};
    auto one = blobs(0), two = blobs(1);
    // Experience 1 says the opposite along the axis of experience 0, so it cannot be learned for
    // free.
    two = make_experience(
        -one.train.read(torch::arange(60)).stored + .5 * two.train.read(torch::arange(60)).stored,
        two.train.labels, {0, 1}, 1);
    learner.fit(one, {.epochs = 10, .batch_size = 10});
    learner.fit(two, {.epochs = 10, .batch_size = 10});
    auto const accuracy = [&](Experience const& e) {
      auto const rows = e.train.read(torch::arange(60));
      return learner.predict(rows.stored).eq(rows.y).to(torch::kFloat64).mean().item<double>();
    };
    return std::pair{accuracy(one), accuracy(two)};
  };
  auto const naive = run(0), strong = run(30), frozen = run(1e5);
  CHECK(naive.first <= strong.first);
  CHECK(strong.first <= frozen.first);
  CHECK(naive.first < frozen.first - .3);
  CHECK(naive.second >= strong.second);
  CHECK(strong.second >= frozen.second);
  CHECK(naive.second > frozen.second + .3);
}

TEST_CASE("the Fisher of a learner sees the outputs that its loss sees") {
  auto net = seeded(nn::Sequential(nn::Linear(6, 5)));
  auto const e = blobs(0);
  for (auto const active : {Active::seen, Active::current, Active::batch, Active::all}) {
    Learner learner{net, Sgd{.lr = 0}, Ewc{}, Mas{}};
    learner.fit(e, {.batch_size = 10, .active = active});
    for (auto const& omega :
         {learner.strategy<Ewc>().anchor.importance, learner.strategy<Mas>().anchor.importance}) {
      auto const rows = learner.context().arena.parameter_view(omega, 0).sum(1);
      CHECK(element(rows, 0) > 0);
      CHECK(element(rows, 1) > 0);
      CHECK((element(rows, 4) > 0) == (active == Active::all));
    }
  }
}

// ---- MAS ----

TEST_CASE("MAS adds importances up, averages them, or forgets slowly") {
  auto const omega = [](Mas mas) {
    Learner learner{perceptron(), Sgd{.lr = 0}, mas};
    for (std::int64_t e = 0; e < 3; ++e) learner.fit(blobs(e), {.batch_size = 10});
    return learner.strategy<Mas>().anchor.importance.clone();
  };
  Model const net = perceptron();
  Arena const arena(*net.module);
  std::vector<Tensor> each;
  for (std::int64_t e = 0; e < 3; ++e) each.push_back(sensitivity(net, arena, blobs(e).train, {}));
  CHECK(close(omega({}), each[0] + each[1] + each[2]));
  CHECK(close(omega({.accumulate = Mas::Accumulate::mean}), (each[0] + each[1] + each[2]) / 3));
  CHECK(close(omega({.accumulate = Mas::Accumulate::ema, .decay = .25}),
              .25 * (.25 * each[0] + .75 * each[1]) + .75 * each[2]));
}

TEST_CASE("MAS needs no labels") {
  auto const omega = [](bool shuffled) {
    Learner learner{perceptron(), Sgd{.lr = 0}, Mas{}};
    auto e = blobs(0);
    if (shuffled) e.train.labels = e.train.labels.flip(0);
    learner.fit(e, {.batch_size = 10});
    return learner.strategy<Mas>().anchor.importance.clone();
  };
  CHECK(omega(false).equal(omega(true)));
}

// ---- SI ----

namespace {

/// SI on L = sum h_i th_i^2 / 2, full-batch SGD: every row asks for one coordinate.
Si on_quadratic(std::vector<double> const& h, double start, double lr, std::int64_t steps, Si si) {
  auto const d = static_cast<std::int64_t>(h.size());
  nn::Linear layer(nn::LinearOptions(d, 1).bias(false));
  layer->to(torch::kFloat64);
  layer->weight.detach().fill_(start);
  Learner learner{nn::Sequential(layer), Sgd{.lr = lr}, HalfSquare{}, si};
  struct Path {
    Tensor omega;
    Si* live;
    void step(Context const&) { omega = live->omega.clone(); }
  };
  Path path{.omega = {}, .live = &learner.strategy<Si>()};
  auto const x = torch::diag(values(h).sqrt());
  learner.fit(make_experience(x, torch::zeros({d}, torch::kInt64)),
              {.iterations = steps, .batch_size = d}, path);
  auto result = learner.strategy<Si>();
  result.omega = path.omega;  // `end` set it to 0
  return result;
}

}  // namespace

TEST_CASE("SI on a quadratic has the values computed by hand") {
  auto const si = on_quadratic({1}, 1, .1, 400, {});
  CHECK(element(si.omega, 0) == doctest::Approx(10.0 / 19).epsilon(1e-9));
  CHECK(element(si.anchor.importance, 0) == doctest::Approx(.478469).epsilon(1e-6));
  auto const fine = on_quadratic({1}, 1, .001, 20000, {});
  CHECK(element(fine.omega, 0) == doctest::Approx(.5).epsilon(1e-3));
}

TEST_CASE(
    "on a diagonal quadratic the path integral is the fall of the loss times 2 / (2 - lr h)") {
  std::vector<double> const h{.5, 1, 3, 7};
  for (auto const lr : {.2, .1, .05}) {
    auto const si = on_quadratic(h, 2, lr, 4000, {});
    for (std::size_t i = 0; i < h.size(); ++i) {
      auto const fall = h[i] * 4 / 2;
      CHECK(element(si.omega, static_cast<std::int64_t>(i)) ==
            doctest::Approx(fall * 2 / (2 - lr * h[i])).epsilon(1e-9));
    }
  }
}

TEST_CASE("the path integrals add up to the fall of the loss, the better the smaller the steps") {
  auto const e = blobs(0);
  auto const gap = [&](double lr) {
    auto net = perceptron();
    Learner learner{net, Sgd{.lr = lr}, Si{}};
    auto const rows = e.train.read(torch::arange(60));
    auto const loss = [&] {
      return at::cross_entropy_loss(net->forward(rows.stored), rows.y).item<double>();
    };
    struct Path {
      double sum = 0;
      Si* live;
      void step(Context const&) { sum = live->omega.sum().item<double>(); }
    };
    Path path{.live = &learner.strategy<Si>()};
    auto const start = loss();
    learner.fit(e, {.iterations = std::lround(2 / lr), .batch_size = 60}, path);
    CHECK(start - loss() > .1);
    return path.sum - (start - loss());
  };
  auto const ratio = gap(.05) / gap(.025);
  CHECK(ratio > 1.5);
  CHECK(ratio < 2.5);
}

TEST_CASE("SI importances are not negative, not all alike, and 0 where nothing moved") {
  nn::Sequential net(nn::Linear(6, 5), nn::ReLU(), nn::Linear(5, 2));
  seeded(net);
  {
    torch::NoGradGuard no_grad;
    net->named_parameters()["0.bias"][2] = -1000;  // a unit that never fires
  }
  Learner learner{net, Sgd{.lr = .05}, Si{}};
  learner.fit(blobs(0), {.epochs = 3, .batch_size = 10});
  auto const& omega = learner.strategy<Si>().anchor.importance;
  CHECK(omega.min().item<double>() >= 0);
  CHECK(std::get<0>(at::_unique(omega)).numel() > 10);
  auto const layer = learner.context().arena.parameter_view(omega, 0);
  CHECK(layer[2].max().item<double>() == 0);
  CHECK(layer[0].max().item<double>() > 0);
}

TEST_CASE("SI follows the gradient of the supervised loss alone, or the total one where asked") {
  auto const e = blobs(0);
  auto const check = [&](Si::Gradient which) {
    Learner learner{perceptron(), Sgd{.lr = .1}, Shrink{.strength = 3}, Si{.gradient = which}};
    auto& c = learner.context();
    auto const w = c.weights().clone();
    auto g = c.gradient_on(e.train.read(torch::arange(60)));
    struct First {
      Tensor omega, weights;
      Si* live;
      void step(Context const& context) {
        omega = live->omega.clone();
        weights = context.weights().clone();
      }
    };
    First first{.omega = {}, .weights = {}, .live = &learner.strategy<Si>()};
    learner.fit(e, {.batch_size = 60}, first);
    auto const total = g + 6 * w;
    CHECK(close(first.weights, w - .1 * total));
    CHECK(close(first.omega, .1 * total * (which == Si::Gradient::task ? g : total)));
  };
  check(Si::Gradient::task);
  check(Si::Gradient::total);
}

TEST_CASE("the pull of SI itself does not count as work done") {
  Learner learner{perceptron(), Sgd{.lr = .01}, Si{.strength = 50}};
  auto const e = blobs(1);
  learner.fit(blobs(0), {.batch_size = 10});
  struct Follow {
    Tensor before, expected, omega;
    Si* live;
    void begin(Context const& c) {
      before = c.weights().clone();
      expected = torch::zeros_like(before);
    }
    void step(Context const& c) {
      expected -= c.task_gradient * (c.weights() - before);
      before = c.weights().clone();
      omega = live->omega.clone();
    }
  };
  Follow follow{.before = {}, .expected = {}, .omega = {}, .live = &learner.strategy<Si>()};
  learner.fit(e, {.batch_size = 10}, follow);
  CHECK(close(follow.omega, follow.expected));
}

TEST_CASE("the penalty of SI does not feel how strong another penalty is") {
  // Up to the first step of experience 1 the other one has nothing to pull at.
  auto const run = [](double strength) {
    Learner learner{perceptron(), Sgd{.lr = .01}, Si{.strength = 5}, Ewc{.strength = strength}};
    Trace second;
    learner.fit(blobs(0), {.batch_size = 10});
    learner.fit(blobs(1), {.batch_size = 10}, second);
    return std::pair{second.values, learner.template strategy<Si>().anchor.importance.clone()};
  };
  auto const [weak, weak_importance] = run(1);
  auto const [strong, strong_importance] = run(60);
  CHECK(weak.at(1) > 0);
  CHECK(weak.at(1) == strong.at(1));
  CHECK_FALSE(weak_importance.equal(strong_importance));  // later the ways part
}

TEST_CASE("SI's options: negative work, a cap, and sums over experiences") {
  auto const run = [](Si si) {
    // Another penalty works against the loss: some weights go uphill.
    Learner learner{perceptron(), Sgd{.lr = .05}, Shrink{.strength = .1}, si};
    learner.fit(blobs(0), {.batch_size = 10});
    auto const first = learner.template strategy<Si>().anchor.importance.clone();
    learner.fit(blobs(1), {.batch_size = 10});
    return std::pair{first, learner.template strategy<Si>().anchor.importance.clone()};
  };
  auto const [first, second] = run({.strength = 0});
  CHECK((second - first).min().item<double>() >= 0);
  CHECK((second - first).max().item<double>() > 0);
  auto const signed_first = run({.strength = 0, .relu = false}).first;
  CHECK(signed_first.min().item<double>() < 0);
  CHECK(signed_first.clamp_min(0).equal(first));
  auto const cap = first.max().item<double>() / 2;
  CHECK(run({.strength = 0, .max_importance = cap}).first.equal(first.clamp_max(cap)));
}
