#include "pawl/heads/cosine.hpp"
#include "pawl/heads/growing.hpp"
#include "pawl/heads/multi_head.hpp"

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "pawl/core/learner.hpp"

#include <torch/nn/modules/activation.h>

// after LibTorch, whose own CHECK must not win
#include <doctest/doctest.h>

namespace {

using pawl::Tensor;
namespace nn = torch::nn;

/// Values that need no generator of LibTorch.
Tensor values(std::vector<std::int64_t> const& shape, std::uint64_t key = 1) {
  auto x = torch::empty(shape);
  pawl::fill_normal(x, 0, 1, pawl::Generator(key));
  return x;
}

Tensor ids(std::vector<std::int64_t> const& numbers) { return torch::tensor(numbers); }

/// Rows whose labels lie in [first, first + classes).
pawl::Experience experience(std::int64_t index, std::int64_t first, std::int64_t classes,
                            std::int64_t task = -1, std::int64_t rows = 12, std::int64_t d = 4) {
  auto const y = torch::arange(rows) % classes + first;
  auto const x = values({rows, d}, 100 + static_cast<std::uint64_t>(index));
  return pawl::make_experience(x, y, {}, index, task);
}

nn::Sequential body_and(auto head) { return nn::Sequential(nn::Linear(4, 6), nn::Tanh(), head); }

/// Draws the body from our generator, so that two networks of the same shape are equal.
void fill_body(nn::Module& module) {
  std::uint64_t key = 7;
  for (auto& item : module.named_parameters()) {
    if (item.key().rfind("0.", 0) == 0) {
      pawl::fill_uniform(item.value().detach(), -.5, .5, pawl::Generator(key++));
    }
  }
}

}  // namespace

TEST_CASE("a growing head that grows in two steps equals one of the final size, bit for bit") {
  pawl::GrowingHead two_then_five(4), five(4, 5, pawl::Seed{3});
  CHECK(two_then_five->announce({0, 1}, -1, pawl::Seed{3}));
  auto const x = values({3, 4});
  auto const before = two_then_five->forward(x).detach().clone();
  CHECK(two_then_five->announce({4, 2, 3}, -1, pawl::Seed{3}));
  CHECK_FALSE(two_then_five->announce({0, 4}, -1, pawl::Seed{3}));
  CHECK(torch::equal(two_then_five->weight, five->weight));
  CHECK(torch::equal(two_then_five->bias, five->bias));
  CHECK(torch::equal(two_then_five->forward(x), five->forward(x)));
  CHECK(torch::allclose(two_then_five->forward(x).narrow(1, 0, 2), before, 0, 1e-6));
}

TEST_CASE("rows drawn before and after the module became float64 are the same") {
  pawl::GrowingHead two_then_five(4, 2, pawl::Seed{3}), five(4, 5, pawl::Seed{3});
  two_then_five->to(torch::kFloat64);
  five->to(torch::kFloat64);
  two_then_five->grow(5, pawl::Seed{3});
  CHECK(torch::equal(two_then_five->weight, five->weight));
  CHECK(torch::equal(two_then_five->bias, five->bias));
}

TEST_CASE("rows of a growing head start uniform in +-1/sqrt(d) and differ by seed and by row") {
  pawl::GrowingHead head(64, 100, pawl::Seed{1}), other(64, 100, pawl::Seed{2});
  auto const bound = 1 / 8.;
  CHECK(head->weight.abs().max().item<double>() < bound);
  CHECK(head->bias.abs().max().item<double>() < bound);
  CHECK(head->weight.abs().max().item<double>() > .999 * bound);
  // Uniform: variance bound^2 / 3. Sigma of the estimate over 6400 draws is 1.1 %.
  CHECK(head->weight.var().item<double>() == doctest::Approx(bound * bound / 3).epsilon(.05));
  CHECK_FALSE(torch::equal(head->weight, other->weight));
  CHECK_FALSE(torch::equal(head->weight[0], head->weight[1]));
}

