// The nearest class mean: means of features, and whose they are.

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <vector>

#include "by_hand.hpp"
#include "toys.hpp"

#include <torch/nn/modules/activation.h>
#include <pawl/core/learner.hpp>
#include <pawl/heads/nearest_mean.hpp>
#include <pawl/memory/reservoir.hpp>
#include <pawl/strategies/ncm.hpp>

#include <doctest/doctest.h>  // after LibTorch, whose own CHECK must not win

using namespace pawl;
using namespace by_hand;
using namespace toys;

// ---- the means ----

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

// ---- in a learner ----

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

TEST_CASE("class means of a memory follow the weights") {
  Ncm ncm{Reservoir{.capacity = 100}};
  ncm.source = Ncm::Source::memory;
  auto net = network(4);
  Learner learner{net, Sgd{.lr = 0.2}, ncm};
  learner.fit(blobs(0, {0, 1}, 40), {.batch_size = 10});
  auto const x = blobs(0, {0, 1}, 40).train.read(torch::arange(40)).stored;
  auto const first = learner.scores(x);
  CHECK(learner.scores(x).equal(first));
  learner.fit(blobs(1, {2, 3}, 40), {.batch_size = 10});
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

TEST_CASE("a user's memory that tells nothing of its rows serves for class means") {
  auto const run = [](AnyMemory const& memory) {
    Learner learner{network(), Sgd{.lr = 0.1}, with(Ncm{memory}, {{"source", "memory"}})};
    for (std::int64_t e = 0; e < 2; ++e) {
      learner.fit(blobs(e, {2 * e, 2 * e + 1}), {.batch_size = 8});
    }
    return learner.scores(blobs(0, {0, 1}).train.read(torch::arange(24)).stored);
  };
  CHECK(distance(run(Hoard{}), run(Reservoir{.capacity = 100})) < 1e-12);
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
