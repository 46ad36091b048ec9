// Linear layers inside of any module: whose products they are, and what autograd sees of them.

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "../core/networks.hpp"

#include <ATen/autocast_mode.h>
#include <torch/nn/functional/linear.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/normalization.h>
#include <pawl/core/any_learner.hpp>
#include <pawl/importance/fisher.hpp>
#include <pawl/importance/sensitivity.hpp>
#include <pawl/models/mlp.hpp>
#include <pawl/optimizers/adam.hpp>
#include <pawl/strategies/a_gem.hpp>
#include <pawl/strategies/der.hpp>
#include <pawl/strategies/ewc.hpp>
#include <pawl/strategies/lwf.hpp>

#include <doctest/doctest.h>  // after LibTorch, whose own CHECK must not win

using namespace networks;

namespace {

constexpr std::int64_t width = 40;  // more than a vector, and no multiple of one

/// What all of these networks have.
struct Net : nn::Module {
  nn::Linear first{register_module("first", nn::Linear(5, width))};
  nn::Linear second{register_module("second", nn::Linear(width, width))};
  nn::Linear last{register_module("last", nn::Linear(width, 3))};
};

struct Plain : Net {
  Tensor forward(Tensor x) { return last(second(first(x.flatten(1)).relu()).relu()); }
};

struct Residual : Net {
  Tensor forward(Tensor x) {
    x = first(x).relu();
    return last(x + at::gelu(second(x)));
  }
};

/// One layer has no bias, and normalises what it gives.
struct Unbiased : Net {
  nn::LayerNorm norm{register_module("norm", nn::LayerNorm(nn::LayerNormOptions({width})))};
  Unbiased() {
    second = replace_module("second", nn::Linear(nn::LinearOptions(width, width).bias(false)));
  }
  Tensor forward(Tensor x) { return last(norm(second(first(x).relu())).tanh()); }
};

/// One layer is used twice.
struct Twice : Net {
  Tensor forward(Tensor x) { return last(second(second(first(x)).tanh()).tanh()); }
};

/// Its weights are also used as numbers, before and after their layers use them.
struct Scaled : Net {
  Tensor forward(Tensor x) {
    x = first(x).tanh() * first->weight.square().mean();
    x = second(x * second->bias.exp());
    return last(x) / (1 + last->weight.square().sum());
  }
};

/// Rows have another dimension, a layer has no bias, and a weight comes in another way.
struct Tokens : nn::Module {
  nn::Linear first{register_module("first", nn::Linear(nn::LinearOptions(1, width).bias(false)))};
  nn::Linear last{register_module("last", nn::Linear(width, 3))};
  Tensor loose = register_parameter("loose", torch::randn({width, width}) / 10);
  Tensor forward(Tensor x) {
    x = first(x.unsqueeze(2)).tanh().mean(1);
    return last(x.mm(loose).tanh() + x.matmul(loose.transpose(0, 1)));
  }
};

/// A transformer's block: tokens, one of which is a parameter, attend to each other. (A bias of
/// keys would have no gradient but rounding, which Adam turns into steps.)
struct Attends : Net {
  nn::Linear embed{register_module("embed", nn::Linear(1, width))};
  nn::LayerNorm norm{register_module("norm", nn::LayerNorm(nn::LayerNormOptions({width})))};
  nn::Linear all{
      register_module("all", nn::Linear(nn::LinearOptions(width, 3 * width).bias(false)))};
  Tensor token = register_parameter("token", torch::randn({1, 1, width}) / 10);
  Tensor place = register_parameter("place", torch::randn({1, 6, width}) / 10);
  Attends() { unregister_module("first"); }
  Tensor forward(Tensor x) {
    x = embed(x.flatten(1).unsqueeze(2));
    x = torch::cat({token.expand({x.size(0), 1, width}), x}, 1) + place;
    auto const h = all(norm(x)).view({x.size(0), 6, 3, 4, width / 4}).permute({2, 0, 3, 1, 4});
    auto const seen = at::scaled_dot_product_attention(h[0], h[1], h[2]);
    x = x + seen.transpose(1, 2).reshape(x.sizes());
    x = x + at::gelu(second(x));
    return last(x.select(1, 0));
  }
};

struct Frozen : Net {
  Frozen() { second->weight.set_requires_grad(false), first->bias.set_requires_grad(false); }
  Tensor forward(Tensor x) { return last(second(first(x).tanh()).tanh()); }
};

/// Of its layers, one learns from a part of the rows alone, the weight of one goes by a detour.
struct Detours : Net {
  Tensor forward(Tensor x) {
    x = first(x).tanh();
    x = torch::cat({second(x.narrow(0, 0, 1)), x.narrow(0, 1, x.size(0) - 1)});
    return torch::addmm(last->bias, x, (last->weight / 2).t()) +
           torch::addmm(last->bias, x, last->weight.t(), 2, 0.5) +
           torch::addmm(last->bias, x, last->weight.detach().t());
  }
};

struct Drops : Net {
  nn::Dropout drop{register_module("drop", nn::Dropout(0.3))};
  nn::BatchNorm1d norm{register_module("norm", nn::BatchNorm1d(5))};
  Tensor forward(Tensor x) { return last(drop(second(drop(first(norm(x)).relu())).relu())); }
};

/// What goes into a layer is a parameter.
struct Prototypes : Net {
  Tensor prototypes = register_parameter("prototypes", torch::randn({3, width}) / 10);
  Prototypes() {  // they move before the weight that they are multiplied with
    unregister_module("second");
    register_module("second", second);
  }
  Tensor forward(Tensor x) { return first(x).tanh().matmul(second(prototypes).tanh().t()); }
};

/// What a frozen layer was given changes afterwards, and so does a weight that is not needed again.
struct Changes : Net {
  Changes() { second->weight.set_requires_grad(false), second->bias.set_requires_grad(false); }
  Tensor forward(Tensor x) {
    x = first(x);
    {
      torch::NoGradGuard const no_graph;
      first->weight.clamp_(-0.5, 0.5);
    }
    auto const h = second(x);
    x += h;
    return last(x.tanh());
  }
};

/// Its gradient is another one than that of y = x: none where `share` is 0.
struct Diverts : torch::autograd::Function<Diverts> {
  static Tensor forward(torch::autograd::AutogradContext* context, Tensor const& x, double share) {
    context->saved_data["share"] = share;
    return x.clone();
  }
  static std::vector<Tensor> backward(torch::autograd::AutogradContext* context,
                                      std::vector<Tensor> const& d) {
    auto const share = context->saved_data["share"].toDouble();
    return {share == 0 ? Tensor() : d[0] * share, Tensor()};
  }
};

/// A layer that nobody learns from.
struct Stops : Net {
  Tensor forward(Tensor x) {
    x = first(x).tanh();
    return last(x + Diverts::apply(second(x), 0.));
  }
};

/// A layer that differentiates another one by itself, and turns what it finds around.
struct Inner : torch::autograd::Function<Inner> {
  static Tensor forward(torch::autograd::AutogradContext* context, Tensor const& x, Tensor const& w,
                        Tensor const& b) {
    context->save_for_backward({x, w, b});
    return torch::addmm(b, x, w.t());
  }
  static std::vector<Tensor> backward(torch::autograd::AutogradContext* context,
                                      std::vector<Tensor> const& d) {
    auto const saved = context->get_saved_variables();
    torch::AutoGradMode const graph(true);
    LinearLayers::Scope const layers(true);
    auto const x = saved[0].detach().requires_grad_(true);
    auto const y = torch::addmm(saved[2], x, saved[1].t());
    auto found = torch::autograd::grad({y}, {x, saved[1], saved[2]}, {d[0]});
    for (auto& g : found) g = -g;
    return found;
  }
};
struct Nested : Net {
  Tensor forward(Tensor x) {
    return last(Inner::apply(first(x).tanh(), second->weight, second->bias).tanh());
  }
};

/// Words that are compared with their own embedding, whose gradient is sparse.
struct Tied : nn::Module {
  Tensor words = register_parameter("words", torch::randn({3, width}) / 10);
  nn::Linear first{register_module("first", nn::Linear(5, width))};
  Tensor forward(Tensor x) {
    auto const some = torch::embedding(words, x.argmax(1).remainder(3), -1, false, /*sparse=*/true);
    return (first(x).tanh() + some).matmul(words.t());
  }
};

/// A penalty of its own on weights, which autograd differentiates.
struct Decays {
  static constexpr char const* name = "decays";
  Tensor penalty(Context& c) { return c.arena.parameters()[0].square().sum() / 10; }
};

/// Looks at the gradient of each step when the next one begins.
struct Asks {
  static constexpr char const* name = "asks";
  Batch extend(Context& c, Batch b) {
    if (c.step == 0) return b;
    waiting.push_back(c.arena.has_unformed());
    gradients.push_back(c.arena.gradient().clone());
    return b;
  }
  std::vector<bool> waiting{};
  std::vector<Tensor> gradients{};
};

/// Small weights, so that differences do not grow.
void prepare(Model const& net) {
  draw_weights(*net.module);
  torch::NoGradGuard const no_graph;
  for (auto& p : net.parameters()) p.mul_(0.3);
}

struct Trained {
  std::vector<Tensor> weights{};
  std::string engine{};
};

/// Three experiences of 64 rows in steps of 16, the second with zeros; then one of 9 rows.
template <class... S>
Trained train(Model const& net, Engine engine, std::int64_t shards, AnyOptimizer const& optimizer,
              S const&... strategies) {
  prepare(net);
  Learner learner{net, optimizer, strategies...};
  for (std::int64_t i = 0; i < 4; ++i) {
    auto const all = rows(i == 3 ? 9 : 64, torch::kFloat32, 1, false, i);
    auto const x = all.train.read(torch::arange(all.train.size())).stored;
    auto const some = make_experience(x.relu(), all.train.labels, {}, i);
    learner.fit(i == 1 ? some : all,
                {.epochs = 2, .batch_size = i == 3 ? 9 : 16, .shards = shards, .engine = engine});
  }
  Trained result{.engine = learner.context().engine()};
  for (auto const& p : net.parameters()) result.weights.push_back(p.detach().clone());
  return result;
}

/// Whether this build and processor have products of pawl; from here on by one thread.
bool own_products() {
  at::set_num_threads(1);
  return products::uses_own_products();
}

template <class N, class... S>
void check_same(AnyOptimizer const& optimizer, S const&... strategies) {
  std::string const way = own_products() ? "layers" : "reference";
  for (std::int64_t const shards : {1, 2}) {
    auto const by = [&](Engine engine) {
      return train(std::make_shared<N>(), engine, shards, optimizer, strategies...);
    };
    auto const fast = by(Engine::compiled), again = by(Engine::compiled);
    auto const slow = by(Engine::reference);
    CHECK(fast.engine == way + ": the model is not a chain of layers");
    CHECK(slow.engine == "reference");
    for (std::size_t i = 0; i < slow.weights.size(); ++i) {
      CAPTURE(i);
      CHECK(fast.weights[i].allclose(slow.weights[i], 1e-4, 1e-5));
      CHECK(fast.weights[i].equal(again.weights[i]));
    }
  }
}

/// Products of pawl that `f()` asks for on this thread.
template <class F>
std::int64_t products_in(F&& f) {
  static thread_local std::int64_t seen = 0;
  seen = 0;
  auto const handle =
      at::addThreadLocalCallback(at::RecordFunctionCallback([](at::RecordFunction const& call) {
                                   seen += call.name() == std::string("pawl::mm");
                                   return std::unique_ptr<at::ObserverContext>();
                                 }).scopes({at::RecordScope::FUNCTION}));
  f();
  at::removeCallback(handle);
  return seen;
}

/// Importances of a network's parameters in batches where they can be, and one sample at a time
/// by LibTorch's operations alone.
template <class N>
void check_importances(bool batched) {
  auto const products_of_a_batch = own_products() && batched;
  Model const net = std::make_shared<N>();
  prepare(net);
  Arena const arena(*net.module);
  auto const all = rows(150, torch::kFloat32);
  PerSamplePath path;
  Probe const usual{.model = net, .arena = arena, .path = &path};
  Probe const slow{.model = net, .arena = arena, .allow_batched = false, .reference = true};
  Probe const reference{.model = net, .arena = arena, .reference = true};
  for (auto const* probe : {&usual, &reference}) {
    ProducedTensors produced;
    auto const z = probe->logits(all.train, all.train.read(torch::arange(9)), &produced);
    auto const met = LinearLayers::is_product(*z.grad_fn());
    if (batched) CHECK(met == (products_of_a_batch && probe == &usual));
  }
  auto const check = [&](auto&& of) {
    Tensor found, by_graph, expected;
    auto const seen = products_in([&] { found = of(usual); });
    CAPTURE(path.obstacle);
    CHECK(path.batched == batched);
    CHECK_FALSE(path.compiled);
    if (batched) CHECK((seen > 0) == products_of_a_batch);
    CHECK(products_in([&] { expected = of(slow); }) == 0);
    CHECK(products_in([&] { by_graph = of(reference); }) == 0);
    CHECK(by_graph.allclose(found, 1e-4, 1e-6 * expected.abs().max().item<double>()));
    CHECK((found - expected).abs().max().item<double>() <=
          2e-5 * expected.abs().max().item<double>());
  };
  for (auto const labels : {FisherLabels::exact, FisherLabels::empirical}) {
    check([&](Probe const& probe) { return fisher(probe, all.train, {.labels = labels}); });
  }
  check([&](Probe const& probe) { return sensitivity(probe, all.train, {}); });
}

std::string node_of(Tensor const& y) { return y.grad_fn()->name(); }

}  // namespace