TEST_CASE("growth keeps the parameter the same trainable leaf, also while an old graph is alive") {
  pawl::GrowingHead head(4, 2, pawl::Seed{3});
  auto const leaf = head->weight;
  auto const x = values({3, 4});
  auto const alive = head->forward(x).sum();  // holds the gradient accumulator of the old shape
  alive.backward({}, /*retain_graph=*/true);
  head->announce({4}, -1, pawl::Seed{3});
  CHECK(leaf.is_same(head->parameters()[0]));
  CHECK(leaf.requires_grad());
  CHECK(leaf.is_leaf());
  CHECK(leaf.size(0) == 5);
  CHECK_FALSE(leaf.grad().defined());
  head->forward(x).sum().backward();
  CHECK(leaf.grad().sizes() == torch::IntArrayRef{5, 4});
  CHECK(torch::allclose(leaf.grad()[4], x.sum(0)));
}

TEST_CASE("heads follow the module to float64, also before their first row") {
  pawl::GrowingHead growing(4);
  pawl::MultiHead multi(4, 2);
  pawl::CosineHead cosine(4);
  for (pawl::Head* head :
       {static_cast<pawl::Head*>(growing.get()), static_cast<pawl::Head*>(multi.get()),
        static_cast<pawl::Head*>(cosine.get())}) {
    head->to(torch::kFloat64);
    head->announce({0, 1}, 0, pawl::Seed{1});
    for (auto const& p : head->parameters()) CHECK(p.dtype() == torch::kFloat64);
    head->announce({0, 1}, 1, pawl::Seed{1});
    head->to(torch::kFloat32);
    for (auto const& p : head->parameters()) CHECK(p.dtype() == torch::kFloat32);
  }
  multi->route(ids({0, 1}));
  CHECK(multi->forward(values({2, 4})).sizes() == torch::IntArrayRef{2, 2});
}

TEST_CASE("heads say in words what they miss") {
  pawl::GrowingHead growing(4);
  pawl::MultiHead multi(4, 2, 3);
  auto const x = values({2, 4});
  CHECK_THROWS_WITH_AS(growing->forward(x), doctest::Contains("no classes yet"), pawl::Error);
  CHECK_THROWS_WITH_AS(growing->forward(values({2, 5})), doctest::Contains("takes [N, 4]"),
                       pawl::Error);
  CHECK_THROWS_WITH_AS(growing->announce({-1}, -1, {}), doctest::Contains("label -1"), pawl::Error);
  CHECK_THROWS_WITH_AS(multi->forward(x), doctest::Contains("no task ids"), pawl::Error);
  multi->route(ids({0}));
  CHECK_THROWS_WITH_AS(multi->forward(x), doctest::Contains("1 task ids for 2 rows"), pawl::Error);
  multi->route(ids({0, 3}));
  CHECK_THROWS_WITH_AS(multi->forward(x), doctest::Contains("no head for task 3"), pawl::Error);
  multi->route(ids({-1, -1}));
  CHECK_THROWS_WITH_AS(multi->forward(x), doctest::Contains("no head for task -1"), pawl::Error);
  multi->route({});
  CHECK_THROWS_WITH_AS(multi->forward(x), doctest::Contains("no task ids"), pawl::Error);
  CHECK_THROWS_WITH_AS(multi->announce({0}, 3, {}), doctest::Contains("no head for task 3"),
                       pawl::Error);
  CHECK_THROWS_WITH_AS(multi->announce({2}, 1, {}), doctest::Contains("count labels within"),
                       pawl::Error);
  CHECK_THROWS_WITH_AS(pawl::MultiHead(4, 0), doctest::Contains("0 outputs"), pawl::Error);
}

TEST_CASE("a multi-head grown task by task equals one made for all tasks") {
  pawl::MultiHead grown(4, 2), made(4, 2, 3, pawl::Seed{5});
  CHECK(grown->announce({0, 1}, 0, pawl::Seed{5}));
  CHECK_FALSE(grown->announce({0, 1}, 0, pawl::Seed{5}));
  CHECK(grown->announce({0, 1}, 2, pawl::Seed{5}));
  CHECK_FALSE(grown->announce({0, 1}, -1, pawl::Seed{5}));
  REQUIRE(grown->tasks() == 3);
  for (std::size_t k = 0; k < 3; ++k) {
    CHECK(torch::equal(grown->weights[k], made->weights[k]));
    CHECK(torch::equal(grown->biases[k], made->biases[k]));
  }
  CHECK_FALSE(torch::equal(made->weights[0], made->weights[1]));
}

