// Training images are shifted and mirrored when they are shown, and nowhere else.

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <numbers>
#include <string>
#include <utility>
#include <vector>

#include "messages.hpp"
#include "named.hpp"
#include "views.hpp"

#include <pawl/core/any_learner.hpp>
#include <pawl/metrics/evaluate.hpp>

#include <doctest/doctest.h>  // after LibTorch, whose own CHECK must not win

using namespace pawl;
using namespace views;

TEST_CASE("a shifted and mirrored image, by hand") {
  auto const image = torch::tensor({1, 2, 3, 4, 5, 6}, torch::kUInt8).view({1, 1, 2, 3});
  struct Case {
    std::vector<std::int64_t> view;
    std::vector<std::int64_t> expected;
  };
  std::vector<Case> const cases{
      {{0, 0, 0}, {1, 2, 3, 4, 5, 6}},  {{1, 0, 0}, {4, 5, 6, 0, 0, 0}},
      {{0, 1, 0}, {2, 3, 0, 5, 6, 0}},  {{-1, -1, 0}, {0, 0, 0, 0, 1, 2}},
      {{0, 0, 1}, {3, 2, 1, 6, 5, 4}},  {{0, 1, 1}, {0, 3, 2, 0, 6, 5}},
      {{1, -1, 1}, {5, 4, 0, 0, 0, 0}}, {{2, 0, 0}, {0, 0, 0, 0, 0, 0}},
      {{0, -3, 1}, {0, 0, 0, 0, 0, 0}}, {{0, 7, 0}, {0, 0, 0, 0, 0, 0}},
  };
  for (auto const& each : cases) {
    auto const wanted = torch::tensor(each.expected).view({1, 1, 2, 3});
    auto const views = torch::tensor(each.view).view({1, 3});
    INFO("view: ", c10::str(c10::IntArrayRef(each.view)));
    CHECK(augmented(image, views).to(torch::kInt64).equal(wanted));
    CHECK(augmented(image.to(torch::kFloat32), views).to(torch::kInt64).equal(wanted));
  }
}

TEST_CASE("bytes on the host are varied as images of any type on any device are") {
  Augment const augment{.crop = 4, .flip = true};
  for (auto const& shape : std::vector<std::vector<std::int64_t>>{
           {40, 3, 9, 6}, {40, 1, 2, 11}, {1, 5, 3, 3}, {7, 1, 1, 1}}) {
    auto const x = pixels(shape, 2);
    auto const views = augment.draw(shape[0], Seed{9}.generator("views"));
    auto const bytes = augmented(x, views);
    CHECK(bytes.equal(augmented(x.to(torch::kFloat32), views).to(torch::kUInt8)));
    auto const turned = x.transpose(2, 3).contiguous().transpose(2, 3);
    CHECK(bytes.equal(augmented(turned, views)));
  }
}

TEST_CASE("views are drawn uniformly, and by the generator alone") {
  Augment const augment{.crop = 2, .flip = true};
  auto const generator = Seed{1}.generator("views");
  auto const views = augment.draw(5000, generator);
  CHECK(views.equal(augment.draw(5000, generator)));
  CHECK_FALSE(views.equal(augment.draw(5000, Seed{2}.generator("views"))));
  for (std::int64_t column = 0; column < 2; ++column) {
    for (std::int64_t shift = -2; shift <= 2; ++shift) {
      auto const share = views.select(1, column).eq(shift).to(torch::kFloat64).mean();
      CHECK(std::abs(share.item<double>() - 0.2) < 0.03);  // 5 standard deviations
    }
  }
  CHECK(std::abs(views.select(1, 2).to(torch::kFloat64).mean().item<double>() - 0.5) < 0.036);
  CHECK(Augment{.flip = true}.draw(50, generator).narrow(1, 0, 2).eq(0).all().item<bool>());
  CHECK(Augment{.crop = 2}.draw(50, generator).select(1, 2).eq(0).all().item<bool>());
}

