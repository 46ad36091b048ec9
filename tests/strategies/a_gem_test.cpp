// A-GEM: which gradient is the reference, and what it does to that of the step.

#include <cmath>
#include <cstdint>
#include <vector>

#include "../core/views.hpp"
#include "by_hand.hpp"
#include "toys.hpp"

#include <torch/nn/modules/activation.h>
#include <pawl/core/learner.hpp>
#include <pawl/memory/reservoir.hpp>
#include <pawl/memory/ring.hpp>
#include <pawl/strategies/a_gem.hpp>

#include <doctest/doctest.h>  // after LibTorch, whose own CHECK must not win

using namespace pawl;
using namespace by_hand;
using namespace toys;

namespace {

/// Keeps the gradient as it stands at its place in the list.
struct Before {
  Tensor gradient{};
  void edit_gradient(Context& c) { gradient = c.gradient().clone(); }
};

}  // namespace

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

TEST_CASE("A-GEM removes what points uphill on the memory, and touches nothing else") {
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
  auto net = network(4);
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
    learner.fit(blobs(e, {e % 3, (e + 1) % 3}, 40), {.epochs = 12, .batch_size = 10}, checks);
  }
  CHECK(checks.projected > 0);
  CHECK(checks.left > 0);
}

TEST_CASE("the reference gradient is that of past experiences alone, under their own heads") {
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
  auto net = headed();
  Learner learner{net, Sgd{.lr = 0.1, .momentum = 0.9, .weight_decay = 0.1}, Before{}, AGem{}};
  learner.fit(blobs(0, {0, 1}, 24, 0), {.epochs = 3, .batch_size = 8});
  auto const old_head = [&] { return net->named_parameters()["2.weight0"].detach().clone(); };
  auto head = old_head();
  std::int64_t projected = 0, left = 0;
  Watches steps{[&](Context const& c) {
    auto const& before = learner.strategy<Before>().gradient;
    auto const touched = !c.gradient().equal(before);
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

TEST_CASE("A-GEM with a memory that keeps nothing is naive training bit for bit") {
  auto const naive = trained(Learner{network(), usual});
  CHECK(trained(Learner{network(), usual, AGem{Rejects{}}}).equal(naive));
}

TEST_CASE("the reference gradient of A-GEM is that of varied rows") {
  auto const experiences = views::images();
  Learner learner{views::network(), Sgd{.lr = 0.01},
                  AGem{.memory = Reservoir{.capacity = 20}, .batch = 5}};
  learner.fit(experiences[0], views::both);
  struct Drawn {
    Rows const& rows;
    Experience const& past;
    std::int64_t varied = 0, shown = 0;
    void step(Context const&) {
      for (std::int64_t i = 0; i < rows.size(); ++i) {
        auto const stored = past.train.read(rows.id.narrow(0, i, 1)).stored[0];
        varied += !rows.stored[i].equal(stored), shown += views::is_view_of(stored, rows.stored[i]);
      }
    }
  } drawn{learner.strategy<AGem>().drawn, experiences[0]};
  learner.fit(experiences[1], views::both, drawn);
  CHECK(drawn.shown == 25);
  CHECK(drawn.varied > 20);
}
