#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../core/filled.hpp"

#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/normalization.h>
#include <torch/nn/modules/pooling.h>
#include <pawl/core/learner.hpp>
#include <pawl/heads/multi_head.hpp>
#include <pawl/importance/fisher.hpp>
#include <pawl/importance/sensitivity.hpp>
#include <pawl/models/slim_resnet18.hpp>

#include <doctest/doctest.h>  // after LibTorch, whose own CHECK must not win

using namespace pawl;

namespace {

Tensor values(std::vector<double> const& v, std::vector<std::int64_t> const& shape) {
  return torch::tensor(v, torch::kFloat64).view(shape);
}

Tensor draws(std::vector<std::int64_t> const& shape, std::uint64_t seed) {
  auto const x = torch::empty(shape, torch::kFloat64);
  fill_normal(x, 0, 1, Seed{seed}.generator("test"));
  return x;
}

Tensor labels(std::int64_t n, std::int64_t classes) { return torch::arange(n) * 7 % 5 % classes; }

Dataset data_of(Tensor const& x, Tensor const& y) { return whole(resident(x, y)); }

/// z = W x, with weights given as [C, d].
nn::Sequential linear(Tensor const& w) {
  nn::Linear layer(nn::LinearOptions(w.size(1), w.size(0)).bias(false));
  layer->to(torch::kFloat64);
  torch::NoGradGuard no_grad;
  layer->weight.copy_(w);
  return nn::Sequential(layer);
}

/// The first parameter's part of a flat tensor.
Tensor first(Arena const& arena, Tensor const& flat) { return arena.parameter_view(flat, 0); }

double relative(Tensor const& a, Tensor const& b) {
  return ((a - b).abs().max() / b.abs().max()).item<double>();
}
bool close(Tensor const& a, Tensor const& b, double tolerance = 1e-12) {
  return a.sizes() == b.sizes() && (a - b).abs().max().item<double>() <= tolerance;
}

/// Softmax regression on x = (1, 2) with p = (.8, .2), true label 0.
struct Regression {
  Model net = linear(values({std::log(4.0), 0, 0, 0}, {2, 2}));
  Arena arena{*net.module};
  Dataset data = data_of(values({1, 2}, {1, 2}), torch::zeros({1}, torch::kInt64));

  Tensor fisher(FisherOptions const& options, Seed seed = {}) const {
    return first(arena, pawl::fisher(net, arena, data, options, seed));
  }
};

/// Convolution, BatchNorm with statistics of its own, and a linear head.
nn::Sequential convolutional() {
  auto net = filled(nn::Sequential(nn::Conv2d(1, 3, 3), nn::BatchNorm2d(3), nn::Tanh(),
                                   nn::Flatten(), nn::Linear(27, 4)));
  for (auto& b : net->named_buffers()) {
    if (b.value().is_floating_point()) fill_uniform(b.value(), 0.5, 1.5, Seed{6}.generator("b"));
  }
  return net;
}

struct SharedImpl : nn::Module {
  SharedImpl() { layer = register_module("layer", nn::Linear(4, 4)); }
  Tensor forward(Tensor const& x) { return layer(torch::tanh(layer(x))); }
  nn::Linear layer{nullptr};
};

/// Untransposed and transposed weights, a part that is never used, and a frozen layer.
struct MixedImpl : nn::Module {
  MixedImpl() {
    plain = register_parameter("plain", torch::zeros({4, 6}));
    idle = register_module("idle", nn::Linear(6, 4));
    frozen = register_module("frozen", nn::Linear(6, 6));
    for (auto& p : frozen->parameters()) p.requires_grad_(false);
    last = register_module("last", nn::Linear(nn::LinearOptions(6, 4).bias(false)));
  }
  Tensor forward(Tensor const& x) {
    auto h = frozen(torch::tanh(x.mm(plain)));
    return last(torch::relu_(h));
  }
  Tensor plain;
  nn::Linear idle{nullptr}, frozen{nullptr}, last{nullptr};
};

/// A residual block, and a bias that all outputs share.
struct ResidualImpl : nn::Module {
  explicit ResidualImpl(std::int64_t biases) {
    first = register_module("first", nn::Linear(4, 6));
    second = register_module("second", nn::Linear(6, 6));
    last = register_parameter("last", torch::zeros({4, 6}));
    bias = register_parameter("bias", torch::zeros({biases}));
  }
  Tensor forward(Tensor const& x) {
    auto const h = torch::tanh(first(x));
    return torch::addmm(bias, h + torch::relu(second(h)) * h, last.t());
  }
  nn::Linear first{nullptr}, second{nullptr};
  Tensor last, bias;
};

/// Looks like a linear layer per sample in the graph, but its rows are not independent.
struct CoupledImpl : nn::Module {
  CoupledImpl() { layer = register_module("layer", nn::Linear(4, 4)); }
  Tensor forward(Tensor const& x) { return layer(x - x.mean(0, true) + x.flip(0)); }
  nn::Linear layer{nullptr};
};

/// One sample at a time, whatever the network.
Tensor fisher_loop(Model const& net, Arena const& arena, Dataset const& data,
                   FisherOptions const& options = {}, Seed seed = {}) {
  return fisher({.model = net, .arena = arena, .seed = seed, .allow_batched = false}, data,
                options);
}
Tensor sensitivity_loop(Model const& net, Arena const& arena, Dataset const& data) {
  return sensitivity({.model = net, .arena = arena, .allow_batched = false}, data, {});
}

/// Fisher of every kind and sensitivity, at once, with a graph, and one by one, to 1e-6 relative.
void check_agreement(Model const& net, Dataset const& data, bool batched,
                     std::string const& obstacle) {
  Arena const arena(*net.module);
  Probe const by_graph{.model = net, .arena = arena, .seed = {3}, .reference = true};
  for (auto const kind : {FisherLabels::exact, FisherLabels::sampled, FisherLabels::empirical,
                          FisherLabels::predicted}) {
    PerSamplePath path;
    auto const f = fisher(net, arena, data, {.labels = kind}, {3}, {}, &path);
    auto const loop = fisher_loop(net, arena, data, {.labels = kind}, {3});
    CHECK(relative(f, loop) <= 1e-6);
    CHECK(relative(fisher(by_graph, data, {.labels = kind}), loop) <= 1e-6);
    CAPTURE(path.obstacle);
    CHECK(path.batched == batched);
    CHECK(path.obstacle.find(obstacle) != std::string::npos);
  }
  PerSamplePath path;
  auto const omega = sensitivity(net, arena, data, {}, {}, {}, &path);
  auto const loop = sensitivity_loop(net, arena, data);
  CHECK(relative(omega, loop) <= 1e-6);
  CHECK(relative(sensitivity(by_graph, data, {}), loop) <= 1e-6);
  CHECK(path.batched == batched);
}

/// Whether importances of a network need no graph of autograd.
bool needs_no_graph(Model const& net, Dataset const& data) {
  PerSamplePath path;
  sensitivity(net, Arena(*net.module), data, {}, {}, {}, &path);
  return path.compiled;
}

/// Says that it is a chain, and scales what the chain gives.
struct ScaledImpl : nn::Module, Chained {
  explicit ScaledImpl(double factor) : factor(factor) {
    layer = register_module("layer", nn::Linear(4, 4));
  }
  Tensor forward(Tensor const& x) {
    ++calls;
    return ((layer(x) + 1) * factor - 2) / 2;
  }
  ChainLayers chain() const override { return {{layer->weight, layer->bias}}; }
  double factor;
  std::int64_t calls = 0;
  nn::Linear layer{nullptr};
};

}  // namespace