TEST_CASE("a batch that mixes tasks gives each row the logits of its own head, in order") {
  pawl::MultiHead head(4, 3, 4, pawl::Seed{5});
  auto const x = values({6, 4}).requires_grad_();
  std::vector<std::int64_t> const tasks{2, 0, 2, 3, 0, 2};
  head->route(ids(tasks));
  auto const z = head->forward(x);
  auto const factor = values({6, 3}, 9);
  (z * factor).sum().backward();
  for (std::int64_t i = 0; i < 6; ++i) {
    auto const k = static_cast<std::size_t>(tasks[static_cast<std::size_t>(i)]);
    CHECK(torch::allclose(z[i], torch::mv(head->weights[k], x[i]) + head->biases[k], 0, 1e-6));
    CHECK(torch::allclose(x.grad()[i], torch::mv(head->weights[k].t(), factor[i]), 0, 1e-6));
  }
  CHECK_FALSE(head->weights[1].grad().defined());
  CHECK_FALSE(head->biases[1].grad().defined());
  CHECK(torch::allclose(head->biases[0].grad(), factor[1] + factor[4], 0, 1e-6));
}

TEST_CASE("idle heads stay frozen bit for bit under every stateful optimizer") {
  auto const check = [](auto optimizer) {
    pawl::MultiHead head(6, 2, 2, pawl::Seed{5});
    pawl::Learner learner{body_and(head), optimizer};
    learner.fit(experience(0, 0, 2, 0), {.epochs = 3, .batch_size = 4});
    auto const weight = head->weights[0].detach().clone(), bias = head->biases[0].detach().clone();
    auto const other = head->weights[1].detach().clone();
    learner.fit(experience(1, 0, 2, 1), {.epochs = 3, .batch_size = 4});
    CHECK(torch::equal(head->weights[0], weight));
    CHECK(torch::equal(head->biases[0], bias));
    CHECK_FALSE(torch::equal(head->weights[1], other));
  };
  check(pawl::Adam{.lr = .01, .weight_decay = .1});
  check(pawl::AdamW{.lr = .01, .weight_decay = .1});
  check(pawl::Sgd{.lr = .1, .momentum = .9, .weight_decay = .1});
  check(pawl::Sgd{.lr = .1, .weight_decay = .1});
}

TEST_CASE("idle heads move under zero_gradient once they were trained, and not before") {
  auto const check = [](auto optimizer) {
    pawl::MultiHead head(6, 2, 3, pawl::Seed{5});
    pawl::Learner learner{body_and(head), optimizer};
    pawl::Training const training{
        .epochs = 2, .batch_size = 4, .idle_heads = pawl::IdleHeads::zero_gradient};
    learner.fit(experience(0, 0, 2, 0), training);
    auto const trained = head->weights[0].detach().clone();
    auto const untouched = head->weights[2].detach().clone();
    learner.fit(experience(1, 0, 2, 1), training);
    CHECK_FALSE(torch::equal(head->weights[0], trained));
    CHECK(torch::equal(head->weights[2], untouched));
  };
  check(pawl::Adam{.lr = .01});
  check(pawl::Sgd{.lr = .1, .momentum = .9});
  check(pawl::Sgd{.lr = .1, .weight_decay = .1});
}