TEST_CASE_TEMPLATE("the linear layers of any module give the weights of autograd", N, Plain,
                   Residual, Twice, Scaled, Tokens, Attends, Frozen, Detours, Drops, Prototypes,
                   Changes, Stops, Nested, Tied) {
  check_same<N>(Sgd{.lr = 0.1});
  check_same<N>(Sgd{.lr = 0.05, .momentum = 0.9, .weight_decay = 0.01});
  check_same<N>(Adam{.lr = 0.002});
}

TEST_CASE_TEMPLATE("strategies see the same steps, too", N, Plain, Twice, Scaled, Attends,
                   Detours) {
  check_same<N>(Sgd{.lr = 0.1}, Decays{});
  check_same<N>(Sgd{.lr = 0.1}, Ewc{.strength = 1});
  check_same<N>(Sgd{.lr = 0.1}, AGem{.batch = 20});
  check_same<N>(Sgd{.lr = 0.1}, Lwf{});
  check_same<N>(Sgd{.lr = 0.1}, DerPlusPlus{.forward = Forward::separate});
}

TEST_CASE_TEMPLATE("importances go by the same products", N, Plain, Residual, Unbiased, Frozen) {
  check_importances<N>(true);
}

TEST_CASE_TEMPLATE("importances find what is more than a layer, and go sample by sample", N, Twice,
                   Scaled, Tokens, Attends, Detours, Prototypes) {
  check_importances<N>(false);
}