TEST_CASE("the Fisher of softmax regression has the values computed by hand") {
  Regression const r;
  auto const exact = values({.16, .64, .16, .64}, {2, 2});
  auto const empirical = values({.04, .16, .04, .16}, {2, 2});
  CHECK(close(r.fisher({}), exact));
  CHECK(close(first(r.arena, fisher_loop(r.net, r.arena, r.data)), exact));
  CHECK(close(r.fisher({.labels = FisherLabels::empirical}), empirical));
  CHECK(close(r.fisher({.labels = FisherLabels::predicted}), empirical));
  CHECK(close(r.fisher({.labels = FisherLabels::batch}), empirical));
}

// 3 sigma: false alarm 0.3 %, at this seed none.
TEST_CASE("with more than twenty outputs labels are sampled, unless they are asked for") {
  for (std::int64_t const outputs : {20, 21}) {
    auto net = filled(nn::Sequential(nn::Linear(3, outputs)));
    Model const model(net);
    Arena const arena(*net);
    auto x = torch::empty({6, 3}, torch::kFloat64);
    fill_normal(x, 0, 1, Seed{2}.generator("x"));
    auto const data = data_of(x, torch::zeros({6}, torch::kInt64));
    auto const of = [&](FisherLabels labels) {
      return fisher(model, arena, data, {.labels = labels}, Seed{4});
    };
    auto const automatic = fisher(model, arena, data, {}, Seed{4});
    CHECK(automatic.equal(of(FisherLabels::exact)) == (outputs == 20));
    CHECK(automatic.equal(of(FisherLabels::sampled)) == (outputs == 21));
  }
}

TEST_CASE("sampled labels average to the exact Fisher") {
  Regression const r;
  auto const n = std::int64_t{4000};
  auto const many = r.data.select(torch::zeros({n}, torch::kInt64));  // the same sample n times
  auto const f =
      first(r.arena, fisher(r.net, r.arena, many, {.labels = FisherLabels::sampled}, {1}));
  auto const sigma = 0.24 / std::sqrt(static_cast<double>(n));  // g^2 is .04 or .64, of mean .16
  CHECK(std::abs(f[0][0].item<double>() - .16) < 3 * sigma);
  CHECK(std::abs(f[0][1].item<double>() - .64) < 4 * 3 * sigma);
  CHECK(f[0][0].item<double>() != .16);
}

