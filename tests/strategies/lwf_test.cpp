// Learning without forgetting: what is compared with what, and what is left alone.

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../core/rehearses.hpp"
#include "by_hand.hpp"
#include "toys.hpp"

#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/dropout.h>
#include <pawl/core/learner.hpp>
#include <pawl/heads/growing.hpp>
#include <pawl/heads/multi_head.hpp>
#include <pawl/memory/reservoir.hpp>
#include <pawl/strategies/lwf.hpp>

#include <doctest/doctest.h>  // after LibTorch, whose own CHECK must not win

using namespace pawl;
using namespace by_hand;
using namespace toys;

namespace {

/// Moves the student away from its teacher. Listed after Lwf, so that the teacher is taken before.
struct Stumbles {
  Tensor before{};  ///< weights of the teacher
  void begin(Context& c, Experience const&) {
    before = c.weights().clone();
    if (c.index == 0) return;
    auto step = torch::zeros_like(c.weights());
    fill_normal(step, 0, 0.3, Seed{8}.generator("step"));
    for (std::size_t i = 0; i < c.arena.parameters().size(); ++i) {
      c.arena.parameter_view(c.weights(), i).add_(c.arena.parameter_view(step, i));
    }
  }
};

double kl(Tensor const& old, Tensor const& z, double t) {
  auto const q = at::softmax(old / t, 1);
  return (q * (q.log() - at::softmax(z / t, 1).log())).sum(1).mean().item<double>();
}

/// A network that does not tell its features.
struct OpaqueImpl : nn::Module {
  explicit OpaqueImpl(nn::Sequential net) : net(register_module("net", std::move(net))) {}
  Tensor forward(Tensor const& x) { return net->forward(x); }
  nn::Sequential net;
};
TORCH_MODULE(Opaque);

/// A head with an activation before it, of which a Sequential around it tells nothing.
struct ActivatedHeadImpl : nn::Module {
  ActivatedHeadImpl() { head = register_module("head", MultiHead(8, 2, 3, Seed{2})); }
  Tensor forward(Tensor const& x) { return head(torch::relu(x)); }
  MultiHead head{nullptr};
};
TORCH_MODULE(ActivatedHead);

nn::Sequential two_headed(bool with_noise = false) {
  nn::Sequential net(nn::Linear(4, 8), nn::BatchNorm1d(8), nn::Tanh());
  if (with_noise) net->push_back(nn::Dropout(0.5));
  net->push_back(MultiHead(8, 2, 3, Seed{2}));
  return filled(net);
}

}  // namespace

TEST_CASE("without strength there is no teacher, and training is naive bit for bit") {
  auto const train = [](auto... strategy) {
    auto net = network();
    Learner learner{net, Sgd{.lr = 0.1, .momentum = 0.9}, strategy...};
    for (std::int64_t e = 0; e < 3; ++e) {
      learner.fit(blobs(e, {e, e + 1}), {.epochs = 2, .batch_size = 8});
    }
    if constexpr (sizeof...(strategy) > 0) CHECK(learner.template strategy<Lwf>().teacher.empty());
    return weights_of(net);
  };
  auto const naive = train();
  CHECK(train(Lwf{.strength = 0}).equal(naive));
  CHECK(train(Lwf{.strength = 0, .weighting = Lwf::Weighting::one_over_t}).equal(naive));
  CHECK(train(Lwf{.strengths = {0, 0, 0}}).equal(naive));
}

TEST_CASE("the first experience is naive bit for bit, whatever the weighting") {
  for (auto const weighting :
       {Lwf::Weighting::fixed, Lwf::Weighting::one_over_t, Lwf::Weighting::count}) {
    auto a = network(), b = network();
    Learner naive{a, Sgd{.lr = 0.1}};
    Learner learner{b, Sgd{.lr = 0.1},
                    Lwf{.weighting = weighting, .task_weight = Lwf::TaskWeight::one_over_t}};
    naive.fit(blobs(0, {0, 1}), {.batch_size = 8});
    learner.fit(blobs(0, {0, 1}), {.batch_size = 8});
    CHECK(weights_of(a).equal(weights_of(b)));
  }
}