/// Might look at the gradient.
struct Looks {
  static constexpr char const* name = "looks";
  void edit_gradient(Context&) {}
};

TEST_CASE_TEMPLATE("whether a gradient is formed or not, weights have the same bits", N, Plain,
                   Twice, Scaled, Prototypes, Detours) {
  at::set_num_threads(1);
  auto const by = [](auto const&... strategies) {
    return train(std::make_shared<N>(), Engine::compiled, 1, Sgd{.lr = 0.1}, strategies...).weights;
  };
  auto const compare = [&](auto const&... strategies) {
    auto const waiting = by(strategies...), formed = by(strategies..., Looks{});
    for (std::size_t i = 0; i < formed.size(); ++i) CHECK(waiting[i].equal(formed[i]));
  };
  compare();
  compare(Decays{});
}

TEST_CASE("a chain whose weights autograd moves, too, has the same bits either way") {
  at::set_num_threads(1);
  auto const by = [](auto const&... strategies) {
    Mlp const net(5, 3, MlpOptions{.hidden = {width}}, Seed{1});
    return train(net, Engine::compiled, 1, Sgd{.lr = 0.1}, Decays{}, strategies...).weights;
  };
  auto const waiting = by(), formed = by(Looks{});
  for (std::size_t i = 0; i < formed.size(); ++i) CHECK(waiting[i].equal(formed[i]));
}

