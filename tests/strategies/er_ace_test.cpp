// ER-ACE: which classes compete for which rows.

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "../core/named.hpp"
#include "by_hand.hpp"
#include "toys.hpp"

#include <torch/nn/modules/activation.h>
#include <pawl/core/any_learner.hpp>
#include <pawl/heads/growing.hpp>
#include <pawl/memory/rehearsal.hpp>
#include <pawl/memory/reservoir.hpp>
#include <pawl/strategies/er_ace.hpp>

#include <doctest/doctest.h>  // after LibTorch, whose own CHECK must not win

using namespace pawl;
using namespace by_hand;
using namespace toys;

namespace {

/// A memory that always holds the rows it was made with.
struct Given {
  Reservoir held{.capacity = 12};
  void insert(Rows const&, Generator) {}
  Rows draw(std::int64_t n, Generator) { return held.slots.draw(n, Generator(7)); }
  bool empty() const { return false; }
};

/// Half the mean over fresh rows, and half that over replayed ones.
struct Halves {
  AnyMemory memory;
  Rows drawn{};
  Batch extend(Context& c, Batch b) {
    if (c.shard == 0) drawn = draw_rows(c, memory, 0, "draw.halves");
    b.parts.front().weight = 0.5 / static_cast<double>(c.fresh.size());
    append_share(c, b, this, drawn, 0.5 / static_cast<double>(drawn.size()));
    return b;
  }
};

}  // namespace

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
  Given given;
  given.held.insert(blobs(4, {0, 1, 2}, 12).train.read(torch::arange(12)), Generator(1));
  CHECK(distance(run(ErAce{given}, 0.05), run(Halves{given}, 0.1)) < 1e-12);
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

// ---- beside other strategies ----

TEST_CASE("old head rows move less under the asymmetric loss when new classes arrive") {
  auto const movement = [](AnyStrategy const& strategy) {
    auto net = network(4);
    auto learner = learner_of(net, Sgd{.lr = 0.1}, {strategy});
    learner.fit(blobs(0, {0, 1}, 48), {.epochs = 10, .batch_size = 8});
    auto const before = net->parameters()[2].detach().narrow(0, 0, 2).clone();
    learner.fit(blobs(1, {2, 3}, 48), {.iterations = 2, .batch_size = 8});
    return (net->parameters()[2].detach().narrow(0, 0, 2) - before).norm().item<double>();
  };
  CHECK(movement(ErAce{}) < 0.5 * movement(named("replay")));
}

TEST_CASE("rows of another strategy count in the asymmetric loss, with their own weights") {
  auto const run = [](std::vector<AnyStrategy> const& strategies) {
    auto net = network();
    auto learner = learner_of(net, Sgd{.lr = 0.1}, strategies);
    learner.fit(blobs(0, {0, 1}), {.batch_size = 8});
    return weights_of(net);
  };
  auto const alone = run({ErAce{}});
  CHECK_FALSE(run({named("replay"), ErAce{}}).equal(alone));
  auto const der = named("der", {{"alpha", "1e-300"}});
  CHECK(distance(run({der, ErAce{}}), alone) < 1e-12);
}

TEST_CASE("rows of a growing head that nobody has met do not compete, whatever is said of unseen") {
  for (auto const keep : {true, false}) {
    nn::Sequential net(nn::Linear(4, 8), nn::Tanh(), GrowingHead(8));
    net->to(torch::kFloat64);
    Learner learner{net, Sgd{.lr = 0.1}, ErAce{.keep_unseen = keep}};
    Recorder seen;
    auto one = blobs(0, {0}, 6);
    one.classes = {0, 1, 2};
    learner.fit(one, {.batch_size = 6}, seen);
    CHECK(net->parameters().back().size(0) == 3);
    CHECK(seen.loss.front() == 0);
  }
}
