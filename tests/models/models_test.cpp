#include "pawl/models/make_model.hpp"

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "pawl/core/learner.hpp"

#include <torch/nn/modules/activation.h>

// after LibTorch, whose own CHECK must not win
#include <doctest/doctest.h>

namespace {

using pawl::Tensor;
namespace nn = torch::nn;

Tensor values(std::vector<std::int64_t> const& shape, std::uint64_t key = 1) {
  auto x = torch::empty(shape);
  pawl::fill_normal(x, 0, 1, pawl::Generator(key));
  return x;
}

Tensor global_state() { return at::detail::getDefaultCPUGenerator().get_state().clone(); }

std::int64_t parameter_count(nn::Module const& module) {
  std::int64_t count = 0;
  for (auto const& p : module.parameters()) count += p.numel();
  return count;
}

pawl::Mlp mlp(pawl::InitScheme scheme, std::uint64_t seed = 1) {
  return pawl::Mlp(100, 10, pawl::MlpOptions{.hidden = {80}, .init = {.scheme = scheme}},
                   pawl::Seed{seed});
}

/// A module of the user's own, with BatchNorm and a member that tells features.
struct OwnImpl : nn::Module {
  OwnImpl() {
    register_module("convolution", convolution);
    register_module("norm", norm);
    register_module("head", head);
    pawl::initialise(*this, {}, pawl::Seed{3});
  }
  Tensor features(Tensor const& x) { return norm(convolution(x)).relu().flatten(1); }
  Tensor forward(Tensor const& x) { return head(features(x)); }
  nn::Conv2d convolution{nn::Conv2dOptions(1, 2, 3).padding(1)};
  nn::BatchNorm2d norm{2};
  nn::Linear head{2 * 16, 3};
};
TORCH_MODULE(Own);

}  // namespace

TEST_CASE("a module of one's own trains as a holder, as a pointer and behind a model alike") {
  auto const x = values({24, 1, 4, 4});
  auto const experience = pawl::make_experience(x, torch::arange(24) % 3);
  auto const train = [&](auto module) {
    pawl::Learner learner{module, pawl::Sgd{.lr = .1, .momentum = .9}};
    learner.fit(experience, {.epochs = 3, .batch_size = 8});
    CHECK(learner.context().model.features(x).sizes() == torch::IntArrayRef{24, 32});
    return learner.scores(x);
  };
  Own holder, hand;
  auto const scores = train(holder);
  CHECK(torch::equal(train(std::make_shared<OwnImpl>()), scores));
  CHECK(torch::equal(train(pawl::Model(Own())), scores));
  CHECK(holder->norm->running_mean.abs().sum().item<double>() > 0);
  CHECK(holder->is_training());

  // By hand: the same batches, in order, and LibTorch's operations.
  Own given;
  pawl::Learner learner{given, pawl::Sgd{.lr = .1}};
  learner.fit(experience, {.batch_size = 8, .shuffle = false, .engine = pawl::Engine::reference});
  for (std::int64_t begin = 0; begin < 24; begin += 8) {
    hand->zero_grad();
    auto const y = experience.train.labels.slice(0, begin, begin + 8);
    at::cross_entropy_loss(hand->forward(x.slice(0, begin, begin + 8)), y).backward();
    torch::NoGradGuard no_grad;
    for (auto& p : hand->parameters()) p.add_(p.grad(), -.1);
  }
  hand->eval();
  CHECK(torch::equal(learner.scores(x), hand->forward(x)));
}

TEST_CASE("every model maps rows to features and logits of the right shape") {
  struct Expected {
    char const* model;
    std::vector<std::int64_t> rows;
    std::int64_t width;
  };
  for (auto const& expected :
       {Expected{"mlp", {1, 28, 28}, 256}, Expected{"mlp", {7}, 256},
        Expected{"small_cnn", {1, 28, 28}, 128}, Expected{"small_cnn", {3, 32, 32}, 128},
        Expected{"slim_resnet18", {3, 32, 32}, 160}, Expected{"slim_resnet18", {1, 28, 28}, 160}}) {
    auto const name = std::string(expected.model);
    auto const& rows = expected.rows;
    CAPTURE(name);
    auto const model = pawl::make_model_choice(name).build(rows, 10, 0, pawl::Seed{1});
    auto shape = rows;
    shape.insert(shape.begin(), 2);
    auto const x = values(shape);
    CHECK(model.forward(x).sizes() == torch::IntArrayRef{2, 10});
    REQUIRE(model.features);
    CHECK(model.features(x).sizes() == torch::IntArrayRef{2, expected.width});
    CHECK(model.heads.empty());
    CHECK(model.forward(x).std().item<double>() > 1e-4);
  }
}