TEST_CASE("squared batch means lose what the Fisher sees") {
  Model const net = linear(torch::zeros({2, 1}));
  Arena const arena(*net.module);
  auto const data = data_of(values({1, 1}, {2, 1}), torch::tensor({0, 1}));
  CHECK(close(first(arena, fisher(net, arena, data)), values({.25, .25}, {2, 1})));
  CHECK(close(
      first(arena, fisher(net, arena, data, {.labels = FisherLabels::batch, .batch_size = 2})),
      values({0, 0}, {2, 1})));
  CHECK(close(
      first(arena, fisher(net, arena, data, {.labels = FisherLabels::batch, .batch_size = 1})),
      values({.25, .25}, {2, 1})));
  CHECK(close(first(arena, fisher(net, arena, data, {.labels = FisherLabels::empirical})),
              first(arena, fisher(net, arena, data))));  // p = (.5, .5)
}

TEST_CASE(
    "the exact Fisher of softmax regression is p (1 - p) x^2, and its biases sum to 1 - sum p^2") {
  auto layer = filled(nn::Linear(3, 4));
  Arena const arena(*layer);
  auto const x = draws({50, 3}, 1);
  auto const f = fisher(nn::Sequential(layer), arena, data_of(x, labels(50, 4)));
  auto const p = torch::softmax(layer(x), 1).detach();
  auto const spread = p * (1 - p);
  CHECK(close(arena.parameter_view(f, 0), spread.t().mm(x.square()) / 50));
  CHECK(close(arena.parameter_view(f, 1), spread.mean(0)));
  CHECK(close(arena.parameter_view(f, 1).sum(), (1 - p.square().sum(1)).mean()));
}

TEST_CASE("many samples at once give what one at a time gives") {
  auto const x = draws({300, 4}, 2);  // more than one chunk
  auto const data = data_of(x, labels(300, 4));
  check_agreement(filled(nn::Sequential(nn::Linear(4, 9), nn::ReLU(), nn::Linear(9, 6), nn::Tanh(),
                                        nn::Linear(6, 4))),
                  data, true, "");
  check_agreement(filled(std::make_shared<MixedImpl>()), data, true, "");
  check_agreement(filled(nn::Sequential(nn::Linear(4, 9), nn::Dropout(.5), nn::Linear(9, 4))), data,
                  true, "");  // in train mode, but measured in eval mode
  check_agreement(filled(std::make_shared<ResidualImpl>(4)), data, true, "");
  auto const few = data.select(torch::arange(20));
  check_agreement(filled(std::make_shared<ResidualImpl>(1)), few, false, "'bias' is broadcast");
  auto const images = data_of(draws({20, 1, 5, 5}, 3), labels(20, 4));
  check_agreement(convolutional(), images, true, "");
  auto norm = filled(nn::Sequential(nn::Linear(4, 6), nn::BatchNorm1d(6), nn::Linear(6, 4)));
  check_agreement(norm, data.select(torch::arange(40)), true, "");
  check_agreement(filled(nn::Sequential(nn::Linear(4, 6), nn::Softmax(nn::SoftmaxOptions(1)),
                                        nn::Linear(6, 4))),
                  few, false, "SoftmaxBackward0 is not known");
}

TEST_CASE("importances of a chain of layers need no graph of autograd") {
  auto const data = data_of(draws({300, 4}, 22), labels(300, 4));
  auto const chain = filled(nn::Sequential(nn::Flatten(), nn::Linear(4, 9), nn::ReLU(),
                                           nn::Linear(nn::LinearOptions(9, 6).bias(false)),
                                           nn::Sigmoid(), nn::Linear(6, 4)));
  CHECK(needs_no_graph(chain, data));
  check_agreement(chain, data, true, "");
  chain->children()[1]->named_parameters()["weight"].requires_grad_(false);
  chain->children()[5]->named_parameters()["bias"].requires_grad_(false);
  CHECK(needs_no_graph(chain, data));
  check_agreement(chain, data, true, "");
  CHECK_FALSE(needs_no_graph(filled(std::make_shared<MixedImpl>()), data));
  for (double const factor : {6., 2.006}) {  // the second scales by 1.003
    auto const scaled = filled(std::make_shared<ScaledImpl>(factor));
    CHECK_FALSE(needs_no_graph(scaled, data));
    check_agreement(scaled, data.select(torch::arange(20)), true, "");
  }
}

TEST_CASE("a chain that training has compared with the forward is not compared again") {
  auto const x = draws({40, 4}, 26);
  auto const experience = make_experience(x, labels(40, 4));
  for (double const factor : {2., 6.}) {  // the second is no chain
    auto net = filled(std::make_shared<ScaledImpl>(factor));
    Learner learner{net, Sgd{.lr = 0.01}};
    learner.fit(experience, {.iterations = 2});
    auto const calls = net->calls;
    PerSamplePath path;
    auto const f = fisher(learner.context(), experience.train, {}, &path);
    CHECK(path.compiled == (factor == 2));
    CHECK((net->calls == calls) == (factor == 2));
    auto const& arena = learner.context().arena;
    CHECK(relative(f, fisher_loop(learner.context().model, arena, experience.train)) <= 1e-6);
  }
}