TEST_CASE("heads of other tasks are found to need no pass of their own") {
  at::set_num_threads(1);
  for (auto const engine : {Engine::compiled, Engine::reference}) {
    Learner learner{network_of_tasks(torch::kFloat32), Sgd{.lr = 0.1}, Lwf{}};
    for (std::int64_t i = 0; i < 2; ++i) {
      auto experience = rows(64, torch::kFloat32, 1, true, i);
      learner.fit(experience, {.batch_size = 16, .engine = engine});
    }
    CHECK(learner.strategy<Lwf>().heads_alone == true);
  }
}

TEST_CASE("gradients of weights wait, and are whole once somebody asks") {
  if (!own_products()) return;
  auto const seen = [](Model const& net, Engine engine) {
    prepare(net);
    Learner learner{net, Sgd{.lr = 0.1}, Asks{}};
    learner.fit(rows(64, torch::kFloat32), {.batch_size = 16, .engine = engine});
    return learner.strategy<Asks>();
  };
  auto const compare = [&](auto make) {
    auto const fast = seen(make(), Engine::compiled), slow = seen(make(), Engine::reference);
    CHECK(fast.waiting == std::vector<bool>(3, true));
    CHECK(slow.waiting == std::vector<bool>(3, false));
    for (std::size_t i = 0; i < 3; ++i)
      CHECK(fast.gradients[i].allclose(slow.gradients[i], 1e-4, 1e-6));
  };
  compare([] { return std::make_shared<Residual>(); });
  compare([] { return std::make_shared<Scaled>(); });
}

