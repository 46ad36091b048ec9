#pragma once

// A toy stream, networks and checks for strategies that pull the weights to an anchor: EWC, MAS and
// SI.

#include <cstdint>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "../core/filled.hpp"

#include <torch/nn/modules/activation.h>
#include <pawl/core/learner.hpp>
#include <pawl/heads/growing.hpp>
#include <pawl/heads/multi_head.hpp>
#include <pawl/strategies/quadratic_anchor.hpp>

#include <doctest/doctest.h>  // after LibTorch, whose own CHECK must not win

namespace anchored {

using namespace pawl;

inline Tensor values(std::vector<double> const& v) { return torch::tensor(v, torch::kFloat64); }

inline Tensor draws(std::vector<std::int64_t> const& shape, std::int64_t key) {
  auto const x = torch::empty(shape, torch::kFloat64);
  fill_normal(x, 0, 1, Seed{21}.generator("test", key));
  return x;
}

inline nn::Sequential perceptron() {
  return filled(nn::Sequential(nn::Linear(6, 12), nn::Tanh(), nn::Linear(12, 2)));
}

/// Two classes apart along one axis, which is another one in every experience, with 6 axes.
inline Experience blobs(std::int64_t e) {
  auto const y = torch::arange(60) % 2;
  auto x = draws({60, 6}, e);
  x.select(1, e % 6).add_((y * 2 - 1).to(torch::kFloat64) * 3);
  return make_experience(x, y, {0, 1}, e);
}

inline double element(Tensor const& t, std::int64_t i) { return t[i].item<double>(); }
inline bool close(Tensor const& a, Tensor const& b, double tolerance = 1e-12) {
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

// ---- what holds for each of them ----

/// The penalty is 0 in experience 0 and positive after one step of experience 1.
template <class S>
void check_first_penalties(S strategy) {
  Learner learner{perceptron(), Sgd{.lr = .01}, strategy};
  Trace first, second;
  learner.fit(blobs(0), {.batch_size = 10}, first);
  learner.fit(blobs(1), {.batch_size = 10}, second);
  for (auto const value : first.values) CHECK(value == 0);
  CHECK(second.values.at(0) == 0);
  CHECK(second.values.at(1) > 0);
}

/// How far important weights move in the second experience.
template <class S>
double frozen(S strategy) {
  Learner learner{perceptron(), Sgd{.lr = .01}, strategy};
  learner.fit(blobs(0), {.epochs = 3, .batch_size = 10});
  auto const before = learner.context().weights().clone();
  auto const omega = learner.template strategy<S>().anchor.importance.clone();
  learner.fit(blobs(1), {.epochs = 20, .batch_size = 10});
  auto const moved = (learner.context().weights() - before).abs();
  return torch::where(omega > 1e-6, moved, torch::zeros_like(moved)).max().template item<double>();
}

/// Listed twice with half the strength is once with the whole.
template <class S>
void check_twice(S half, S whole) {
  auto const twice = trained(3, perceptron(), .02, half, half);
  CHECK(close(twice, trained(3, perceptron(), .02, whole), 1e-6));
  CHECK_FALSE(close(twice, trained(3, perceptron(), .02), 1e-3));
}

/// Rows that a head gains have no importance.
template <class S>
void check_gained_rows(S strategy) {
  auto net = filled(nn::Sequential(nn::Linear(6, 5), nn::Tanh(), GrowingHead(5)));
  Learner learner{net, Sgd{.lr = .05}, strategy};
  auto two = blobs(1);
  two.train.labels = two.train.labels + 2;
  two.classes = {2, 3};
  learner.fit(blobs(0), {.batch_size = 10});
  auto const& anchor = learner.template strategy<S>().anchor;
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
}

/// Heads of other tasks get no importance and are not moved.
template <class S>
void check_other_heads(S strategy) {
  nn::Sequential net(nn::Linear(6, 5), nn::Tanh(), MultiHead(5, 2, 2, Seed{1}));
  net->to(torch::kFloat64);
  Learner learner{net, Adam{.lr = .05}, strategy};
  auto one = blobs(0);
  one.task = 0;
  one.train.tasks = torch::zeros({60}, torch::kInt64);
  auto const start = learner.context().weights().clone();
  learner.fit(one, {.batch_size = 10});
  auto const& c = learner.context();
  auto const& omega = learner.template strategy<S>().anchor.importance;
  for (std::size_t i = 0; i < c.arena.layout().size(); ++i) {
    auto const other = c.arena.layout()[i].name.ends_with("1");
    auto const own = c.arena.parameter_view(omega, i);
    CHECK((own.max().template item<double>() == 0) == other);
    auto const still =
        c.arena.parameter_view(c.weights(), i).equal(c.arena.parameter_view(start, i));
    CHECK(still == other);
  }
}

/// The importance is that of the outputs that the loss sees.
template <class S>
void check_active_outputs(S strategy) {
  auto net = filled(nn::Sequential(nn::Linear(6, 5)));
  auto const e = blobs(0);
  for (auto const active : {Active::seen, Active::current, Active::batch, Active::all}) {
    Learner learner{net, Sgd{.lr = 0}, strategy};
    learner.fit(e, {.batch_size = 10, .active = active});
    auto const& omega = learner.template strategy<S>().anchor.importance;
    auto const rows = learner.context().arena.parameter_view(omega, 0).sum(1);
    CHECK(element(rows, 0) > 0);
    CHECK(element(rows, 1) > 0);
    CHECK((element(rows, 4) > 0) == (active == Active::all));
  }
}

/// `end` leaves buffers, gradients, modes and generators as found.
template <class S>
void check_end(S strategy) {
  auto net = filled(nn::Sequential(nn::Linear(6, 8), nn::BatchNorm1d(8), nn::Linear(8, 2)));
  Learner learner{net, Sgd{.lr = .01}};
  auto const e = blobs(0);
  learner.fit(e, {.batch_size = 10});
  auto& c = learner.context();
  c.experience = &e;
  auto const generator = at::detail::getDefaultCPUGenerator();
  auto const list = [&] {
    std::vector<Tensor> all{c.weights().clone(), generator.get_state()};
    for (auto const& b : net->buffers()) all.push_back(b.clone());
    for (auto const& p : net->parameters()) all.push_back(p.grad().clone());
    return all;
  };
  if constexpr (HasBegin<S>) strategy.begin(c, e);
  auto const before = list();
  strategy.end(c, e);
  auto const after = list();
  for (std::size_t i = 0; i < before.size(); ++i) CHECK(before[i].equal(after[i]));
  CHECK(net[1]->is_training());
}

/// Options have names of their own, and go round.
template <class S>
void check_options(S strategy) {
  std::set<std::string> names;
  Options options;
  strategy.describe(options);
  for (auto const& option : options.all()) {
    CHECK(names.insert(option.name).second);
    option.set(option.get());
  }
}

}  // namespace anchored