TEST_CASE("models have the published numbers of parameters") {
  CHECK(parameter_count(*pawl::Mlp(784, 10, pawl::MlpOptions{.hidden = {400, 400}})) ==
        784 * 400 + 400 + 400 * 400 + 400 + 400 * 10 + 10);
  CHECK(parameter_count(*pawl::SlimResNet18(3, 100)) == 1109240);
  CHECK(parameter_count(*pawl::SlimResNet18(1, 10)) == 1109240 - 90 * 161 - 2 * 9 * 20);
  CHECK(parameter_count(*pawl::SmallCnn(std::vector<std::int64_t>{1, 28, 28}, 10)) ==
        (25 + 1) * 32 + (32 * 25 + 1) * 64 + (64 * 7 * 7 + 1) * 128 + 129 * 10);
  CHECK(
      parameter_count(*pawl::Mlp(784, 10, pawl::MlpOptions{.hidden = {100}, .batch_norm = true})) ==
      784 * 100 + 2 * 100 + 100 * 10 + 2 * 10);
}

TEST_CASE(
    "building a model leaves the process-wide generator as found, and depends on the seed alone") {
  for (auto const& name : pawl::model_names()) {
    CAPTURE(name);
    auto const choice = pawl::make_model_choice(name);
    auto const before = global_state();
    auto const one = choice.build({3, 16, 16}, 10, 0, pawl::Seed{1});
    CHECK(torch::equal(global_state(), before));
    torch::rand({3});
    auto const same = choice.build({3, 16, 16}, 10, 0, pawl::Seed{1});
    auto const other = choice.build({3, 16, 16}, 10, 0, pawl::Seed{2});
    bool differs = false;
    for (std::size_t i = 0; i < one.parameters().size(); ++i) {
      CHECK(torch::equal(one.parameters()[i], same.parameters()[i]));
      differs = differs || !torch::equal(one.parameters()[i], other.parameters()[i]);
    }
    CHECK(differs);
  }
}

TEST_CASE("initialisations have the ranges of their papers") {
  using pawl::InitScheme;
  // Uniform in +-b: deviation b / sqrt(3), within 5 % for 8000 draws (sigma .5 %).
  struct Expected {
    InitScheme scheme;
    double bound;
    double bias;  // bound of the biases
  };
  for (auto const& [scheme, bound, bias] :
       {Expected{InitScheme::standard, .1, .1},
        Expected{InitScheme::xavier, std::sqrt(6 / 180.), 0},
        Expected{InitScheme::kaiming, std::sqrt(6 / 100.), 0}}) {
    auto const p = mlp(scheme)->parameters();
    CHECK(p[0].abs().max().item<double>() <= bound);
    CHECK(p[0].abs().max().item<double>() > .99 * bound);
    CHECK(p[0].std().item<double>() == doctest::Approx(bound / std::sqrt(3)).epsilon(.05));
    CHECK(p[1].abs().max().item<double>() <= bias);
    CHECK(p[1].abs().max().item<double>() >= .9 * bias);
  }
  auto const normal = mlp(InitScheme::normal)->parameters();
  auto const cut = mlp(InitScheme::truncated_normal)->parameters();
  CHECK(normal[0].std().item<double>() == doctest::Approx(.1).epsilon(.05));
  CHECK(normal[0].abs().max().item<double>() > .2);
  CHECK(cut[0].abs().max().item<double>() <= .2 + 1e-7);
  CHECK(cut[0].std().item<double>() == doctest::Approx(.08796).epsilon(.05));
  CHECK(torch::equal(cut[1], torch::full({80}, .1)));
  CHECK(torch::equal(cut[3], torch::full({10}, .1)));
}

TEST_CASE("convolutions start within the framework's bound of their fan-in") {
  pawl::SmallCnn net(std::vector<std::int64_t>{3, 32, 32}, 10, pawl::SmallCnnOptions{},
                     pawl::Seed{1});
  auto const p = net->named_parameters();
  auto const bound = 1 / std::sqrt(3 * 25.);
  CHECK(p["conv0.weight"].abs().max().item<double>() <= bound);
  CHECK(p["conv0.weight"].abs().max().item<double>() > .99 * bound);
  CHECK(p["conv0.bias"].abs().max().item<double>() <= bound);
}

TEST_CASE("a multilayer perceptron computes head(a(W x + b)), and flattens its rows") {
  for (auto const activation : {pawl::Activation::relu, pawl::Activation::tanh}) {
    pawl::Mlp net(12, 3, pawl::MlpOptions{.hidden = {5}, .activation = activation}, pawl::Seed{1});
    auto const p = net->parameters();
    auto const x = values({4, 3, 4});
    auto const a = torch::addmm(p[1], x.flatten(1), p[0].t());
    auto const h = activation == pawl::Activation::relu ? a.clamp_min(0) : a.tanh();
    CHECK(torch::allclose(net->features(x), h, 0, 1e-6));
    CHECK(torch::allclose(net->forward(x), torch::addmm(p[3], h, p[2].t()), 0, 1e-6));
  }
  pawl::Mlp linear(4, 3, pawl::MlpOptions{.hidden = {}}, pawl::Seed{1});
  auto const x = values({2, 4});
  CHECK(torch::equal(linear->features(x), x));
  CHECK(parameter_count(*linear) == 15);
}