TEST_CASE("replayed rows are varied by every strategy that draws some") {
  auto const experiences = images();
  for (std::string const name : {"replay", "er_ace", "der", "derpp"}) {
    INFO("strategy: ", name);
    auto learner = learner_of(network(), Sgd{.lr = 0.01}, {named(name, {{"capacity", "20"}})});
    struct Replayed {
      std::vector<Experience> const& experiences;
      std::int64_t rows = 0, varied = 0, views = 0;
      void step(Context const& c) {
        for (std::size_t p = 1; p < c.batch.parts.size(); ++p) {
          auto const& part = c.batch.parts[p];
          auto const inputs = (c.batch.x * 255).round().to(torch::kUInt8);
          for (std::int64_t i = 0; i < part.size; ++i) {
            auto const label = part.rows.labels[i].item<std::int64_t>();
            auto const& e = experiences[static_cast<std::size_t>(label / 2)];
            auto const stored = e.train.read(part.rows.id.narrow(0, i, 1)).stored[0];
            auto const input = inputs[part.begin + i];
            ++rows, varied += !input.equal(stored), views += is_view_of(stored, input);
          }
        }
      }
    } replayed{experiences};
    for (auto const& experience : experiences) learner.fit(experience, both, replayed);
    CHECK(replayed.rows > 40);
    CHECK(replayed.views == replayed.rows);
    CHECK(static_cast<double>(replayed.varied) > 0.9 * static_cast<double>(replayed.rows));
  }
}

TEST_CASE("views belong to rows: neither shards nor another strategy change them") {
  auto const experiences = images();
  auto const weights = [&](AnyStrategy const& strategy, Training training, Shown& shown) {
    auto learner = learner_of(network(), Sgd{.lr = 0.05}, {strategy});
    for (auto const& experience : experiences) learner.fit(experience, training, shown);
    return learner.context().weights().clone();
  };
  Shown whole, cut, naive;
  auto sharded = both;
  sharded.shards = 3;
  auto const replay = named("replay", {{"capacity", "20"}, {"batch", "6"}});
  auto const one = weights(replay, both, whole), three = weights(replay, sharded, cut);
  CHECK((one - three).abs().max().item<double>() < 1e-12);
  weights(named("replay", {{"capacity", "0"}}), both, naive);
  for (std::size_t i = 0; i < naive.inputs.size(); ++i) {
    CHECK(naive.inputs[i].equal(whole.inputs[i].narrow(0, 0, 6)));
  }
}

TEST_CASE("draws one pass over one set of views: DER in one pass and in two is the same") {
  auto const experiences = images();
  auto const weights = [&](std::string const& forward) {
    auto const derpp = named("derpp", {{"capacity", "20"}, {"forward", forward}});
    auto learner = learner_of(network(), Sgd{.lr = 0.05}, {derpp});
    for (auto const& experience : experiences) learner.fit(experience, both);
    return learner.context().weights().clone();
  };
  auto const joint = weights("joint"), apart = weights("separate");
  CHECK((joint - apart).abs().max().item<double>() < 1e-12);
}

TEST_CASE("a run with varied images continues bit for bit") {
  auto const experiences = images();
  auto const folder = std::filesystem::temp_directory_path() / "pawl_augment_test";
  std::filesystem::create_directories(folder);
  auto const path = (folder / "middle.safetensors").string();
  auto const make = [] {
    return learner_of(network(), Sgd{.lr = 0.05, .momentum = 0.9},
                      {named("replay", {{"capacity", "20"}})});
  };
  auto learner = make(), later = make();
  struct Saves {
    AnyLearner& saved;
    std::string path;
    void step(Context const& c) {
      if (c.step == 2) saved.save(path);
    }
  };
  learner.fit(experiences[0], both);
  learner.fit(experiences[1], both, Saves{learner, path});
  later.load(path);
  later.fit(experiences[1], both);
  CHECK(learner.context().weights().equal(later.context().weights()));
}