TEST_CASE("with engine = reference, importances go by autograd's graph") {
  auto const x = draws({40, 4}, 25);
  auto const experience = make_experience(x, labels(40, 4));
  for (auto const engine : {Engine::compiled, Engine::reference}) {
    Learner learner{filled(nn::Sequential(nn::Linear(4, 5), nn::ReLU(), nn::Linear(5, 4))),
                    Sgd{.lr = 0.1}};
    learner.fit(experience, {.iterations = 1, .engine = engine});
    PerSamplePath path;
    fisher(learner.context(), experience.train, {}, &path);
    CHECK(path.batched);
    CHECK(path.compiled == (engine == Engine::compiled));
  }
}

// Rows enough, and zeros, for pawl's own products where they are built in; some 40 terms a sum.
TEST_CASE("importances in float32, of inputs that are mostly zero") {
  auto x = draws({700, 48}, 23).to(torch::kFloat32);
  x.mul_(draws({700, 48}, 24).gt(1));
  auto net = filled(nn::Sequential(nn::Linear(48, 40), nn::ReLU(), nn::Linear(40, 36), nn::ReLU(),
                                   nn::Linear(36, 5)));
  net->to(torch::kFloat32);
  Model const model = net;
  Arena const arena(*net);
  auto const y = labels(700, 5);
  auto const data = data_of(x, y);
  auto const active = [](Tensor const& z, Tensor const&, Tensor const&) {
    return z.masked_fill(column_mask({0, 1, 3, 4}, 5).logical_not(), -INFINITY);
  };
  Probe const probe{.model = model, .arena = arena, .active = active};
  auto as_double = filled(nn::Sequential(nn::Linear(48, 40), nn::ReLU(), nn::Linear(40, 36),
                                         nn::ReLU(), nn::Linear(36, 5)));
  Arena const wide(*as_double);
  {
    torch::NoGradGuard no_grad;
    for (std::size_t i = 0; i < wide.parameters().size(); ++i) {
      wide.parameters()[i].copy_(arena.parameters()[i]);
    }
  }
  Model const wide_model = as_double;
  Probe const exact{.model = wide_model, .arena = wide, .active = active, .allow_batched = false};
  auto const wide_data = data_of(x.to(torch::kFloat64), y);
  CHECK(relative(fisher(probe, data, {}), fisher(exact, wide_data, {})) <= 1e-5);
  CHECK(relative(sensitivity(probe, data, {}), sensitivity(exact, wide_data, {})) <= 1e-5);
}

TEST_CASE("convolutions of every kind, at once and one by one") {
  auto const images = data_of(draws({30, 2, 9, 9}, 8), labels(30, 4));
  auto const with = [](nn::Conv2d const& layer, std::int64_t features) {
    return filled(nn::Sequential(layer, nn::ReLU(nn::ReLUOptions().inplace(true)), nn::Flatten(),
                                 nn::Linear(features, 4)));
  };
  check_agreement(with(nn::Conv2d(nn::Conv2dOptions(2, 4, 3).stride(2).padding(1)), 100), images,
                  true, "");
  check_agreement(
      with(nn::Conv2d(nn::Conv2dOptions(2, 4, {3, 1}).padding({0, 2}).bias(false)), 364), images,
      true, "");
  check_agreement(with(nn::Conv2d(nn::Conv2dOptions(2, 4, 3).dilation(2).groups(2)), 100), images,
                  true, "");
  auto frozen = with(nn::Conv2d(2, 4, 3), 196);
  frozen->children()[0]->named_parameters()["weight"].requires_grad_(false);
  check_agreement(frozen, images, true, "");
  check_agreement(filled(nn::Sequential(nn::Conv2d(2, 4, 3), nn::MaxPool2d(2), nn::Conv2d(4, 4, 2),
                                        nn::AvgPool2d(2), nn::Flatten(), nn::Linear(4, 4))),
                  images, true, "");
  SlimResNet18 residual(2, 4, SlimResNet18Options{.nf = 2});
  check_agreement(filled(residual), images.select(torch::arange(8)), true, "");
  check_agreement(
      filled(nn::Sequential(nn::ConvTranspose2d(2, 2, 2), nn::Flatten(), nn::Linear(200, 4))),
      images, false, "not one of a Conv1d or Conv2d");
}

TEST_CASE("what lies under a kernel, as LibTorch says") {
  auto const images = draws({3, 2, 9, 8}, 13);
  for (auto const& x : {images, images.to(torch::kFloat32), images.transpose(2, 3)}) {
    for (std::int64_t i = 0; i < 81; ++i) {
      LayerUse const use{.kind = LayerUse::Kind::convolution,
                         .kernel = {1 + i % 3, 3 - i % 3},
                         .stride = {1 + i / 3 % 3, 3 - i / 3 % 3},
                         .padding = {i / 9 % 3, 2 - i / 9 % 3},
                         .dilation = {1 + i / 27, 1 + i / 27 % 2}};
      auto const expected =
          at::im2col(x.narrow(0, 1, 2), use.kernel, use.dilation, use.padding, use.stride);
      CHECK(Patches(use, x).of(1, 2).equal(expected));
    }
  }
}