TEST_CASE("dropout acts in training alone") {
  pawl::Mlp net(12, 3, pawl::MlpOptions{.hidden = {500}, .dropout = .5}, pawl::Seed{1});
  pawl::Mlp plain(12, 3, pawl::MlpOptions{.hidden = {500}}, pawl::Seed{1});
  auto const x = values({4, 12});
  net->eval();
  CHECK(torch::equal(net->forward(x), plain->forward(x)));
  net->train();
  pawl::NoiseScope noise(pawl::Generator(1));
  auto const kept = plain->features(x);
  auto const dropped = net->features(x);
  auto const gone = ((dropped == 0) & (kept > 0)).sum().item<double>();
  auto const active = (kept > 0).sum().item<double>();
  CHECK(std::abs(gone / active - .5) < 4 * .5 / std::sqrt(active));
  CHECK(torch::allclose(dropped.where(dropped > 0, kept * 2), kept * 2));
}

TEST_CASE("batch_norm normalises every layer and the outputs") {
  pawl::Mlp net(12, 3, pawl::MlpOptions{.hidden = {5}, .batch_norm = true}, pawl::Seed{1});
  auto const z = net->forward(values({64, 12}));
  CHECK(torch::allclose(z.mean(0), torch::zeros({3}), 0, 1e-5));
  CHECK(torch::allclose(z.var(0, false), torch::ones({3}), 0, 1e-3));
  CHECK_THROWS_WITH_AS(
      pawl::Mlp(12, 3, pawl::MlpOptions{.batch_norm = true, .head = pawl::HeadKind::growing}),
      doctest::Contains("needs a linear head"), pawl::Error);
}

TEST_CASE("the head is an option of every model, and auto follows the task ids") {
  for (auto const& name : pawl::model_names()) {
    CAPTURE(name);
    auto choice = pawl::make_model_choice(name);
    auto const with = [&](char const* head, std::int64_t tasks) {
      pawl::set_option(choice, "head", head);
      return choice.build({1, 16, 16}, 2, tasks, pawl::Seed{1});
    };
    CHECK(with("auto", 0).heads.empty());
    CHECK(with("linear", 5).heads.empty());
    CHECK(with("auto", 5).per_task());
    CHECK(with("multi", 0).per_task());
    auto const x = values({2, 1, 16, 16});
    auto const tasks = torch::tensor({4, 1});
    auto const multi = with("multi", 5);
    multi.route(tasks);
    CHECK(multi.forward(x).sizes() == torch::IntArrayRef{2, 2});
    for (auto const* head : {"growing", "cosine"}) {
      auto const model = with(head, 0);
      REQUIRE(model.heads.size() == 1);
      CHECK_FALSE(model.per_task());
      model.heads[0]->announce({0, 1, 2}, -1, pawl::Seed{1});
      CHECK(model.forward(x).sizes() == torch::IntArrayRef{2, 3});
    }
  }
}

TEST_CASE("a known number of tasks gives the heads that announcing them one by one gives") {
  pawl::MlpOptions const options{.hidden = {5}, .head = pawl::HeadKind::multi};
  auto const known = options.build({4}, 2, 3, pawl::Seed{6});
  auto const grown = options.build({4}, 2, 0, pawl::Seed{6});
  for (std::int64_t task = 0; task < 3; ++task)
    grown.heads[0]->announce({0, 1}, task, pawl::Seed{6});
  REQUIRE(known.parameters().size() == grown.parameters().size());
  for (std::size_t i = 0; i < known.parameters().size(); ++i) {
    CHECK(torch::equal(known.parameters()[i], grown.parameters()[i]));
  }
}

TEST_CASE("an untrained model is right by chance") {
  // Labels are balanced, so every init has expected accuracy 1/5; 4 sigma over 50 inits: false
  // alarm 6e-5.
  auto const x = values({500, 20});
  auto const y = torch::arange(500) % 5;
  std::vector<double> accuracies;
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    pawl::Mlp net(20, 5, pawl::MlpOptions{.hidden = {32}}, pawl::Seed{seed});
    accuracies.push_back(
        (net->forward(x).argmax(1) == y).to(torch::kFloat64).mean().item<double>());
  }
  auto const all = torch::tensor(accuracies, torch::kFloat64);
  CHECK(all.std().item<double>() > 0);
  CHECK(std::abs(all.mean().item<double>() - .2) < 4 * all.std().item<double>() / std::sqrt(50.));
}