TEST_CASE("the divergence by hand: teacher (2 ln 3, 0), student (0, 0), T = 2") {
  auto const old = torch::tensor({{2 * std::log(3.0), 0.0}}, float64);
  auto z = torch::zeros({1, 2}, float64).requires_grad_();
  auto const value = Lwf{}.divergence(z, old);
  CHECK(value.item<double>() == doctest::Approx(0.130812).epsilon(1e-5));
  auto const gradient = torch::autograd::grad({value * 4}, {z})[0];
  CHECK(gradient.allclose(torch::tensor({{-0.5, 0.5}}, float64), 1e-9, 1e-12));
  // Columns that the teacher was not taught do not count, wherever they lie.
  auto const wide = torch::tensor({{7.0, 2 * std::log(3.0), -5.0, 0.0}}, float64);
  CHECK(Lwf{}
            .divergence(torch::tensor({{0.0, 1.0, 9.0, 1.0}}, float64), wide, {1, 3})
            .item<double>() == doctest::Approx(0.130812).epsilon(1e-5));
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
  auto const past = blobs(0, {0, 1}, 40), now = blobs(1, {2, 3}, 40);
  auto const record = [&](Lwf lwf, std::int64_t shards = 1) {
    Learner learner{network(4), Sgd{.lr = 0}, lwf};
    learner.fit(past, {.batch_size = 10});
    Recorder seen;
    learner.fit(now, {.batch_size = 40, .shards = shards, .shuffle = false}, seen);
    return seen;
  };
  auto const plain = record({});
  CHECK(std::abs(plain.penalty.at(0)) < 1e-12);
  Learner naive{network(4), Sgd{.lr = 0}};
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

TEST_CASE("weightings and schedules scale the two terms as published") {
  // The student stumbles by the same step in every run, so the divergence is the same in all.
  auto const run = [](Lwf lwf, std::int64_t index) {
    Learner learner{network(), Sgd{.lr = 0}, lwf, Stumbles{}};
    learner.fit(blobs(0, {0, 1}), {.batch_size = 24});
    auto now = blobs(1, {2, 3});
    now.index = index;
    Recorder seen;
    learner.fit(now, {.batch_size = 24, .shuffle = false}, seen);
    REQUIRE(seen.penalty.size() == 1);
    return seen;
  };
  auto const plain = run({}, 1);
  auto const check = [&](Lwf const& lwf, std::int64_t index, double ce, double kd) {
    auto const seen = run(lwf, index);
    CHECK(seen.loss[0] == doctest::Approx(ce * plain.loss[0]).epsilon(1e-12));
    CHECK(seen.penalty[0] == doctest::Approx(kd * plain.penalty[0]).epsilon(1e-12));
  };
  CHECK(plain.penalty[0] > 1e-3);
  check({.strength = 3}, 1, 1, 3);
  check({.t_squared = false}, 1, 1, 0.25);
  check({.weighting = Lwf::Weighting::one_over_t}, 1, 0.5, 0.5);
  check({.weighting = Lwf::Weighting::one_over_t}, 3, 0.25, 0.75);
  check({.weighting = Lwf::Weighting::count}, 3, 1, 3);
  // CE / t + a_e T^2 KL with a_e = 0, .5, 1.333, 2.25, 3.2; the last goes on.
  Lwf schedule{.task_weight = Lwf::TaskWeight::one_over_t, .strengths = {0, .5, 1.333, 2.25, 3.2}};
  check(schedule, 2, 1.0 / 3, 1.333);
  check(schedule, 4, 0.2, 3.2);
  check(schedule, 9, 0.1, 3.2);
}

TEST_CASE("a growing head is compared in the columns that the teacher was taught") {
  nn::Sequential net(nn::Linear(4, 8), nn::Tanh());
  net->push_back(GrowingHead(8, 2, Seed{4}));
  filled(net);
  Learner learner{net, Sgd{.lr = 0}, Lwf{.strength = 0.7, .temperature = 3}, Stumbles{}};
  learner.fit(blobs(0, {0, 1}), {.batch_size = 24});
  auto const now = blobs(1, {2, 3, 4});
  auto const x = now.train.read(torch::arange(24)).stored;
  auto const old = net->forward(x).detach();
  CHECK(old.size(1) == 2);
  Recorder seen;
  learner.fit(now, {.batch_size = 24, .shuffle = false}, seen);
  auto const z = net->forward(x).detach();
  CHECK(z.size(1) == 5);
  CHECK(seen.penalty.at(0) ==
        doctest::Approx(0.7 * 9 * kl(old, z.narrow(1, 0, 2), 3)).epsilon(1e-9));
}

TEST_CASE("distillation over all classes seen, or over all outputs, by hand") {
  for (auto const over : {Lwf::Over::taught, Lwf::Over::seen, Lwf::Over::all}) {
    auto net = filled(nn::Sequential(nn::Linear(4, 8), nn::Tanh(), nn::Linear(8, 7)));
    Lwf lwf{.temperature = 2};
    lwf.classes = over;
    Learner learner{net, Sgd{.lr = 0}, lwf, Stumbles{}};
    learner.fit(blobs(0, {0, 4}), {.batch_size = 24});
    auto const now = blobs(1, {1, 5});
    auto const x = now.train.read(torch::arange(24)).stored;
    auto const old = net->forward(x).detach();
    Recorder recorded;
    learner.fit(now, {.batch_size = 24, .shuffle = false}, recorded);
    auto const z = net->forward(x).detach();
    auto const taught = integers({0, 4}), seen = integers({0, 1, 4, 5}), every = torch::arange(7);
    auto const& of_teacher = over == Lwf::Over::all ? every : taught;
    auto const& of_student = over == Lwf::Over::all    ? every
                             : over == Lwf::Over::seen ? seen
                                                       : taught;
    auto const target = torch::softmax(old.index_select(1, of_teacher) / 2, 1);
    // log softmax over the student's classes, of those that the teacher knows
    auto const norm = torch::logsumexp(z.index_select(1, of_student) / 2, 1, true);
    auto const student = z.index_select(1, of_teacher) / 2 - norm;
    auto const expected = 4 * (target * (target.log() - student)).sum(1).mean().item<double>();
    CHECK(recorded.penalty.at(0) == doctest::Approx(expected).epsilon(1e-9));
  }
}

TEST_CASE("the teacher answers in eval mode with its own statistics, and all modes come back") {
  auto net = filled(
      nn::Sequential(nn::Linear(4, 8), nn::BatchNorm1d(8), nn::Dropout(0.5), nn::Linear(8, 3)));
  Learner learner{net, Sgd{.lr = 0.1}, Lwf{}};
  learner.fit(blobs(0, {0, 1}), {.batch_size = 8});
  auto const now = blobs(1, {0, 1});
  auto const x = now.train.read(torch::arange(24)).stored;
  net->eval();
  auto const old = net->forward(x).detach().clone();
  net->train();
  struct Looks {
    Lwf* lwf = nullptr;
    nn::Sequential net;
    Tensor x, old;
    Tensor logits{};
    void step(Context const& c) {
      CHECK(net->is_training());
      ModeScope mode(*net, false);
      torch::NoGradGuard no_grad;
      {
        WithWeights teacher(c, lwf->teacher);
        CHECK(net->forward(x).equal(old));
      }
      CHECK_FALSE(net->forward(x).equal(old));
      for (auto const& p : net->parameters()) {
        CHECK(p.data_ptr() != lwf->teacher.weights.data_ptr());
      }
    }
  } looks{&learner.strategy<Lwf>(), net, x, old};
  struct Values {
    std::vector<double> expected, seen;
    Lwf* lwf;
    Tensor old;
    void step(Context const& c) {
      auto const rows = c.fresh.id;
      auto const t = old.index_select(0, rows).narrow(1, 0, 2);
      expected.push_back(4 * kl(t, c.logits.detach().narrow(1, 0, 2), 2));
      seen.push_back(c.penalties.at(0).second.item<double>());
    }
  } values{{}, {}, looks.lwf, old};
  learner.fit(now, {.batch_size = 8}, looks, values);
  REQUIRE(values.seen.size() == 3);
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK(values.seen[i] == doctest::Approx(values.expected[i]).epsilon(1e-9));
  }
}

