// Batch normalisation of images with their channels last: by pawl's kernels it is what LibTorch
// gives in double precision, and as differentiable.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <torch/nn/modules/pooling.h>
#include <pawl/core/learner.hpp>
#include <pawl/engine/normalisation_layers.hpp>

#include <doctest/doctest.h>  // after LibTorch, whose own CHECK must not win

using namespace pawl;

namespace {

bool const has_kernels = products::kernels() != products::Kernels::none;
/// LibTorch's own sums are of float32 in that layout.
double const rounding = has_kernels ? 2e-6 : 1e-4;

struct Shape {
  std::int64_t n, channels, height, width;
  double mean = 0;
};

/// With channels that fill vectors, leave a rest or are fewer; few pixels and many, and pixels that
/// are left at the end.
std::vector<Shape> const shapes{{20, 20, 32, 32}, {20, 20, 9, 7, 3}, {6, 40, 16, 16, -1},
                                {3, 1, 5, 5},     {2, 7, 3, 3},      {5, 33, 6, 7, 2},
                                {1, 8, 2, 3},     {1, 3, 3, 2},      {10, 64, 1, 1, 1},
                                {2, 130, 7, 5},   {1, 129, 3, 4, 1}, {5, 20, 33, 31}};

enum class Sides { all, no_affine, no_running };

Tensor random(at::IntArrayRef sizes, std::int64_t key, double mean = 0, double deviation = 1) {
  auto x = torch::empty(sizes);
  fill_normal(x, mean, deviation, Seed{4}.generator("random", key));
  return x;
}

Tensor images(Shape const& s, std::int64_t key) {
  auto const x = random({s.n, s.channels, s.height, s.width}, key, s.mean, 0.5);
  return ConvolutionLayers::laid_out(x);
}
Tensor gradient(Shape s, std::int64_t key) {
  s.mean = 0;
  return images(s, key);
}

struct Done {
  Tensor y, x_gradient, weight_gradient, bias_gradient, running_mean, running_var;
  std::string node;

  std::vector<std::pair<char const*, Tensor>> all() const {
    return {{"y", y},
            {"x", x_gradient},
            {"weight", weight_gradient},
            {"bias", bias_gradient},
            {"running mean", running_mean},
            {"running variance", running_var}};
  }
};

/// Two steps of it in training.
Done normalise(Shape const& shape, torch::Dtype dtype, bool met, Sides sides = Sides::all) {
  auto const own = [&](Tensor const& t) { return t.to(dtype).detach().requires_grad_(); };
  auto const c = shape.channels;
  Done done;
  std::optional<Tensor> weight, bias;
  if (sides != Sides::no_affine) weight = own(random({c}, 2)), bias = own(random({c}, 3));
  if (sides != Sides::no_running) {
    done.running_mean = torch::zeros({c}, dtype), done.running_var = torch::ones({c}, dtype);
  }
  for (std::int64_t step = 0; step < 2; ++step) {
    auto const x = own(images(shape, 10 + step));
    {
      NormalisationLayers::Scope const scope(met);
      done.y = at::batch_norm(x, weight, bias, done.running_mean, done.running_var, true, 0.2, 1e-5,
                              false);
    }
    done.node = done.y.grad_fn()->name();
    done.y.backward(gradient(shape, 20 + step).to(dtype));
    done.x_gradient = x.grad();
  }
  if (weight) done.weight_gradient = weight->grad(), done.bias_gradient = bias->grad();
  return done;
}

double distance(Tensor const& a, Tensor const& b) {
  auto const exact = b.to(torch::kFloat64);
  auto const scale = std::max(exact.abs().max().item<double>(), 1e-3);
  return (a.to(torch::kFloat64) - exact).abs().max().item<double>() / scale;
}

}  // namespace

TEST_CASE("outputs, gradients and running statistics are those of double precision") {
  at::set_num_threads(1);
  settle_first_use();
  for (auto const& shape : shapes) {
    for (auto const sides : {Sides::all, Sides::no_affine, Sides::no_running}) {
      CAPTURE(shape.channels);
      CAPTURE(shape.height);
      auto const exact = normalise(shape, torch::kFloat64, false, sides);
      auto const ours = normalise(shape, torch::kFloat32, true, sides);
      CHECK((ours.node.find("Normalised") != std::string::npos) == has_kernels);
      auto const expected_ones = exact.all(), found = ours.all();
      for (std::size_t i = 0; i < found.size(); ++i) {
        auto const &expected = expected_ones[i].second, &got = found[i].second;
        std::string const name = found[i].first;
        CAPTURE(name);
        REQUIRE(got.defined() == expected.defined());
        if (!expected.defined()) continue;
        CHECK(got.sizes() == expected.sizes());
        CHECK(distance(got, expected) < rounding);
      }
      CHECK(ours.y.is_contiguous(at::MemoryFormat::ChannelsLast));
    }
  }
}

