// Products of few rows, and gradients that are added to the weights without being formed.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include <pawl/core/learner.hpp>
#include <pawl/memory/reservoir.hpp>
#include <pawl/models/mlp.hpp>
#include <pawl/strategies/replay.hpp>

#include <doctest/doctest.h>  // after LibTorch, whose own CHECK must not win

using namespace pawl;

namespace {

Tensor normal(std::vector<std::int64_t> const& shape, std::int64_t key,
              torch::Dtype dtype = torch::kFloat32) {
  auto values = torch::empty(shape, dtype);
  fill_normal(values, 0, 1, Seed{3}.generator("values", key));
  return values;
}

/// What nobody has written to.
Tensor unwritten(std::vector<std::int64_t> const& shape) {
  return torch::full(shape, std::numeric_limits<float>::quiet_NaN(), torch::kFloat32);
}

/// Whether a result lies within the bound on the rounding of such sums: `terms` units in the last
/// place of the sum of the terms' magnitudes. Both are given in double precision.
bool within(Tensor const& result, Tensor const& exact, Tensor const& magnitude,
            std::int64_t terms) {
  auto const unit = std::ldexp(1.0, -24) * static_cast<double>(terms + 2);
  return ((result.to(torch::kFloat64) - exact).abs() <= unit * magnitude).all().item<bool>();
}

/// Whether this processor and thread use the kernels of pawl at all.
bool has_kernels() {
  auto const x = torch::zeros({1, 1});
  return is_small(x, 1, many_rows, x, x);
}

struct Layer {
  std::int64_t rows, inputs, outputs;
};

/// Sizes around those of tiles, vectors and panels.
std::vector<Layer> layers() {
  std::vector<Layer> all;
  for (std::int64_t const rows : {1, 2, 3, 4, 5, 6, 7, 11, 20, 25, 31, 65, 129, 600}) {
    for (std::int64_t const inputs : {1, 3, 7, 8, 9, 16, 17, 100, 520}) {
      for (std::int64_t const outputs : {1, 2, 4, 5, 10, 16, 17, 530}) {
        all.push_back({rows, inputs, outputs});
      }
    }
  }
  return all;
}

}  // namespace

TEST_CASE("products of few rows agree with those in double precision, whatever the sizes") {
  for (auto const& layer : layers()) {
    auto const n = layer.rows, in = layer.inputs, out = layer.outputs;
    CAPTURE(n);
    CAPTURE(in);
    CAPTURE(out);
    auto const x = normal({n, in}, 0), w = normal({out, in}, 1), d = normal({n, out}, 2);
    auto const bias = normal({out}, 3);
    auto const x2 = x.to(torch::kFloat64), w2 = w.to(torch::kFloat64), d2 = d.to(torch::kFloat64);

    auto const sizes = x2.abs().mm(w2.abs().t());

    auto y = unwritten({n, out}), with_bias = unwritten({n, out});
    linear(y, x, w, {});
    linear(with_bias, x, w, bias);
    CHECK(within(y, x2.mm(w2.t()), sizes, in));
    CHECK(within(with_bias, x2.mm(w2.t()) + bias, sizes + bias.abs(), in));

    auto dx = unwritten({n, in});
    input_gradient(dx, d, w);
    CHECK(within(dx, d2.mm(w2), d2.abs().mm(w2.abs()), out));

    auto dw = unwritten({out, in}), db = unwritten({out}), added = w.clone();
    auto const gradient = d2.t().mm(x2), gradient_sizes = d2.t().abs().mm(x2.abs());
    LayerGradient{d, x}.form(dw);
    LayerGradient{d, {}}.form(db);
    LayerGradient{d, x}.add_to(added, -0.5);
    CHECK(within(dw, gradient, gradient_sizes, n));
    CHECK(within(db, d2.sum(0), d2.abs().sum(0), n));
    CHECK(within(added, w2 - 0.5 * gradient, w2.abs() + 0.5 * gradient_sizes, n));
  }
}

TEST_CASE("a gradient that is added at once rounds as one that is formed first") {
  std::int64_t separable = 0;
  for (auto const& layer : layers()) {
    auto const n = layer.rows, in = layer.inputs, out = layer.outputs;
    LayerGradient const gradient{normal({n, out}, 0), normal({n, in}, 1)};
    auto w = normal({out, in}, 2), formed = unwritten({out, in});
    if (!gradient.is_separable(w)) continue;
    ++separable;
    gradient.form(formed);
    auto const expected = w.clone().add_(formed, -0.05);
    gradient.add_to(w, -0.05);
    CAPTURE(n);
    CAPTURE(in);
    CAPTURE(out);
    CHECK(torch::equal(w, expected));
  }
  CHECK((separable > 0) == has_kernels());
}