TEST_CASE("the teacher does not change while the student trains, and shares no storage with it") {
  auto net = network(4);
  Learner learner{net, Sgd{.lr = 0.1}, Lwf{}};
  learner.fit(blobs(0, {0, 1}, 40), {.batch_size = 10});
  auto const before = weights_of(net);
  std::vector<Tensor> seen;
  Watches watches{
      [&](Context const&) { seen.push_back(learner.strategy<Lwf>().teacher.weights.clone()); }};
  learner.fit(blobs(1, {2, 3}, 40), {.batch_size = 10}, watches);
  REQUIRE(seen.size() == 4);
  CHECK(seen.front().equal(seen.back()));
  CHECK_FALSE(weights_of(net).equal(before));
}

TEST_CASE("with replay the mean is over every row of the step, or over the fresh ones") {
  for (bool const all : {true, false}) {
    for (std::int64_t const shards : {1, 3}) {
      auto net = network();
      Learner learner{net, Sgd{.lr = 0}, Rehearses{Reservoir{.capacity = 24}},
                      Lwf{.rows = all ? Lwf::RowsUsed::all : Lwf::RowsUsed::fresh}, Stumbles{}};
      learner.fit(blobs(0, {0, 1}), {.batch_size = 8});
      torch::NoGradGuard no_grad;
      auto const now = blobs(1, {2, 3}, 12);
      auto x = now.train.read(torch::arange(12)).stored;
      if (all) {
        auto const drawn = learner.strategy<Rehearses>().memory.draw(
            12, learner.context().seed.generator("draw.rehearses", 1, 0));
        x = torch::cat({x, drawn.stored});
      }
      auto const old = net->forward(x).narrow(1, 0, 2);
      Recorder seen;
      torch::AutoGradMode grad(true);
      learner.fit(now, {.batch_size = 12, .shards = shards, .shuffle = false}, seen);
      auto const z = net->forward(x).detach().narrow(1, 0, 2);
      CHECK(seen.penalty.at(0) == doctest::Approx(4 * kl(old, z, 2)).epsilon(1e-9));
    }
  }
}