TEST_CASE("signals and their convolutions, at once and one by one") {
  auto const signals = data_of(draws({30, 2, 12}, 10), labels(30, 4));
  nn::Conv1d const plain(nn::Conv1dOptions(2, 4, 3));
  nn::Conv1d const strided(nn::Conv1dOptions(4, 6, 3).stride(2).padding(1).dilation(2).groups(2));
  check_agreement(filled(nn::Sequential(plain, nn::ReLU(), strided, nn::BatchNorm1d(6),
                                        nn::MaxPool1d(2), nn::Flatten(), nn::Linear(12, 4))),
                  signals, true, "");
  check_agreement(filled(nn::Sequential(plain, nn::Tanh(), nn::AdaptiveAvgPool1d(1), nn::Flatten(),
                                        nn::Linear(4, 4))),
                  signals, true, "");
}

TEST_CASE("norms within a sample, at once and one by one") {
  auto const over = [](std::vector<std::int64_t> const& shape) {
    return nn::LayerNorm(nn::LayerNormOptions(shape).eps(0.1));
  };
  auto const rows = data_of(draws({30, 4}, 11), labels(30, 4));
  check_agreement(filled(nn::Sequential(nn::Linear(4, 6), over({6}), nn::Linear(6, 4))), rows, true,
                  "");
  auto const images = data_of(draws({30, 2, 5, 5}, 12), labels(30, 4));
  auto const groups = nn::GroupNorm(nn::GroupNormOptions(2, 4).eps(0.1));
  auto const channels_alone = nn::GroupNorm(nn::GroupNormOptions(4, 4).affine(false));
  check_agreement(filled(nn::Sequential(
                      nn::Conv2d(2, 4, 3), groups, nn::Tanh(), nn::Conv2d(4, 4, 1), channels_alone,
                      over({3}), over({4, 3, 3}), over({3, 3}), nn::Flatten(), nn::Linear(36, 4))),
                  images, true, "");
  auto shift_alone = filled(nn::Sequential(nn::Linear(4, 6), over({6}), nn::Linear(6, 4)));
  shift_alone->children()[1]->named_parameters()["weight"].requires_grad_(false);
  check_agreement(shift_alone, rows, false, "no scale that learns");

  // A bias before a norm of its channel has no gradient but rounding, in float32 more of it.
  auto cancels = filled(nn::Sequential(nn::Conv2d(2, 4, 3), channels_alone, nn::Tanh(),
                                       nn::Flatten(), nn::Linear(36, 4)));
  cancels->to(torch::kFloat32);
  auto const of_floats =
      data_of(images.read(torch::arange(30)).stored.to(torch::kFloat32), labels(30, 4));
  PerSamplePath path;
  fisher(cancels, Arena(*cancels), of_floats, {}, {}, {}, &path);
  CHECK(path.batched);
  sensitivity(cancels, Arena(*cancels), of_floats, {}, {}, {}, &path);
  CHECK(path.batched);
}

/// Its convolution has a stride that its module does not know of.
struct OtherStrideImpl : nn::Module {
  nn::Conv2d layer{register_module("layer", nn::Conv2d(2, 4, 3))};
  nn::Linear last{register_module("last", nn::Linear(64, 4))};
  Tensor forward(Tensor const& x) {
    return last(at::conv2d(x, layer->weight, layer->bias, at::IntArrayRef{2, 2})
                    .exp()
                    .clamp(0, 3)
                    .flatten(1));
  }
};

TEST_CASE("convolutions of other options than their module's go one by one") {
  auto const images = data_of(draws({12, 2, 9, 9}, 14), labels(12, 4));
  check_agreement(filled(std::make_shared<OtherStrideImpl>()), images, false, "other options");
}

TEST_CASE("convolutions that share weights or statistics go one by one") {
  auto const images = data_of(draws({12, 2, 5, 5}, 9), labels(12, 4));
  nn::Conv2d twice(nn::Conv2dOptions(2, 2, 3).padding(1));
  check_agreement(
      filled(nn::Sequential(twice, nn::Tanh(), twice, nn::Flatten(), nn::Linear(50, 4))), images,
      false, "is used twice");
  nn::BatchNorm2d norm(nn::BatchNorm2dOptions(2).track_running_stats(false));
  check_agreement(
      filled(nn::Sequential(nn::Conv2d(2, 2, 3), norm, nn::Flatten(), nn::Linear(18, 4))), images,
      false, "no statistics of its own");
}

TEST_CASE("weights that are used twice are summed over their uses before squaring") {
  auto const data = data_of(draws({30, 4}, 4), labels(30, 4));
  check_agreement(filled(std::make_shared<SharedImpl>()), data, false,
                  "parameter 'layer.weight' is used twice");
}

TEST_CASE("a module that mixes its rows is found out and done one sample at a time") {
  auto const data = data_of(draws({30, 4}, 5), labels(30, 4));
  check_agreement(filled(std::make_shared<CoupledImpl>()), data, false,
                  "samples influence each other");
}