TEST_CASE("several threads give the bits of one") {
  if (!has_kernels) return;
  for (auto const& shape : shapes) {
    CAPTURE(shape.channels);
    at::set_num_threads(1);
    auto const alone = normalise(shape, torch::kFloat32, true).all();
    for (int const threads : {2, 3}) {
      at::set_num_threads(threads);
      auto const shared = normalise(shape, torch::kFloat32, true).all();
      for (std::size_t i = 0; i < alone.size(); ++i) {
        CHECK(shared[i].second.equal(alone[i].second));
      }
    }
  }
  at::set_num_threads(1);
}

TEST_CASE(
    "a mean that is large beside the deviation costs what numbers lose, and variances nothing") {
  at::set_num_threads(1);
  Shape const far{8, 12, 6, 6, 1000};
  auto const exact = normalise(far, torch::kFloat64, false);
  auto const ours = normalise(far, torch::kFloat32, true);
  if (has_kernels) CHECK(distance(ours.running_var, exact.running_var) < 1e-6);
  CHECK(distance(ours.running_mean, exact.running_mean) < 1e-5);
  CHECK(distance(ours.y, exact.y) < 5e-4);
}

TEST_CASE("a channel without variance is what LibTorch makes of it") {
  at::set_num_threads(1);
  auto const x = ConvolutionLayers::laid_out(torch::ones({2, 3, 4, 4}));
  auto const bias = random({3}, 1);
  NormalisationLayers::Scope const scope(true);
  for (double const eps : {0.0, 1e-5}) {
    auto const y = at::batch_norm(x, torch::ones({3}), bias, {}, {}, true, 0.1, eps, false);
    CHECK(y.allclose(bias.view({1, 3, 1, 1}).expand_as(y), 0, 1e-3));
  }
}

TEST_CASE("who gets a gradient is who asks for one") {
  at::set_num_threads(1);
  Shape const shape{3, 6, 4, 5};
  struct Asks {
    bool x, weight, bias;
  };
  auto const gradients = [&](torch::Dtype dtype, bool met, Asks const& asks, bool once_more) {
    auto const x = images(shape, 1).to(dtype).detach().requires_grad_(asks.x);
    auto const w = random({6}, 2).to(dtype).detach().requires_grad_(asks.weight);
    auto const b = random({6}, 3).to(dtype).detach().requires_grad_(asks.bias);
    NormalisationLayers::Scope const scope(met);
    auto const y = at::batch_norm(x, w, b, {}, {}, true, 0.1, 1e-5, false);
    auto const loss = (y + gradient(shape, 2).to(dtype)).square().sum();
    std::vector<Tensor> inputs, found;
    if (asks.x) inputs.push_back(x);
    if (asks.weight) inputs.push_back(w);
    if (asks.bias) inputs.push_back(b);
    for (int i = 0; i < 2; ++i) {  // the graph stays
      for (auto const& g : torch::autograd::grad({loss}, inputs, {}, true, once_more)) {
        found.push_back(g.detach().flatten());
      }
    }
    return torch::cat(found);
  };
  for (bool const once_more : {false, true}) {
    for (Asks const& asks :
         {Asks{true, true, true}, Asks{true, false, false}, Asks{false, true, true},
          Asks{false, true, false}, Asks{false, false, true}, Asks{true, false, true}}) {
      CAPTURE(once_more);
      CAPTURE(asks.x);
      CAPTURE(asks.weight);
      auto const found = gradients(torch::kFloat32, true, asks, once_more);
      auto const exact = gradients(torch::kFloat64, false, asks, once_more);
      REQUIRE(found.sizes() == exact.sizes());
      CHECK(distance(found, exact) < rounding);
    }
  }
}

TEST_CASE("graphs of LibTorch's may need statistics that ours move") {
  at::set_num_threads(1);
  auto const w = torch::ones({6}).requires_grad_(), b = torch::zeros({6}).requires_grad_();
  auto const mean = torch::zeros({6}), variance = torch::ones({6});
  auto const last = images({3, 6, 4, 5}, 1);
  NormalisationLayers::Scope const scope(true);
  for (bool const training : {false, true}) {
    auto const loss = [&](Tensor const& x, bool trains) {
      return at::batch_norm(x, w, b, mean, variance, trains, 0.1, 1e-5, false).square().sum();
    };
    auto const both = loss(last.contiguous(), training) + loss(last, true);
    CHECK_NOTHROW(both.backward());
  }
}