TEST_CASE("a multi-head network equals a wide head with task masks") {
  pawl::MultiHead multi(6, 2, 2, pawl::Seed{5});
  nn::Linear wide(6, 4);
  {
    torch::NoGradGuard no_grad;
    wide->weight.copy_(torch::cat({multi->weights[0], multi->weights[1]}));
    wide->bias.copy_(torch::cat({multi->biases[0], multi->biases[1]}));
  }
  auto a = body_and(multi), b = body_and(wide);
  fill_body(*a), fill_body(*b);
  pawl::Learner with_heads{a, pawl::Sgd{.lr = .1}}, with_masks{b, pawl::Sgd{.lr = .1}};
  for (std::int64_t e = 0; e < 2; ++e) {
    with_heads.fit(experience(e, 0, 2, e), {.epochs = 3, .batch_size = 4});
    with_masks.fit(experience(e, 2 * e, 2, e),
                   {.epochs = 3, .batch_size = 4, .active = pawl::Active::current});
  }
  auto const x = values({8, 4}, 77);
  for (std::int64_t e = 0; e < 2; ++e) {
    auto const z = with_heads.scores(x, torch::full({8}, e, torch::kInt64));
    auto const masked = with_masks.scores(x).narrow(1, 2 * e, 2);
    CHECK(torch::allclose(z, masked, 0, 1e-6));
    CHECK(
        torch::equal(with_heads.predict(x, torch::full({8}, e, torch::kInt64)), masked.argmax(1)));
  }
  CHECK(torch::allclose(a->parameters()[0], b->parameters()[0], 0, 1e-6));
  CHECK(torch::allclose(multi->weights[0], wide->weight.narrow(0, 0, 2), 0, 1e-6));
}

TEST_CASE("a head without rows trains, and grows inside the arena as classes arrive") {
  pawl::GrowingHead head(6);
  auto net = body_and(head);
  pawl::Learner learner{net, pawl::Sgd{.lr = .1}};
  auto const& arena = learner.context().arena;
  CHECK_THROWS_WITH_AS(learner.predict(values({2, 4})), doctest::Contains("no classes yet"),
                       pawl::Error);
  learner.fit(experience(0, 0, 2), {.batch_size = 4});
  CHECK(learner.scores(values({2, 4})).size(1) == 2);
  learner.fit(experience(1, 2, 3), {.batch_size = 4});
  CHECK(learner.scores(values({2, 4})).size(1) == 5);
  CHECK(arena.bound());
  // Aligned to 16 elements: 24 + 6 (body), 30 + 5 (head).
  CHECK(arena.weights().numel() == 32 + 16 + 32 + 16);
  for (std::size_t i = 0; i < arena.parameters().size(); ++i) {
    auto const view = arena.parameter_view(arena.weights(), i);
    CHECK(view.data_ptr() == net->parameters()[i].data_ptr());
    CHECK(view.sizes() == net->parameters()[i].sizes());
  }
}

TEST_CASE("labels that were never announced grow the head before their first forward") {
  pawl::GrowingHead head(6);
  pawl::Learner learner{body_and(head), pawl::Adam{}};
  auto late = experience(0, 0, 3);
  late.classes = {0};
  learner.fit(late, {.batch_size = 1, .shuffle = false});
  CHECK(head->classes() == 3);
  CHECK(learner.context().seen == std::vector<std::int64_t>{0, 1, 2});
}

TEST_CASE(
    "old rows keep their Adam moments and logits bit for bit across growth; new moments are 0") {
  struct AtBegin {
    std::vector<Tensor>* out;
    pawl::GrowingHead head;
    pawl::Adam* adam = nullptr;
    void begin(pawl::Context& c, pawl::Experience const&) {
      if (c.index == 0) return;
      *out = {head->weight.detach().clone(), head->bias.detach().clone(), adam->first.clone(),
              adam->second.clone()};
    }
  };
  std::vector<Tensor> grown;
  pawl::GrowingHead head(6);
  pawl::Learner learner{body_and(head), pawl::Adam{.lr = .01}, AtBegin{&grown, head}};
  learner.strategy<AtBegin>().adam = &learner.optimizer();
  learner.fit(experience(0, 0, 2), {.epochs = 3, .batch_size = 4});
  auto const layout = learner.context().arena.layout();
  auto const weight = head->weight.detach().clone(), bias = head->bias.detach().clone();
  auto const first = learner.optimizer().first.clone(), second = learner.optimizer().second.clone();
  auto const steps = learner.optimizer().steps;
  auto const x = values({3, 4});
  auto const z = learner.scores(x).clone();
  learner.fit(experience(1, 2, 3), {.batch_size = 12});
  REQUIRE(grown.size() == 4);
  CHECK(torch::equal(grown[0].narrow(0, 0, 2), weight));
  CHECK(torch::equal(grown[1].narrow(0, 0, 2), bias));
  auto const& now = learner.context().arena.layout();
  for (std::size_t i = 0; i < layout.size(); ++i) {
    REQUIRE(now[i].name == layout[i].name);
    for (auto const& [before, after] : {std::pair{first, grown[2]}, std::pair{second, grown[3]}}) {
      auto const old = before.narrow(0, layout[i].offset, layout[i].size);
      CHECK(torch::equal(after.narrow(0, now[i].offset, layout[i].size), old));
      CHECK(old.abs().max().item<double>() > 0);
      auto const fresh =
          after.narrow(0, now[i].offset + layout[i].size, now[i].size - layout[i].size);
      CHECK_FALSE(fresh.count_nonzero().item<bool>());
    }
    CHECK(learner.optimizer().steps[i] == steps[i] + 1);
  }
}