TEST_CASE("with a head per task, the present inputs are distilled on every old head") {
  auto const run = [](auto net, std::int64_t shards, Tensor* expected = nullptr) {
    Learner learner{net, Sgd{.lr = 0}, Lwf{}, Stumbles{}};
    learner.seed({6});
    learner.fit(blobs(0, {0, 1}, 24, 0), {.batch_size = 24});
    auto second = blobs(1, {0, 1}, 24, 1);
    second.index = 0;  // the student stumbles only once
    learner.fit(second, {.batch_size = 24});
    auto const now = blobs(2, {0, 1}, 24, 2);
    Recorder seen;
    learner.fit(now, {.batch_size = 24, .shards = shards, .shuffle = false}, seen);
    if (expected == nullptr) return seen;
    auto const x = now.train.read(torch::arange(24)).stored;
    auto const& c = learner.context();
    torch::NoGradGuard no_grad;
    *expected = torch::zeros({}, float64);
    for (std::int64_t task : {0, 1}) {
      auto const tasks = torch::full({24}, task);
      BufferScope buffers(*net);
      auto const z = c.forward(x, tasks);
      WithWeights teacher(c, learner.template strategy<Lwf>().teacher);
      ModeScope mode(*net, false);
      *expected += 4 * kl(c.forward(x, tasks), z, 2);
    }
    return seen;
  };
  Tensor expected;
  auto const one = run(two_headed(), 1, &expected);
  REQUIRE(one.penalty.size() == 1);
  CHECK(one.penalty[0] == doctest::Approx(expected.item<double>()).epsilon(1e-9));
  // A network that hides its features takes a pass per head and comes to the same, noise included.
  CHECK(run(Opaque(two_headed()), 1).penalty[0] == doctest::Approx(one.penalty[0]).epsilon(1e-12));
  CHECK(run(Opaque(two_headed(true)), 2).penalty[0] ==
        doctest::Approx(run(two_headed(true), 2).penalty[0]).epsilon(1e-12));
}