TEST_CASE("several positions per sample are no rows of samples") {
  auto net = filled(nn::Sequential(nn::Linear(4, 3), nn::Tanh(), nn::Flatten(), nn::Linear(6, 4)));
  check_agreement(net, data_of(draws({10, 2, 4}, 6), labels(10, 4)), false,
                  "not known to act row by row");
}

TEST_CASE("only the head of the trained task gets importance") {
  MultiHead head(5, 2, 3, Seed{1});
  nn::Sequential net(nn::Linear(4, 5), nn::Tanh(), head);
  net->to(torch::kFloat64);
  auto data = data_of(draws({30, 4}, 7), labels(30, 2));
  data.tasks = torch::ones({30}, torch::kInt64);
  check_agreement(net, data, true, "");
  auto mixed = data;
  mixed.tasks = torch::arange(30) % 3;
  check_agreement(net, mixed, false, "IndexSelect");
  Arena const arena(*net);
  for (auto const& importance : {fisher(net, arena, data), sensitivity(net, arena, data)}) {
    for (std::size_t i = 0; i < arena.layout().size(); ++i) {
      auto const& name = arena.layout()[i].name;
      auto const idle = name.ends_with("0") || name.ends_with("2");
      auto const own = arena.parameter_view(importance, i).max().item<double>();
      CHECK((own == 0) == (idle && name.starts_with("2.")));
    }
  }
}

TEST_CASE("outputs outside the active set count as if they were not there") {
  auto layer = filled(nn::Linear(3, 5));
  Arena const arena(*layer);
  Model const net = nn::Sequential(layer);
  auto const data = data_of(draws({20, 3}, 8), labels(20, 2));
  nn::Linear narrow(3, 2);
  narrow->to(torch::kFloat64);
  {
    torch::NoGradGuard no_grad;
    narrow->weight.copy_(layer->weight.narrow(0, 0, 2));
    narrow->bias.copy_(layer->bias.narrow(0, 0, 2));
  }
  Arena const small(*narrow);
  Model const part = nn::Sequential(narrow);
  ActiveLogits const cut = [](Tensor const& z, Tensor const&, Tensor const&) {
    return z.narrow(1, 0, 2);
  };
  ActiveLogits const hide = [](Tensor const& z, Tensor const&, Tensor const&) {
    return z.masked_fill(column_mask({0, 1}, 5).logical_not(), -INFINITY);
  };
  PerSamplePath path;
  auto const check = [&](Tensor const& wide, Tensor const& reference) {
    CHECK(close(first(arena, wide).narrow(0, 0, 2), first(small, reference)));
    CHECK(first(arena, wide).narrow(0, 2, 3).abs().max().item<double>() == 0);
    CHECK(path.batched);
  };
  for (auto const& active : {cut, hide}) {
    for (auto const kind : {FisherLabels::exact, FisherLabels::sampled, FisherLabels::predicted,
                            FisherLabels::empirical}) {
      check(fisher(net, arena, data, {.labels = kind}, {}, active, &path),
            fisher(part, small, data, {.labels = kind}));
    }
    for (auto const mean : {false, true}) {
      check(sensitivity(net, arena, data, {.mean_outputs = mean}, {}, active, &path),
            sensitivity(part, small, data, {.mean_outputs = mean}));
    }
  }
}

/// Takes importances where a strategy would: when an experience ends.
struct TakesImportance {
  Tensor exact{}, batch{}, omega{}, weights{};
  void end(Context& c, Experience const& experience) {
    exact = fisher(c, experience.train, {});
    batch = fisher(c, experience.train, {.labels = FisherLabels::batch});
    omega = sensitivity(c, experience.train, {});
    weights = c.weights().clone();
  }
};

TEST_CASE("a learner's importance is over the outputs that are active in its loss") {
  auto const x = draws({24, 4}, 20);
  auto const y = torch::arange(24) % 2 + 2;  // labels 2 and 3 of 5
  for (auto const active : {Active::all, Active::seen, Active::current, Active::batch}) {
    auto net = filled(nn::Sequential(nn::Linear(4, 5)));
    Learner learner{net, Sgd{}, TakesImportance{}};
    auto const experience = make_experience(x, y);
    learner.fit(experience, {.batch_size = 6, .active = active});
    auto const& taken = learner.strategy<TakesImportance>();
    auto const& c = learner.context();
    REQUIRE(taken.weights.equal(c.weights()));
    std::vector<std::int64_t> const outputs = active == Active::all
                                                  ? std::vector<std::int64_t>{0, 1, 2, 3, 4}
                                                  : std::vector<std::int64_t>{2, 3};
    ActiveLogits const hide = [&](Tensor const& z, Tensor const&, Tensor const&) {
      return z.masked_fill(column_mask(outputs, 5).logical_not(), -INFINITY);
    };
    auto const& data = experience.train;
    CHECK(close(taken.exact, fisher(c.model, c.arena, data, {}, {}, hide)));
    CHECK(close(taken.omega, sensitivity(c.model, c.arena, data, {}, {}, hide)));
    CHECK(close(taken.batch, fisher(c.model, c.arena, data,
                                    {.labels = FisherLabels::batch, .batch_size = 6}, {}, hide)));
    CHECK(taken.exact.max().item<double>() > 0);
  }
}