TEST_CASE("tests see images as they are") {
  auto const experiences = images();
  Stream const stream{"images", Scenario::classes, 4, experiences};
  auto net = network();
  Learner learner{net, Sgd{.lr = 0.05}};
  learner.fit(experiences[0], both);
  auto const x = experiences[0].test.read(torch::arange(30)).stored.to(torch::kFloat64) / 255;
  torch::NoGradGuard no_grad;
  CHECK(learner.scores(x).allclose(net->forward(x), 1e-12, 1e-12));
  auto const right = learner.predict(x).eq(experiences[0].test.labels).to(torch::kFloat64).mean();
  CHECK(evaluate(learner, stream).accuracy[0] == doctest::Approx(right.item<double>()));
}

TEST_CASE("only images can be varied, and a mistake is told before anything changes") {
  auto const rows = make_experience(torch::rand({12, 4}), torch::arange(12) % 4);
  nn::Sequential net(nn::Linear(4, 4));
  Learner learner{net, Sgd{}};
  auto const before = learner.context().weights().clone();
  auto const message = message_of([&] { learner.fit(rows, both); });
  CHECK(contains(message, "only images [C, H, W] can be cropped and flipped"));
  CHECK(learner.context().weights().equal(before));
  CHECK(contains(message_of([&] { learner.fit(images()[0], {.augment = {.crop = -1}}); }),
                 "augment_crop"));
}

TEST_CASE("the learning rate along a cosine, and warmed up, by hand") {
  Training training{.epochs = 4, .lr_schedule = Schedule::cosine};
  std::vector<double> const cosine{1, (1 + std::sqrt(0.5)) / 2, 0.5, (1 - std::sqrt(0.5)) / 2};
  for (std::int64_t e = 0; e < 4; ++e) {
    CHECK(training.rate(e) == doctest::Approx(cosine[static_cast<std::size_t>(e)]));
  }
  training.lr_final = 0.2;
  CHECK(training.rate(0) == 1);
  CHECK(training.rate(2) == doctest::Approx(0.6));
  training = {.epochs = 6, .lr_schedule = Schedule::cosine, .lr_warmup = 2};
  CHECK(training.rate(0) == doctest::Approx(1.0 / 3));
  CHECK(training.rate(1) == doctest::Approx(2.0 / 3));
  CHECK(training.rate(2) == 1);
  CHECK(training.rate(4) == doctest::Approx(0.5));
  training = {.epochs = 2, .lr_schedule = Schedule::cosine, .lr_warmup = 3};
  CHECK(training.rate(1) == doctest::Approx(0.5));
  training = {.epochs = 6, .lr_milestones = {2, 4}, .lr_factor = 0.5, .lr_warmup = 1};
  std::vector<double> const steps{0.5, 1, 0.5, 0.5, 0.25, 0.25};
  for (std::int64_t e = 0; e < 6; ++e) {
    CHECK(training.rate(e) == doctest::Approx(steps[static_cast<std::size_t>(e)]));
  }
}

TEST_CASE("the optimizer gets the rate of the epoch, in every experience, and its own back") {
  auto const experiences = images();
  Learner learner{network(), Sgd{.lr = 0.1}};
  struct Rates {
    std::vector<double> seen;
    void step(Context const& c) {
      if (c.step % 5 == 0) seen.push_back(c.learning_rate());
    }
  } rates;
  Training const training{.epochs = 4, .batch_size = 6, .lr_schedule = Schedule::cosine};
  for (auto const& experience : experiences) learner.fit(experience, training, rates);
  REQUIRE(rates.seen.size() == 8);
  for (std::size_t i = 0; i < 8; ++i) {
    auto const share = (1 + std::cos(std::numbers::pi * static_cast<double>(i % 4) / 4)) / 2;
    CHECK(rates.seen[i] == doctest::Approx(0.1 * share));
  }
  CHECK(learner.optimizer().lr == 0.1);
  auto const message = message_of([&] {
    learner.fit(experiences[0],
                {.iterations = 9, .batch_size = 6, .lr_schedule = Schedule::cosine});
  });
  CHECK(contains(message, "lr_schedule = cosine runs over the epochs"));
}