TEST_CASE("a model that does more around its head than it tells takes a pass per head") {
  auto const run = [](auto net) {
    Learner learner{net, Sgd{.lr = 0.1}, Lwf{}};
    for (std::int64_t e = 0; e < 3; ++e) learner.fit(blobs(e, {0, 1}, 24, e), {.batch_size = 8});
    return weights_of(net);
  };
  auto const activated = [] { return filled(nn::Sequential(nn::Linear(4, 8), ActivatedHead())); };
  auto const told = run(activated()), opaque = run(Opaque(activated()));
  CHECK(told.equal(opaque));
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

TEST_CASE("an old head is compared in the labels that its task had when the teacher was taken") {
  auto net = filled(nn::Sequential(nn::Linear(4, 8), nn::Tanh(), MultiHead(8, 3, 1, Seed{2})));
  Learner learner{net, Sgd{.lr = 0}, Lwf{}, Stumbles{}};
  learner.fit(blobs(0, {0, 1}, 24, 0), {.batch_size = 24});
  auto const now = blobs(1, {1, 2}, 24, 0);  // the task comes back with one label more
  auto const x = now.train.read(torch::arange(24)).stored;
  auto const task = torch::zeros({24}, torch::kInt64);
  auto const old = learner.context().forward(x, task).detach();
  Recorder seen;
  learner.fit(now, {.batch_size = 24, .shuffle = false}, seen);
  auto const z = learner.context().forward(x, task).detach();
  CHECK(seen.penalty.at(0) ==
        doctest::Approx(4 * kl(old.narrow(1, 0, 2), z.narrow(1, 0, 2), 2)).epsilon(1e-9));
}

TEST_CASE("at the teacher's own weights the penalty and its gradient are 0") {
  struct First {
    double penalty = 0;
    std::vector<Tensor> gradients{};
    void step(Context const& c) {
      if (c.step > 1) return;  // counted after the step
      for (auto const& p : c.penalties) penalty += p.second.item<double>();
      for (auto const& p : c.arena.parameters()) {
        auto const& g = p.grad();
        gradients.push_back(g.defined() ? g.clone() : torch::zeros_like(p));
      }
    }
  };
  for (auto const type : {torch::kFloat32, torch::kFloat64}) {
    for (bool const heads : {false, true}) {
      auto const run = [&](double strength) {
        nn::Sequential net(nn::Linear(4, 8), nn::Tanh());
        if (heads) {
          net->push_back(MultiHead(8, 2, 2, Seed{2}));
        } else {
          net->push_back(nn::Linear(8, 4));
        }
        filled(net)->to(type);
        Learner learner{net, Sgd{.lr = 0.1}, Lwf{.strength = strength}};
        learner.fit(heads ? blobs(0, {0, 1}, 24, 0) : blobs(0, {0, 1}), {.batch_size = 8});
        First first;
        learner.fit(heads ? blobs(1, {0, 1}, 24, 1) : blobs(1, {2, 3}), {.batch_size = 8}, first);
        return first;
      };
      auto const naive = run(0), distilled = run(0.5);
      CHECK(std::abs(distilled.penalty) <= 1e-7);
      REQUIRE(naive.gradients.size() == distilled.gradients.size());
      for (std::size_t i = 0; i < naive.gradients.size(); ++i) {
        auto const gap = (naive.gradients[i] - distilled.gradients[i]).abs().max();
        CHECK(gap.template item<double>() <= 1e-7);
      }
    }
  }
}

TEST_CASE("a run stopped in an experience goes on with the same teacher and the same old heads") {
  auto const path = std::filesystem::temp_directory_path() / "pawl_lwf_test.safetensors";
  auto const build = [](auto const& net) {
    return Learner{net, Sgd{.lr = 0.1, .momentum = 0.9}, Lwf{.strength = 2}};
  };
  auto const fit = [](auto& learner, std::int64_t e, auto&&... observers) {
    learner.fit(blobs(e, {0, 1}, 24, e), {.epochs = 2, .batch_size = 8}, observers...);
  };
  auto whole_net = two_headed(true), stopped_net = two_headed(true), resumed_net = two_headed(true);
  auto whole = build(whole_net), stopped = build(stopped_net), resumed = build(resumed_net);
  for (std::int64_t e = 0; e < 3; ++e) fit(whole, e);
  struct Power {
    decltype(stopped)& learner;
    std::filesystem::path path;
    void step(Context const& c) const {
      if (c.step != 2) return;
      learner.save(path);
      throw std::runtime_error("power cut");
    }
  };
  for (std::int64_t e = 0; e < 2; ++e) fit(stopped, e);
  CHECK_THROWS_AS(fit(stopped, 2, Power{stopped, path}), std::runtime_error);
  resumed.load(path);
  std::filesystem::remove(path);
  CHECK(resumed.strategy<Lwf>().known_tasks == stopped.strategy<Lwf>().known_tasks);
  fit(resumed, 2);
  CHECK(weights_of(resumed_net).equal(weights_of(whole_net)));
}

TEST_CASE("distilling on old heads leaves BatchNorm, generators and the supervised loss alone") {
  auto const train = [](auto... strategy) {
    auto net = two_headed(true);
    auto const before = at::detail::getDefaultCPUGenerator().get_state().clone();
    Learner learner{net, Sgd{.lr = 0}, strategy...};
    Recorder seen;
    for (std::int64_t e = 0; e < 3; ++e) {
      learner.fit(blobs(e, {0, 1}, 24, e), {.batch_size = 8}, seen);
    }
    CHECK(at::detail::getDefaultCPUGenerator().get_state().equal(before));
    std::vector<Tensor> state;
    for (auto const& buffer : net->buffers()) state.push_back(buffer.to(torch::kFloat64).flatten());
    return std::pair(seen.loss, torch::cat(state));
  };
  auto const naive = train();
  auto const distilled = train(Lwf{});
  CHECK(distilled.second.equal(naive.second));
  CHECK(distilled.first == naive.first);
}

TEST_CASE("a step of distillation cut into three shards is the whole step") {
  for (bool const heads : {false, true}) {
    auto const run = [&](std::int64_t shards) {
      nn::Sequential net(nn::Linear(4, 8), nn::Tanh());
      if (heads) {
        net->push_back(MultiHead(8, 2, 2, Seed{2}));
      } else {
        net->push_back(nn::Linear(8, 4));
      }
      filled(net);
      Learner learner{net, Sgd{.lr = 0.1}, Lwf{.weighting = Lwf::Weighting::one_over_t},
                      Stumbles{}};
      learner.fit(heads ? blobs(0, {0, 1}, 24, 0) : blobs(0, {0, 1}), {.batch_size = 24});
      learner.fit(heads ? blobs(1, {0, 1}, 23, 1) : blobs(1, {2, 3}, 23),
                  {.batch_size = 23, .shards = shards});
      return weights_of(net);
    };
    CHECK((run(1) - run(3)).abs().max().item<double>() < 1e-12);
  }
}

TEST_CASE("the options of distillation are bounded") {
  auto const fit = [](Lwf lwf) { Learner learner{network(), Sgd{}, std::move(lwf)}; };
  CHECK_THROWS_WITH_AS(fit({.strength = -1}), doctest::Contains("lwf: option 'strength'"), Error);
  CHECK_THROWS_WITH_AS(fit({.temperature = 0}), doctest::Contains("temperature"), Error);
  Lwf lwf;
  set_option(lwf, "strengths", "0,0.5,1.333");
  CHECK(lwf.strengths == std::vector<double>{0, 0.5, 1.333});
  set_option(lwf, "task_weight", "one_over_t");
  CHECK(lwf.task_weight == Lwf::TaskWeight::one_over_t);
}