TEST_CASE("importances do not depend on how many samples go at once") {
  Model const net = filled(nn::Sequential(nn::Linear(4, 7), nn::Tanh(), nn::Linear(7, 3)));
  Arena const arena(*net.module);
  auto const data = data_of(draws({50, 4}, 21), labels(50, 3));
  for (auto const kind : {FisherLabels::exact, FisherLabels::sampled}) {
    auto const whole_set =
        fisher({.model = net, .arena = arena, .chunk = 64}, data, {.labels = kind});
    for (std::int64_t const chunk : {1, 7, 49}) {
      Probe const probe{.model = net, .arena = arena, .chunk = chunk};
      CHECK(relative(fisher(probe, data, {.labels = kind}), whole_set) <= 1e-12);
    }
  }
}

TEST_CASE("a subset is fixed by its seed, and the normaliser is N or N - 1") {
  Model const net = filled(nn::Sequential(nn::Linear(4, 3)));
  Arena const arena(*net.module);
  auto const data = data_of(draws({40, 4}, 9), labels(40, 3));
  FisherOptions const few{.samples = 10};
  auto const f = fisher(net, arena, data, few, {1});
  CHECK(f.equal(fisher(net, arena, data, few, {1})));
  CHECK_FALSE(f.equal(fisher(net, arena, data, few, {2})));
  Probe const probe{.model = net, .arena = arena, .seed = {1}};
  auto const positions = probe.choose(40, 10);
  CHECK(std::get<0>(at::_unique(positions)).numel() == 10);
  CHECK(close(f, fisher(net, arena, data.select(positions))));
  FisherOptions const shifted{.divide_by_n_minus_1 = true};
  CHECK(close(fisher(net, arena, data, shifted) * 39, fisher(net, arena, data) * 40));
  FisherOptions const sampled{.labels = FisherLabels::sampled};
  auto const drawn = fisher(net, arena, data, sampled, {1});
  CHECK(drawn.equal(fisher(net, arena, data, sampled, {1})));
  CHECK_FALSE(drawn.equal(fisher(net, arena, data, sampled, {2})));
}

TEST_CASE("readings by batch are means over the batches, the last one short") {
  Model const net = filled(nn::Sequential(nn::Linear(4, 3)));
  Arena const arena(*net.module);
  auto const data = data_of(draws({5, 4}, 10), labels(5, 3));
  FisherOptions const pairs{.labels = FisherLabels::batch, .batch_size = 3};
  auto const head = fisher(net, arena, data.select(torch::arange(3)), pairs);
  auto const tail = fisher(net, arena, data.select(torch::arange(3, 5)), pairs);
  CHECK(close(fisher(net, arena, data, pairs), (head + tail) / 2));
  PerSamplePath path;
  auto const single =
      fisher(net, arena, data, {.labels = FisherLabels::batch, .batch_size = 1}, {}, {}, &path);
  CHECK(close(single, fisher(net, arena, data, {.labels = FisherLabels::empirical})));
  CHECK(path.batched);
}

TEST_CASE("an importance leaves buffers, gradients, modes and generators as found") {
  auto net = convolutional();
  net->train();
  net[1]->eval();
  Model const model = net;
  Arena const arena(*net);
  auto const data = data_of(draws({12, 1, 5, 5}, 11), labels(12, 4));
  for (auto& p : net->parameters()) p.mutable_grad() = torch::full_like(p, 2);
  net[4]->as<nn::Linear>()->bias.mutable_grad() = Tensor();
  std::vector<Tensor> before;
  for (auto const& b : net->buffers()) before.push_back(b.clone());
  auto const weights = arena.weights().clone();
  auto const generator = at::detail::getDefaultCPUGenerator();
  auto const noise = generator.get_state();
  fisher(model, arena, data);
  fisher(model, arena, data, {.labels = FisherLabels::batch});
  sensitivity(model, arena, data);
  CHECK(generator.get_state().equal(noise));
  for (std::size_t i = 0; i < before.size(); ++i) CHECK(net->buffers()[i].equal(before[i]));
  CHECK(arena.weights().equal(weights));
  CHECK_FALSE(net[4]->as<nn::Linear>()->bias.grad().defined());
  CHECK(net[0]->as<nn::Conv2d>()->weight.grad().eq(2).all().item<bool>());
  CHECK(net->is_training());
  CHECK_FALSE(net[1]->is_training());
  CHECK(net[2]->is_training());
}

TEST_CASE("BatchNorm is measured with its running statistics") {
  auto net = filled(nn::Sequential(nn::BatchNorm1d(3), nn::Linear(3, 2)));
  net->train();
  Arena const arena(*net);
  auto const data = data_of(draws({8, 3}, 12), labels(8, 2));
  auto const one = fisher(net, arena, data.select(torch::tensor({0})));
  auto all = one.clone();
  for (std::int64_t i = 1; i < 8; ++i) all += fisher(net, arena, data.select(torch::tensor({i})));
  CHECK(one.abs().max().item<double>() > 0);
  CHECK(close(fisher(net, arena, data), all / 8));
}