TEST_CASE("growth alone leaves the logits of old classes as they were") {
  pawl::GrowingHead head(6, 2, pawl::Seed{1});
  auto const x = values({5, 6});
  auto const before = head->forward(x).detach();
  head->grow(5, pawl::Seed{1});
  auto const after = head->forward(x).detach();
  CHECK(torch::allclose(after.narrow(1, 0, 2), before, 0, 1e-6));
  CHECK(torch::equal(after.narrow(1, 0, 2).argmax(1), before.argmax(1)));
}

TEST_CASE("a learner with heads that grow is restored from its checkpoint bit for bit") {
  auto const path =
      (std::filesystem::temp_directory_path() / "pawl_heads_test.safetensors").string();
  auto const check = [&](auto make, std::int64_t task_or_none) {
    auto const at = [&](std::int64_t e) {
      return task_or_none < 0 ? experience(e, 2 * e, 2) : experience(e, 0, 2, e);
    };
    auto net = make();
    fill_body(*net);
    pawl::Learner learner{net, pawl::Adam{.lr = .01}};
    learner.save(path);  // before any class is known
    for (std::int64_t e = 0; e < 2; ++e) learner.fit(at(e), {.batch_size = 4});
    learner.save(path);
    auto copy = make();
    pawl::Learner restored{copy, pawl::Adam{.lr = .01}};
    restored.load(path);
    for (auto* each : {&learner, &restored}) each->fit(at(2), {.batch_size = 4});
    REQUIRE(net->parameters().size() == copy->parameters().size());
    for (std::size_t i = 0; i < net->parameters().size(); ++i) {
      CHECK(torch::equal(net->parameters()[i], copy->parameters()[i]));
    }
  };
  check([] { return body_and(pawl::GrowingHead(6)); }, -1);
  check([] { return body_and(pawl::CosineHead(6)); }, -1);
  check([] { return body_and(pawl::MultiHead(6, 2, 3)); }, 0);
  check([] { return body_and(pawl::MultiHead(6, 2)); }, 0);
  std::filesystem::remove(path);
}

TEST_CASE("cosine logits are eta times the cosine, and never exceed eta") {
  pawl::CosineHead head(2, 2, pawl::Seed{1}, pawl::CosineScale{.value = 10, .learned = false});
  {
    torch::NoGradGuard no_grad;
    head->weight.copy_(torch::tensor({{3.f, 4.f}, {-2.f, 0.f}}));
  }
  auto const x = torch::tensor({{1.f, 0.f}, {6.f, 8.f}});
  auto const expected = torch::tensor({{6.f, -10.f}, {10.f, -6.f}});
  CHECK(torch::allclose(head->forward(x), expected, 0, 1e-5));
  CHECK(head->parameters().size() == 1);
  CHECK(head->forward(1000 * values({50, 2})).abs().max().item<double>() <= 10 + 1e-5);
  CHECK(torch::equal(head->forward(torch::zeros({1, 2})), torch::zeros({1, 2})));
}