TEST_CASE("without a graph it is the same") {
  at::set_num_threads(1);
  auto const x = images({3, 6, 4, 5}, 1);
  auto const w = torch::ones({6}).requires_grad_();
  NormalisationLayers::Scope const scope(true);
  auto const normalised = [&] {
    return at::batch_norm(x, w, torch::zeros({6}), {}, {}, true, 0.1, 1e-5, false);
  };
  auto const recorded = normalised();
  torch::NoGradGuard const no_grad;
  auto const plain = normalised();
  CHECK(recorded.requires_grad());
  CHECK_FALSE(plain.requires_grad());
  CHECK(plain.equal(recorded));
}

TEST_CASE("it can be differentiated twice") {
  at::set_num_threads(1);
  Shape const shape{3, 6, 4, 5};
  auto const twice = [&](torch::Dtype dtype, bool met) {
    auto const x = images(shape, 1).to(dtype).detach().requires_grad_();
    auto const w = random({6}, 2).to(dtype).detach().requires_grad_();
    auto const b = random({6}, 3).to(dtype).detach().requires_grad_();
    NormalisationLayers::Scope const scope(met);
    auto const y = at::batch_norm(x, w, b, {}, {}, true, 0.1, 1e-5, false);
    auto const first = torch::autograd::grad({y.square().sum()}, {x, w, b}, {}, true, true);
    auto penalty = torch::zeros({}, dtype);
    for (auto const& g : first) penalty = penalty + g.square().sum();
    auto const second = torch::autograd::grad({penalty}, {x, w, b});
    return torch::cat({second[0].flatten(), second[1], second[2]});
  };
  CHECK(distance(twice(torch::kFloat32, true), twice(torch::kFloat64, false)) < 1e-5);
}

TEST_CASE("only what is meant is met") {
  at::set_num_threads(1);
  auto const node = [](Tensor const& x, bool training = true) {
    auto const w = torch::ones({4}, x.options()).requires_grad_(), b = torch::zeros_like(w);
    auto const mean = torch::zeros({4}, x.options()), var = torch::ones({4}, x.options());
    auto const y = at::batch_norm(x, w, b, mean, var, training, 0.1, 1e-5, false);
    return y.grad_fn()->name();
  };
  auto const last = images({2, 4, 3, 3}, 1), plain = last.contiguous();
  std::string const of_libtorch = node(last);
  NormalisationLayers::Scope const scope(true);
  CHECK((node(last) != of_libtorch) == has_kernels);
  CHECK(node(plain) == of_libtorch);
  CHECK(node(last.to(torch::kFloat64)) == of_libtorch);
  CHECK(node(last, false) == of_libtorch);
  CHECK(node(random({5, 4}, 1)) == of_libtorch);
  {
    NormalisationLayers::Scope const not_here(false);
    CHECK(node(last) == of_libtorch);
  }
}

TEST_CASE("inputs that change before they are differentiated are told of") {
  at::set_num_threads(1);
  auto const x = images({2, 4, 3, 3}, 1).detach().requires_grad_();
  auto h = x * 2;
  NormalisationLayers::Scope const scope(true);
  auto const y = at::batch_norm(h, {}, {}, {}, {}, true, 0.1, 1e-5, false);
  h.add_(1);
  CHECK_THROWS(y.sum().backward());
}

TEST_CASE("networks with it learn what they learn with engine = reference") {
  auto const learn = [](Engine engine) {
    torch::manual_seed(1);
    auto const convolution = [](std::int64_t from, std::int64_t to) {
      return nn::Conv2d(nn::Conv2dOptions(from, to, 3).padding(1).bias(false));
    };
    nn::Sequential net(convolution(3, 20), nn::BatchNorm2d(20), nn::MaxPool2d(2),
                       convolution(20, 12),
                       nn::BatchNorm2d(nn::BatchNorm2dOptions(12).affine(false)), nn::Flatten(),
                       nn::Linear(12 * 16, 3));
    Learner learner{net, Sgd{.lr = 0.02, .momentum = 0.9}};
    auto const experience = make_experience(random({40, 3, 8, 8}, 1), torch::arange(40) % 3);
    learner.fit(experience, {.batch_size = 8, .engine = engine});
    std::vector<Tensor> found{learner.context().weights().clone()};
    for (auto const& buffer : net->named_buffers()) {
      if (buffer.value().is_floating_point()) found.push_back(buffer.value());
    }
    return torch::cat(found);
  };
  at::set_num_threads(1);
  auto const compiled = learn(Engine::compiled);
  CHECK(compiled.equal(learn(Engine::compiled)));
  CHECK(compiled.allclose(learn(Engine::reference), 1e-4, 1e-5));
}