TEST_CASE("whoever differentiates finds all gradients in the graph, and may do so again") {
  at::set_num_threads(1);
  NoiseScope const noise(Generator(4));
  auto const net = std::make_shared<Scaled>();
  draw_weights(*net);
  auto const x = torch::randn({12, 5}).requires_grad_(true);
  auto const all = [&](bool ours) {
    std::optional<LinearLayers::Scope> scope;
    scope.emplace(ours);
    auto const y = net->forward(x);
    scope.reset();
    auto sources = net->parameters();
    sources.push_back(x);
    auto const first = torch::autograd::grad({y.square().sum()}, sources, {}, true, true);
    auto length = torch::zeros({});
    for (auto const& g : first) length = length + g.square().sum();
    auto found = torch::autograd::grad({length}, sources);
    found.insert(found.end(), first.begin(), first.end());
    found.push_back(y);
    return found;
  };
  auto const fast = all(true), slow = all(false);
  for (std::size_t i = 0; i < slow.size(); ++i) CHECK(fast[i].allclose(slow[i], 1e-3, 1e-4));
}

TEST_CASE("hooks on parameters are called, with their gradients") {
  at::set_num_threads(1);
  auto const heard = [](Engine engine) {
    auto const net = std::make_shared<Plain>();
    prepare(net);
    std::vector<Tensor> gradients;
    net->second->weight.register_hook([&](Tensor const& g) { gradients.push_back(g.clone()); });
    net->last->bias.register_hook([&](Tensor const& g) {
      gradients.push_back(g.clone());
      return g * 2;
    });
    Learner learner{net, Sgd{.lr = 0.1}};
    learner.fit(rows(64, torch::kFloat32), {.batch_size = 16, .engine = engine});
    gradients.push_back(learner.context().weights().clone());
    return gradients;
  };
  auto const fast = heard(Engine::compiled), slow = heard(Engine::reference);
  REQUIRE(fast.size() == 4 * 2 + 1);
  REQUIRE(slow.size() == fast.size());
  for (std::size_t i = 0; i < slow.size(); ++i) CHECK(fast[i].allclose(slow[i], 1e-4, 1e-5));
}