TEST_CASE("columns of zeros take no time, and change no bit") {
  // Blocks of eight columns that are empty in all rows, in some rows, or hold nothing but -0.
  for (std::int64_t const n : {1, 7, 20}) {
    for (std::int64_t const in : {5, 24, 40, 83}) {
      auto const w = normal({30, in}, 1), d = normal({n, 30}, 2), start = normal({30, in}, 3);
      auto x = normal({n, in}, 0).abs();
      auto const before = x.clone();
      for (std::int64_t begin = 0; begin < in; begin += 16) {
        x.narrow(1, begin, std::min<std::int64_t>(in - begin, begin % 32 == 0 ? 8 : 16))
            .mul_(begin % 48 == 0 ? -0.0 : 0.0);
      }
      if (in > 8) x.narrow(0, 0, 1).narrow(1, 0, 8).copy_(before.narrow(0, 0, 1).narrow(1, 0, 8));
      CAPTURE(n);
      CAPTURE(in);
      // A column that no block can leave out, because one row more fills it, beside the same rows.
      auto const full = torch::cat({x, torch::ones({1, in})});
      auto y = unwritten({n, 30}), y_full = unwritten({n + 1, 30});
      linear(y, x, w, {});
      linear(y_full, full, w, {});
      if (has_kernels()) CHECK(torch::equal(y, y_full.narrow(0, 0, n)));
      CHECK(y.allclose(x.mm(w.t()), 1e-5, 1e-5));

      auto dw = unwritten({30, in}), added = start.clone();
      LayerGradient{d, x}.form(dw);
      LayerGradient{d, x}.add_to(added, -0.5);
      CHECK(dw.allclose(d.t().mm(x), 1e-5, 1e-5));
      CHECK(added.allclose(start - 0.5 * d.t().mm(x), 1e-5, 1e-5));
      if (has_kernels()) CHECK(torch::equal(added, start.clone().add_(dw, -0.5)));
    }
  }
}

TEST_CASE("a graph that needs weights as they were notices that they have moved") {
  auto const w = normal({5, 9}, 0).requires_grad_(), x = normal({3, 9}, 1);
  auto const loss = x.mm(w.t()).mm(w).sum();
  {
    torch::NoGradGuard no_grad;
    LayerGradient{normal({3, 5}, 2), x}.add_to(w, -0.1);
  }
  CHECK_THROWS_WITH(loss.backward(), doctest::Contains("modified by an inplace operation"));
}

TEST_CASE("a row's outputs do not depend on the other rows of its batch") {
  if (!has_kernels()) return;
  auto const x = normal({64, 100}, 0), w = normal({50, 100}, 1), bias = normal({50}, 2);
  auto together = unwritten({64, 50});
  linear(together, x, w, bias);
  for (std::int64_t i = 0; i < 64; ++i) {
    auto alone = unwritten({1, 50});
    linear(alone, x.narrow(0, i, 1), w, bias);
    CHECK(torch::equal(alone[0], together[i]));
  }
}

TEST_CASE("what the kernels are not made for is left to LibTorch") {
  auto const x = normal({8, 40}, 0), w = normal({20, 40}, 1), y = normal({8, 20}, 2);
  auto const twice = [](Tensor const& t) { return t.to(torch::kFloat64); };
  auto const small = [](Tensor const& rows, std::int64_t outputs, Tensor const& a,
                        Tensor const& b) { return is_small(rows, outputs, many_rows, a, b); };
  CHECK(small(x, 20, w, y) == has_kernels());
  CHECK_FALSE(small(twice(x), 20, twice(w), twice(y)));
  CHECK_FALSE(small(x.t().contiguous().t(), 20, w, y));
  CHECK(small(normal({64, 40}, 0), 20, w, y) == has_kernels());
  CHECK_FALSE(small(normal({65, 40}, 0), 20, w, y));
  CHECK(small(normal({65, 40}, 0), 16, w, y) == has_kernels());
  at::set_num_threads(2);
  CHECK_FALSE(small(x, 20, w, y));
  at::set_num_threads(1);
  at::globalContext().setFloat32MatmulPrecision("medium");  // LibTorch may use bfloat16
  CHECK(small(normal({32, 40}, 0), 20, w, y) == has_kernels());
  CHECK_FALSE(small(normal({33, 40}, 0), 20, w, y));
  CHECK(small(normal({33, 40}, 0), 16, w, y) == has_kernels());
  at::globalContext().setFloat32MatmulPrecision("highest");

  auto strided = unwritten({8, 20});
  auto const bias = normal({20, 2}, 3).select(1, 0);
  linear(strided, x, w, bias);
  CHECK(strided.allclose(at::addmm(bias, x, w.t()), 1e-5, 1e-5));

  auto slow = torch::empty({8, 20}, torch::kFloat64);
  linear(slow, twice(x), twice(w), twice(y)[0]);
  CHECK(torch::equal(slow, at::addmm(twice(y)[0], twice(x), twice(w).t())));
}