TEST_CASE("models are chosen and configured by name, with every option described") {
  CHECK(pawl::model_names() == std::vector<std::string>{"mlp", "small_cnn", "slim_resnet18"});
  CHECK_THROWS_WITH_AS(pawl::make_model_choice("mpl"), doctest::Contains("did you mean 'mlp'"),
                       pawl::Error);
  auto choice = pawl::make_model_choice("mlp");
  pawl::set_option(choice, "hidden", "7,5");
  pawl::set_option(choice, "init", "default");
  CHECK_THROWS_WITH_AS(pawl::set_option(choice, "hidden", "0"), doctest::Contains("hidden"),
                       pawl::Error);
  CHECK(parameter_count(*choice.build({2, 2}, 3, 0, {}).module) ==
        4 * 7 + 7 + 7 * 5 + 5 + 5 * 3 + 3);
  for (auto const& name : pawl::model_names()) {
    auto model = pawl::make_model_choice(name);
    CHECK(model.about().find("19") + model.about().find("20") != 2 * std::string::npos);
    std::vector<std::string> names;
    for (auto const& option : pawl::options_of(model).all()) {
      names.push_back(option.name);
      CHECK_FALSE(option.help.empty());
      CHECK_NOTHROW(option.set(option.get()));
    }
    for (auto const* shared : {"init", "init_std", "init_bias", "head"}) {
      CHECK(std::find(names.begin(), names.end(), shared) != names.end());
    }
  }
}

TEST_CASE("models say in words which rows they take") {
  CHECK_THROWS_WITH_AS(pawl::SmallCnnOptions{}.build({784}, 10, 0, {}),
                       doctest::Contains("must be images [C, H, W]"), pawl::Error);
  CHECK_THROWS_WITH_AS(pawl::SmallCnnOptions{}.build({1, 3, 3}, 10, 0, {}),
                       doctest::Contains("at least 4 pixels"), pawl::Error);
  CHECK_THROWS_WITH_AS(pawl::SlimResNet18Options{}.build({784}, 10, 0, {}),
                       doctest::Contains("must be images [C, H, W]"), pawl::Error);
  CHECK_THROWS_WITH_AS(pawl::MlpOptions{}.build({784}, 0, 0, {}),
                       doctest::Contains("positive sizes"), pawl::Error);
  CHECK_THROWS_WITH_AS(pawl::Mlp(4, 2)->forward(values({2, 5})),
                       doctest::Contains("rows of 5 values but takes 4"), pawl::Error);
  CHECK_THROWS_WITH_AS(pawl::Mlp(4, 2, pawl::MlpOptions{.hidden = {0}}),
                       doctest::Contains("hidden"), pawl::Error);
}

TEST_CASE(
    "an nn::Sequential is a model whose features are all but its last layer, heads included") {
  nn::Sequential net(nn::Linear(4, 6), nn::ReLU(), pawl::GrowingHead(6, 3, pawl::Seed{1}));
  pawl::Model const model(net);
  REQUIRE(model.heads.size() == 1);
  auto const x = values({2, 4});
  CHECK(model.features(x).sizes() == torch::IntArrayRef{2, 6});
  auto* head = dynamic_cast<pawl::GrowingHeadImpl*>(model.heads[0]);
  REQUIRE(head);
  CHECK(torch::equal(head->forward(model.features(x)), model.forward(x)));
}

TEST_CASE("every model trains in a learner, in float64 too, with every head") {
  for (auto const& name : pawl::model_names()) {
    for (auto const* head : {"linear", "growing", "multi", "cosine"}) {
      for (auto const dtype : {torch::kFloat32, torch::kFloat64}) {
        CAPTURE(name);
        CAPTURE(head);
        auto choice = pawl::make_model_choice(name);
        pawl::set_option(choice, "head", head);
        if (name == "slim_resnet18") pawl::set_option(choice, "nf", "2");
        auto const model = choice.build({1, 8, 8}, 2, 0, pawl::Seed{1});
        model.module->to(dtype);
        pawl::Learner learner{model, pawl::Adam{.lr = .01}};
        auto const y = torch::arange(16) % 2;
        auto const x = values({16, 1, 8, 8}) + (2 * y.view({16, 1, 1, 1}) - 1);
        auto const experience = pawl::make_experience(x, y, {}, 0, 0);
        learner.fit(experience, {.epochs = 40, .batch_size = 8});
        for (auto const& p : model.parameters()) CHECK(p.dtype() == dtype);
        auto const tasks = torch::zeros({16}, torch::kInt64);
        CHECK((learner.predict(x, tasks) == y).sum().item<std::int64_t>() >= 15);
      }
    }
  }
}