TEST_CASE("the sensitivity of an affine map has the values computed by hand") {
  Model const net = linear(torch::eye(2, torch::kFloat64));
  Arena const arena(*net.module);
  auto const omega = [&](Tensor const& x, SensitivityOptions const& options) {
    return first(arena, sensitivity(net, arena,
                                    data_of(x, torch::zeros({x.size(0)}, torch::kInt64)), options));
  };
  auto const batch = SensitivityOptions::Reading::batch;
  CHECK(close(omega(values({1, 2}, {1, 2}), {}), values({2, 4, 4, 8}, {2, 2})));
  CHECK(close(omega(values({1, 2}, {1, 2}), {.mean_outputs = true}), values({1, 2, 2, 4}, {2, 2})));
  auto const two = values({1, 1, 1, -1}, {2, 2});
  CHECK(close(omega(two, {}), values({2, 2, 2, 2}, {2, 2})));
  CHECK(close(omega(two, {.reading = batch}), values({2, 0, 0, 2}, {2, 2})));
  CHECK(close(omega(two, {.reading = batch, .batch_size = 1}), values({2, 2, 2, 2}, {2, 2})));
}

TEST_CASE("the sensitivity of an affine map in closed form, whatever the labels") {
  auto layer = filled(nn::Linear(3, 4));
  Arena const arena(*layer);
  Model const net = nn::Sequential(layer);
  auto const x = draws({30, 3}, 13);
  auto const omega = sensitivity(net, arena, data_of(x, labels(30, 4)));
  auto const z = layer(x).detach();
  CHECK(close(arena.parameter_view(omega, 0), 2 * z.abs().t().mm(x.abs()) / 30));
  CHECK(close(arena.parameter_view(omega, 1), 2 * z.abs().mean(0)));
  CHECK(omega.equal(sensitivity(net, arena, data_of(x, labels(30, 4).flip(0)))));
}

TEST_CASE("sums over samples are float32 at least") {
  auto const data = data_of(draws({6, 4}, 14), labels(6, 3));
  for (auto const type : {torch::kBFloat16, torch::kFloat32, torch::kFloat64}) {
    nn::Sequential net(nn::Linear(4, 5), nn::ReLU(), nn::Linear(5, 3));
    net->to(type);
    Arena const arena(*net);
    auto const wanted = type == torch::kBFloat16 ? torch::kFloat32 : type;
    auto const f = fisher(net, arena, data);
    CHECK((f.scalar_type() == wanted));
    CHECK(f.sizes() == arena.weights().sizes());
    CHECK(f.sum().item<double>() > 0);
    CHECK((sensitivity(net, arena, data).scalar_type() == wanted));
  }
}

TEST_CASE("importances of float models agree with those of double ones") {
  auto net = filled(nn::Sequential(nn::Linear(4, 9), nn::ReLU(), nn::Linear(9, 3)));
  auto const data = data_of(draws({600, 4}, 15), labels(600, 3));
  Arena wide(*net);
  auto const f = fisher(net, wide, data);
  auto const omega = sensitivity(net, wide, data);
  net->to(torch::kFloat32);
  Arena const narrow(*net);
  CHECK(relative(fisher(net, narrow, data).to(torch::kFloat64), f) < 1e-5);
  CHECK(relative(sensitivity(net, narrow, data).to(torch::kFloat64), omega) < 1e-5);
}

TEST_CASE("an importance of nothing, or of labels without an output, is refused") {
  Model const net = filled(nn::Sequential(nn::Linear(2, 2)));
  Arena const arena(*net.module);
  auto const data = data_of(draws({3, 2}, 16), torch::tensor({0, 1, 5}));
  auto const none = data.select(torch::empty({0}, torch::kInt64));
  CHECK_THROWS_WITH_AS(fisher(net, arena, none), doctest::Contains("0 samples are too few"), Error);
  CHECK_THROWS_WITH_AS(sensitivity(net, arena, none), doctest::Contains("has no rows"), Error);
  CHECK_THROWS_WITH_AS(
      fisher(net, arena, data.select(torch::tensor({0})), {.divide_by_n_minus_1 = true}),
      doctest::Contains("too few"), Error);
  CHECK_THROWS_WITH_AS(fisher(net, arena, data, {.labels = FisherLabels::empirical}),
                       doctest::Contains("label 5 is not among the 2 outputs"), Error);
  ActiveLogits const hide = [](Tensor const& z, Tensor const&, Tensor const&) {
    return z.masked_fill(column_mask({0}, 2).logical_not(), -INFINITY);
  };
  CHECK_THROWS_WITH_AS(fisher(net, arena, data, {.labels = FisherLabels::empirical}, {}, hide),
                       doctest::Contains("not among the"), Error);
  CHECK_THROWS_WITH_AS(fisher(net, arena, data.select(torch::tensor({1})),
                              {.labels = FisherLabels::empirical}, {}, hide),
                       doctest::Contains("not among the active outputs"), Error);
}