namespace {

Experience digits(std::int64_t index) {
  auto const y = torch::arange(60, torch::kInt64) % 4;
  return make_experience(normal({60, 12}, 10 + index) + y.unsqueeze(1), y, {}, index);
}

/// Looks at the gradient, so it has to be there in every step.
struct Looks {
  std::vector<Tensor> seen{};
  void step(Context const& c) {
    seen.clear();
    for (auto const& p : c.model.module->parameters()) seen.push_back(p.grad().clone());
  }
};

/// Counts the steps whose gradient was not formed when they were over.
struct Counts {
  static constexpr bool only_losses = true;
  std::int64_t deferred = 0;
  void step(Context const& c) { deferred += c.arena.has_unformed(); }
};

/// Asks for the gradient when the weights have moved already.
struct AsksLate {
  static constexpr bool plans_ahead = true;
  Tensor sum{};
  void after_step(Context& c) { sum = sum.defined() ? sum + c.gradient() : c.gradient().clone(); }
};

struct Trained {
  std::vector<Tensor> weights{}, gradients{};
  std::int64_t deferred = 0;
};

template <class Observer, class... S>
Trained train(Observer& observer, Sgd sgd, Training training, S... strategies) {
  Mlp net(12, 4, MlpOptions{.hidden = {20, 9}}, Seed{1});
  Learner learner{net, sgd, strategies...};
  Counts counts;
  training.batch_size = 7;
  for (std::int64_t e = 0; e < 2; ++e) learner.fit(digits(e), training, observer, counts);
  Trained result{{}, {}, counts.deferred};
  for (auto const& p : net->parameters()) {
    result.weights.push_back(p.detach().clone());
    result.gradients.push_back(p.grad().clone());
  }
  return result;
}

bool same(std::vector<Tensor> const& a, std::vector<Tensor> const& b) {
  bool all = a.size() == b.size();
  for (std::size_t i = 0; all && i < a.size(); ++i) all = torch::equal(a[i], b[i]);
  return all;
}

}  // namespace

TEST_CASE("plain SGD learns the same where gradients are not formed, which are there afterwards") {
  auto const compare = [](Sgd sgd, Training training, bool may_defer, auto... strategies) {
    Looks looks;
    Counts counts;
    auto const formed = train(looks, sgd, training, strategies...);
    auto const plain = train(counts, sgd, training, strategies...);
    CHECK(same(plain.weights, formed.weights));
    CHECK(same(plain.gradients, formed.gradients));
    CHECK(same(looks.seen, formed.gradients));
    CHECK(formed.deferred == 0);
    CHECK((plain.deferred > 0) == (may_defer && has_kernels()));
  };
  compare({.lr = 0.1}, {}, true);
  compare({.lr = 0.1}, {.epochs = 3, .lr_milestones = {1}}, true);
  compare({.lr = 0.1}, {}, true, Replay{Reservoir{.capacity = 20}});
  compare({.lr = 0.1, .momentum = 0.9}, {}, false);
  compare({.lr = 0.1, .weight_decay = 0.01}, {}, false);
  compare({.lr = 0.1}, {.clip_norm = 0.1}, false);
  compare({.lr = 0.1}, {.shards = 2}, false);
  compare({.lr = 0.1}, {.engine = Engine::reference}, false);
  compare({.lr = 0.1}, {.iterations = 1}, false);  // the last step
}

TEST_CASE("a gradient may be asked for when the step is over") {
  auto const sum = [](auto&& observer) {
    Mlp net(12, 4, MlpOptions{.hidden = {20, 9}}, Seed{1});
    Learner learner{net, Sgd{.lr = 0.1}, AsksLate{}};
    learner.fit(digits(0), {.batch_size = 7}, observer);
    return learner.template strategy<AsksLate>().sum;
  };
  CHECK(torch::equal(sum(Counts{}), sum(Looks{})));
}