/// Listens to a parameter from within a step.
struct Listens {
  static constexpr char const* name = "listens";
  Tensor penalty(Context& c) {
    if (!std::exchange(listening, true)) {
      c.arena.parameters()[0].register_hook([](Tensor const& g) { return g * 3; });
    }
    return {};
  }
  bool listening = false;
};

TEST_CASE("a hook may come after the forward pass") {
  check_same<Plain>(Sgd{.lr = 0.1}, Listens{});
}

TEST_CASE("what does not suit goes LibTorch's way") {
  if (!own_products()) return;
  auto const w = torch::randn({7, 5}).requires_grad_(true), b = torch::randn({7});
  auto const x = torch::randn({4, 5});
  auto const ours = [&] { return node_of(torch::addmm(b, x, w.t())) != "AddmmBackward0"; };
  CHECK_FALSE(ours());
  {
    LinearLayers::Scope const no(false);
    CHECK_FALSE(ours());
  }
  LinearLayers::Scope const yes(true);
  CHECK(ours());
  std::thread([&] { CHECK_FALSE(ours()); }).join();
  CHECK(node_of(torch::linear(x, w)) != "MmBackward0");
  CHECK(node_of(torch::linear(x.expand({2, 4, 5}).contiguous(), w, b)) != "AddmmBackward0");
  auto const of = [](Tensor const& bias, Tensor const& rows, Tensor const& weight) {
    return node_of(torch::addmm(bias, rows, weight.t()));
  };
  auto const twice = torch::kFloat64;
  CHECK(of(b.to(twice), x.to(twice), w.to(twice)) == "AddmmBackward0");
  CHECK(of(b, x.t().contiguous().t(), w) == "AddmmBackward0");
  CHECK(of(b, x, w.t().contiguous().t()) == "AddmmBackward0");
  CHECK(of(b.unsqueeze(0), x, w) == "AddmmBackward0");
  CHECK(of(b.narrow(0, 0, 1), x, w) == "AddmmBackward0");
  CHECK(of(b, x.narrow(0, 0, 0), w) == "AddmmBackward0");
  CHECK_THROWS_WITH_AS(of(b, torch::randn({4, 6}), w), doctest::Contains("shapes"), c10::Error);
  {
    torch::NoGradGuard const no_graph;
    CHECK(torch::addmm(b, x, w.t()).allclose(x.matmul(w.t()) + b));
  }
  CHECK(node_of(torch::mm(x, w.narrow(0, 0, 0).t())) == "MmBackward0");
  at::autocast::set_autocast_enabled(at::kCPU, true);
  auto const half = torch::addmm(b, x, w.t());
  at::autocast::set_autocast_enabled(at::kCPU, false);
  CHECK(half.dtype() == torch::kBFloat16);
}

TEST_CASE("with several threads they are met, too, also where convolutions are") {
  auto const x = torch::ones({4, 5}), w = torch::ones({3, 5}).requires_grad_(true);
  auto const by_libtorch = [&] {
    LinearLayers::Scope const linear(true);
    ConvolutionLayers::Scope const convolutions(true);
    return at::linear(x, w, torch::ones(3)).grad_fn()->name() == "AddmmBackward0";
  };
  for (int const threads : {2, 1}) {
    at::set_num_threads(threads);
    CHECK(by_libtorch() != products::uses_own_products());
  }
}