TEST_CASE("a cosine head learns eta and grows row by row like the growing head") {
  pawl::CosineHead grown(4), made(4, 5, pawl::Seed{3});
  grown->announce({0, 1}, -1, pawl::Seed{3});
  grown->announce({4}, -1, pawl::Seed{3});
  CHECK(torch::equal(grown->weight, made->weight));
  CHECK(grown->eta.item<double>() == 1);
  pawl::CosineHead head(6);
  pawl::Learner learner{body_and(head), pawl::Sgd{.lr = .5}};
  learner.fit(experience(0, 0, 2), {.epochs = 4, .batch_size = 4});
  learner.fit(experience(1, 2, 1), {.batch_size = 4});
  CHECK(head->classes() == 3);
  CHECK(head->eta.item<double>() != 1);
}

TEST_CASE("rows of heads start as they are told to, whenever they appear") {
  using pawl::InitScheme;
  auto const largest = [](torch::Tensor const& t) { return t.abs().max().item<double>(); };
  auto const tasks = [](pawl::Init const& init) {
    return pawl::MultiHead(50, 40, 2, pawl::Seed{1}, init);
  };
  auto const glorot = tasks({.scheme = InitScheme::xavier});
  for (auto const& weight : glorot->weights) {
    CHECK(largest(weight) < std::sqrt(6. / 90));
    CHECK(largest(weight) > .99 * std::sqrt(6. / 90));
  }
  CHECK(largest(tasks({.scheme = InitScheme::kaiming})->weights[1]) > .99 * std::sqrt(6. / 50));
  CHECK(largest(tasks({.scheme = InitScheme::kaiming})->biases[1]) == 0);
  auto const constant = tasks({.scheme = InitScheme::normal, .deviation = 0, .bias = 0.3});
  CHECK(largest(constant->weights[0]) == 0);
  CHECK(constant->biases[1].eq(0.3f).all().item<bool>());

  pawl::Init const xavier{.scheme = InitScheme::xavier};
  pawl::GrowingHead early(50, 40, pawl::Seed{1}, xavier), late(50, 1, pawl::Seed{1}, xavier);
  late->to(torch::kFloat64);
  late->announce({39}, -1, pawl::Seed{1});
  CHECK(late->weight.equal(early->weight.to(torch::kFloat64)));
  CHECK(largest(early->weight) < std::sqrt(6. / 50));
  CHECK(largest(early->weight) > .99 * std::sqrt(6. / 50));
}

TEST_CASE("an imprinted row points at its class and is as long as the others on average") {
  pawl::CosineHead head(2, 3, pawl::Seed{1});
  {
    torch::NoGradGuard no_grad;
    head->weight.copy_(torch::tensor({{3.f, 4.f}, {0.f, 1.f}, {9.f, 9.f}}));
  }
  head->imprint(2, torch::tensor({{5.f, 0.f}, {1.f, 8.f}}));  // mean (3, 4); norms 5 and 1: 3
  CHECK(torch::allclose(head->weight[2], torch::tensor({1.8f, 2.4f}), 0, 1e-5));
  CHECK_THROWS_WITH_AS(head->imprint(2, torch::ones({0, 2})), doctest::Contains("at least one row"),
                       pawl::Error);
  CHECK_THROWS_WITH_AS(head->imprint(2, torch::ones({1, 3})), doctest::Contains("takes [N, 2]"),
                       pawl::Error);
  CHECK_THROWS_WITH_AS(head->imprint(3, torch::ones({1, 2})),
                       doctest::Contains("announce it first"), pawl::Error);
}

TEST_CASE("rows that appear together are imprinted with the mean length of the old rows") {
  pawl::CosineHead head(2, 2, pawl::Seed{1});
  {
    torch::NoGradGuard no_grad;
    head->weight.copy_(torch::tensor({{2.f, 0.f}, {0.f, 4.f}}));
  }
  head->announce({2, 3}, -1, pawl::Seed{1});
  head->imprint(3, torch::tensor({{0.f, 7.f}}));
  head->imprint(2, torch::tensor({{7.f, 0.f}}));
  auto const wanted = torch::tensor({{2.f, 0.f}, {0.f, 4.f}, {3.f, 0.f}, {0.f, 3.f}});
  CHECK(torch::allclose(head->weight, wanted, 0, 1e-5));
  head->imprint(0, torch::tensor({{0.f, 1.f}}));
  CHECK(torch::allclose(head->weight[0], torch::tensor({0.f, 4.f}), 0, 1e-5));
}
