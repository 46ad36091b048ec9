// Products of few rows, and gradients that are added to the weights without being formed.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <vector>

#include "../core/rehearses.hpp"

#include <pawl/core/learner.hpp>
#include <pawl/memory/reservoir.hpp>
#include <pawl/models/mlp.hpp>

#include <doctest/doctest.h>  // after LibTorch, whose own CHECK must not win

using namespace pawl;
using namespace pawl::products;

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

/// The same with zeros in place of most: a fifth stays.
Tensor thin(Tensor const& numbers) {
  auto keep = torch::empty(numbers.sizes());
  fill_uniform(keep, 0, 1, Seed{3}.generator("keep", numbers.numel()));
  return numbers * (keep < 0.2);
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
  // Longer sums, and more rows, than are formed at once.
  for (auto const& layer : {Layer{3, 1537, 20}, {64, 2600, 20}, {257, 1536, 10}, {300, 4100, 5}}) {
    all.push_back(layer);
  }
  return all;
}

}  // namespace

namespace {

/// The three products of a layer and what is made of them, for its outputs' gradient d and inputs
/// x.
void check_products(Tensor const& d, Tensor const& x) {
  auto const n = d.size(0), in = x.size(1), out = d.size(1);
  CAPTURE(n);
  CAPTURE(in);
  CAPTURE(out);
  auto const w = normal({out, in}, 1), bias = normal({out}, 3);
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

}  // namespace

TEST_CASE("products of a layer agree with those in double precision, whatever the sizes") {
  for (auto const& layer : layers()) {
    auto const x = normal({layer.rows, layer.inputs}, 0),
               d = normal({layer.rows, layer.outputs}, 2);
    check_products(d, x);
    if (layer.inputs < 32 || layer.outputs < 32) continue;  // no zeros are looked for
    check_products(d, thin(x));
    check_products(thin(d), x);
    check_products(thin(d), thin(x));
  }
}

TEST_CASE("a gradient that is added at once rounds as one that is formed first") {
  std::int64_t separable = 0, large = 0;
  for (auto const& layer : layers()) {
    auto const n = layer.rows, in = layer.inputs, out = layer.outputs;
    auto const d = normal({n, out}, 0), x = normal({n, in}, 1);
    for (auto const& gradient :
         {LayerGradient{d, x}, LayerGradient{thin(d), x}, LayerGradient{d, thin(x)}}) {
      auto w = normal({out, in}, 2), formed = unwritten({out, in});
      if (!gradient.is_separable(w)) continue;
      ++separable;
      large += n > 512;
      gradient.form(formed);
      auto const expected = w.clone().add_(formed, -0.05);
      gradient.add_to(w, -0.05);
      CAPTURE(n);
      CAPTURE(in);
      CAPTURE(out);
      CHECK(torch::equal(w, expected));
    }
  }
  CHECK((separable > 0) == uses_own_products());
  CHECK((large > 0) == uses_own_products());  // those with zeros
}

TEST_CASE(
    "numbers that are pulled before a gradient is added have the bits of one after the other") {
  std::int64_t separable = 0, empty = 0;
  for (auto const& layer : layers()) {
    auto const n = layer.rows, in = layer.inputs, out = layer.outputs;
    auto const d = normal({n, out}, 0), x = normal({n, in}, 1);
    auto bordered = x.clone();  // whole blocks of columns are zero, and are pulled
    bordered.narrow(1, in / 3, in / 2).zero_();
    for (auto const& gradient : {LayerGradient{d, x}, LayerGradient{thin(d), x},
                                 LayerGradient{d, thin(x)}, LayerGradient{d, bordered}}) {
      auto w = normal({out, in}, 2);
      if (!gradient.is_separable(w)) continue;
      ++separable;
      empty += in >= 64;
      QuadraticPull const pull{normal({out * in}, 3), normal({out * in}, 4).abs(), 0.7};
      auto expected = w.clone();
      pull.subtract_from(expected.view(-1), 0.05);
      CHECK_FALSE(torch::equal(w, expected));
      gradient.add_to(expected, -0.05);
      auto const down = pull.down(w, 0.05);
      gradient.add_to(w, -0.05, &down);
      CAPTURE(n);
      CAPTURE(in);
      CAPTURE(out);
      CHECK(torch::equal(w, expected));
    }
  }
  CHECK((separable > 0) == uses_own_products());
  CHECK((empty > 0) == uses_own_products());
}

#ifdef PAWL_PRODUCTS

TEST_CASE("dense products agree with those in double precision, of any number of rows") {
  // Called by themselves: on most processors those of many rows are left to LibTorch.
  if (kernels() == Kernels::none) return;
  auto const before = at::get_num_threads();
  auto const to = [](Tensor& y) { return Destination{y.mutable_data_ptr<float>(), y.size(1)}; };
  auto const by_row = [](Tensor const& m) {
    return Left{m.const_data_ptr<float>(), m.size(0), m.size(1), 1};
  };
  auto const by_column = [](Tensor const& m) {
    return Left{m.const_data_ptr<float>(), m.size(1), 1, m.size(1)};
  };
  for (auto const& [n, in, out] : layers()) {
    auto const x = normal({n, in}, 0), w = normal({out, in}, 1), d = normal({n, out}, 2);
    CAPTURE(x.sizes());
    CAPTURE(w.sizes());
    auto const x2 = x.to(torch::kFloat64), w2 = w.to(torch::kFloat64), d2 = d.to(torch::kFloat64);
    std::vector<Tensor> of_one;
    for (int const threads : {1, 3}) {
      at::set_num_threads(threads);
      auto y = unwritten({n, out}), dx = unwritten({n, in}), dw = unwritten({out, in});
      products::multiply_transposed(rectangle(x), rectangle(w), nullptr, to(y));
      products::multiply(by_row(d), rectangle(w), false, to(dx));
      products::multiply(by_column(d), rectangle(x), true, to(dw));
      auto added = w.clone();
      auto there = to(added);
      there.add = true, there.factor = -0.5;
      products::multiply(by_column(d), rectangle(x), true, there);
      if (threads > 1) {
        CHECK(y.equal(of_one[0]));
        CHECK(dx.equal(of_one[1]));
        CHECK(dw.equal(of_one[2]));
        CHECK(added.equal(of_one[3]));
        continue;
      }
      of_one = {y, dx, dw, added};
      CHECK(within(y, x2.mm(w2.t()), x2.abs().mm(w2.t().abs()), in));
      CHECK(within(dx, d2.mm(w2), d2.abs().mm(w2.abs()), out));
      auto const gradient = d2.t().mm(x2), sizes = d2.t().abs().mm(x2.abs());
      CHECK(within(dw, gradient, sizes, n));
      CHECK(within(added, w2 - 0.5 * gradient, w2.abs() + 0.5 * sizes, n));
    }
  }
  at::set_num_threads(before);
}

namespace {

/// A matrix [rows, columns] of which every second number, or so, is zero, as a factor that lies in
/// memory as it is or transposed.
struct Case {
  Case(std::int64_t rows, std::int64_t columns, bool transposed)
      : m(thin(normal({rows, columns}, 5)) + thin(normal({rows, columns}, 6)).mul(0.5)),
        stored(transposed ? m.t().contiguous() : m.contiguous()),
        factor(transposed ? factor_transposed(stored) : products::factor(stored)) {}
  Tensor m, stored;
  Factor factor;
};

void check_sparse_product(SparseKernels const& kernels, std::int64_t rows, std::int64_t depth,
                          std::int64_t columns) {
  CAPTURE(rows);
  CAPTURE(depth);
  CAPTURE(columns);
  auto const bias = normal({columns}, 7);
  SparseProduct product(kernels);
  for (int bits = 0; bits < 8; ++bits) {
    bool const left_transposed = bits & 1, right_transposed = bits & 2, turned = bits & 4;
    CAPTURE(bits);
    Case const left(rows, depth, left_transposed), right(depth, columns, right_transposed);
    auto const exact = left.m.to(torch::kFloat64).mm(right.m.to(torch::kFloat64));
    auto const sizes = left.m.abs().to(torch::kFloat64).mm(right.m.abs().to(torch::kFloat64));

    // A margin that nothing may write to lies behind each row.
    auto const lines = turned ? columns : rows, length = turned ? rows : columns;
    auto const start = normal({lines, length + 3}, 8);
    auto put = start.clone(), added = start.clone();
    auto const run = [&](Tensor& y, float const* b, bool add) {
      product.run(left.factor, right.factor, b,
                  {y.mutable_data_ptr<float>(), length + 3, add, -0.5f}, turned);
    };
    auto const result = [&](Tensor const& y) {
      auto const inner = y.narrow(1, 0, length);
      return turned ? inner.t() : inner;
    };
    run(put, bias.const_data_ptr<float>(), false);
    run(added, nullptr, true);
    auto const before = result(start).to(torch::kFloat64);
    CHECK(within(result(put), exact + bias, sizes + bias.abs(), depth));
    CHECK(within(result(added), before - 0.5 * exact, before.abs() + 0.5 * sizes, depth));
    CHECK(torch::equal(put.narrow(1, length, 3), start.narrow(1, length, 3)));
    CHECK(torch::equal(added.narrow(1, length, 3), start.narrow(1, length, 3)));
  }
}

}  // namespace

TEST_CASE("sparse products agree with those in double precision, however factors lie in memory") {
  if (kernels() == Kernels::none) return;
  for (std::int64_t const rows : {1, 7, 8, 17, 64, 515}) {
    for (std::int64_t const depth : {1, 5, 63, 64, 65, 130}) {
      for (std::int64_t const columns : {1, 7, 16, 17, 72, 73, 144, 145, 300}) {
        check_sparse_product(sparse_kernels<avx2::Sparse>(), rows, depth, columns);
        if (kernels() == Kernels::avx512) {
          check_sparse_product(sparse_kernels<avx512::Sparse>(), rows, depth, columns);
        }
      }
    }
  }
}

#endif

TEST_CASE("numbers that are not finite show in outputs, unless a zero leaves them out") {
  constexpr auto infinity = std::numeric_limits<float>::infinity();
  auto x = thin(normal({64, 100}, 0)), w = normal({50, 100}, 1), y = unwritten({64, 50});
  x[3][7] = std::numeric_limits<float>::quiet_NaN(), x[5][60] = 1, x[6][60] = 0;
  w[9][60] = infinity;
  linear(y, x, w, {});
  CHECK(y[3].isnan().all().item<bool>());
  CHECK(y[5].isinf().nonzero().equal(torch::tensor({{9}})));
  CHECK((uses_own_products() ? y[6].isfinite().all() : y[6][9].isnan()).item<bool>());
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
      if (uses_own_products()) CHECK(torch::equal(y, y_full.narrow(0, 0, n)));
      CHECK(y.allclose(x.mm(w.t()), 1e-5, 1e-5));

      auto dw = unwritten({30, in}), added = start.clone();
      LayerGradient{d, x}.form(dw);
      LayerGradient{d, x}.add_to(added, -0.5);
      CHECK(dw.allclose(d.t().mm(x), 1e-5, 1e-5));
      CHECK(added.allclose(start - 0.5 * d.t().mm(x), 1e-5, 1e-5));
      if (uses_own_products()) CHECK(torch::equal(added, start.clone().add_(dw, -0.5)));
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
  if (!uses_own_products()) return;
  for (auto const& [rows, inputs, outputs] : {Layer{64, 100, 50}, {300, 2600, 10}}) {
    auto const x = normal({rows, inputs}, 0), w = normal({outputs, inputs}, 1),
               bias = normal({outputs}, 2);
    auto together = unwritten({rows, outputs});
    linear(together, x, w, bias);
    for (std::int64_t i = 0; i < rows; ++i) {
      auto alone = unwritten({1, outputs});
      linear(alone, x.narrow(0, i, 1), w, bias);
      CHECK(torch::equal(alone[0], together[i]));
    }
  }
}

TEST_CASE("several threads give the bits of one") {
  if (!uses_own_products()) return;
  auto const before = at::get_num_threads();
  for (auto const& layer : std::vector<Layer>{{10, 784, 400},
                                              {20, 400, 200},
                                              {60, 401, 203},
                                              {128, 784, 400},
                                              {128, 200, 600},
                                              {600, 300, 100},
                                              {300, 2600, 10}}) {
    auto const rows = layer.rows, inputs = layer.inputs, outputs = layer.outputs;
    auto const x = normal({rows, inputs}, 0), d = normal({rows, outputs}, 1);
    auto const w = normal({outputs, inputs}, 2), bias = normal({outputs}, 3);
    auto const anchor = normal({outputs, inputs}, 4), importance = normal({outputs, inputs}, 5);
    std::vector<Tensor> results;
    auto const note_outputs = [&](Tensor const& of) {
      results.push_back(unwritten({rows, outputs}));
      linear(results.back(), of, w, bias);
    };
    auto const note_update = [&](LayerGradient const& gradient) {
      if (!gradient.is_separable(w)) return;  // else it may be LibTorch's
      results.push_back(w.clone());
      AnchorPull const pull{results.back().const_data_ptr<float>(), anchor.const_data_ptr<float>(),
                            importance.const_data_ptr<float>(), 0.5f, 0.1f};
      gradient.add_to(results.back(), -0.5, &pull);
    };
    std::vector<std::vector<Tensor>> by_threads;
    for (int const threads : {1, 2, 3}) {
      at::set_num_threads(threads);
      results.clear();
      note_outputs(thin(x));
      if (rows < many_rows().of_outputs || outputs <= few_outputs) note_outputs(x);
      note_update({d, x}), note_update({d, thin(x)}), note_update({thin(d), x});
      auto bare = x.clone();
      bare.narrow(1, 32, 64).zero_();  // whole vectors, whose weights are only pulled
      note_update({d, bare});
      if (rows >= sparse_rows && outputs >= 32) {
        results.push_back(unwritten({rows, inputs}));
        input_gradient(results.back(), thin(d), w);
      }
      if (rows < many_rows().of_inputs) {
        results.push_back(unwritten({rows, inputs}));
        input_gradient(results.back(), d, w);
      }
      by_threads.push_back(results);
    }
    at::set_num_threads(before);
    CAPTURE(rows);
    CHECK(results.size() >= 2);
    for (std::size_t i = 0; i < results.size(); ++i) {
      CAPTURE(i);
      CHECK(by_threads[1][i].equal(by_threads[0][i]));
      CHECK(by_threads[2][i].equal(by_threads[0][i]));
    }
  }
}

TEST_CASE("threads share all of a range, and what one throws comes through") {
  auto const before = at::get_num_threads();
  for (int const threads : {1, 2, 3}) {
    at::set_num_threads(threads);
    for (std::int64_t const n : {0, 1, 15, 16, 17, 403}) {
      std::vector<int> seen(static_cast<std::size_t>(n), 0);
      std::atomic<std::int64_t> parts = 0;
      in_parallel(n, 16, 8, [&](std::int64_t begin, std::int64_t end) {
        ++parts;
        for (auto i = begin; i < end; ++i) ++seen[static_cast<std::size_t>(i)];
      });
      CHECK((seen == std::vector<int>(static_cast<std::size_t>(n), 1)));
      auto const units = std::max<std::int64_t>((n + 15) / 16, 1);
      if (!is_watched_by_thread_sanitizer) {
        CHECK(parts == std::min<std::int64_t>(threads, units));
      }
    }
    CHECK_THROWS_WITH(in_parallel(64, 16, 8,
                                  [](std::int64_t, std::int64_t end) {
                                    if (end == 64) throw std::runtime_error("the last part");
                                  }),
                      "the last part");
  }
  at::set_num_threads(before);
}

TEST_CASE("products of nothing are empty, or zeros") {
  for (std::int64_t const out : {1, 10, 40}) {
    auto const w = normal({out, 30}, 0);
    auto none = unwritten({0, 30}), outputs = unwritten({0, out}), dw = unwritten({out, 30});
    auto const d = torch::zeros({0, out}), x = torch::zeros({0, 30});
    linear(outputs, x, w, {});
    input_gradient(none, d, w);
    LayerGradient{d, x}.form(dw);
    CHECK(dw.eq(0).all().item<bool>());
  }
  auto const w = torch::zeros({0, 30}), x = normal({8, 30}, 1), d = torch::zeros({8, 0});
  auto outputs = unwritten({8, 0}), dx = unwritten({8, 30}), dw = unwritten({0, 30});
  linear(outputs, x, w, {});
  LayerGradient{d, x}.form(dw);
  input_gradient(dx, d, w);
  CHECK(dx.eq(0).all().item<bool>());
}

TEST_CASE("what the kernels are not made for is left to LibTorch") {
  auto const x = normal({8, 40}, 0), w = normal({20, 40}, 1), y = normal({8, 20}, 2);
  auto const twice = [](Tensor const& t) { return t.to(torch::kFloat64); };
  auto const small = [](Tensor const& rows, Tensor const& a, Tensor const& b) {
    return is_small(rows, 65, a, b);
  };
  CHECK(small(x, w, y) == uses_own_products());
  CHECK_FALSE(small(twice(x), twice(w), twice(y)));
  CHECK_FALSE(small(x.t().contiguous().t(), w, y));
  CHECK(small(normal({64, 40}, 0), w, y) == uses_own_products());
  CHECK_FALSE(small(normal({65, 40}, 0), w, y));
  auto const many = many_rows();
  CHECK((many.of_outputs > 1000) == outrun_libtorch());
  CHECK((many.of_inputs > 1000) == outrun_libtorch());
  CHECK((many.of_weights > 1000) == outrun_libtorch());
  auto const rows = normal({33, 40}, 4), few = normal({16, 40}, 5);
  auto of_few = unwritten({33, 16}), of_few_again = unwritten({33, 16});
  linear(of_few, rows, few, {});
  at::globalContext().setFloat32MatmulPrecision("medium");  // LibTorch may use bfloat16
  if (uses_own_products()) {  // outputs of layers that have few stay here
    linear(of_few_again, rows, few, {});
    CHECK(of_few_again.equal(of_few));
  }
  CHECK(small(normal({32, 40}, 0), w, y) == uses_own_products());
  CHECK_FALSE(small(normal({33, 40}, 0), w, y));
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
    CHECK((plain.deferred > 0) == (may_defer && uses_own_products()));
  };
  compare({.lr = 0.1}, {}, true);
  compare({.lr = 0.1}, {.epochs = 3, .lr_milestones = {1}}, true);
  compare({.lr = 0.1}, {}, true, Rehearses{Reservoir{.capacity = 20}});
  compare({.lr = 0.1, .momentum = 0.9}, {}, false);
  compare({.lr = 0.1, .weight_decay = 0.01}, {}, false);
  compare({.lr = 0.1}, {.clip_norm = 0.1}, false);
  compare({.lr = 0.1}, {.shards = 2}, false);
  compare({.lr = 0.1}, {.engine = Engine::reference}, false);
  compare({.lr = 0.1}, {.iterations = 1}, false);  // the last step
}

namespace {

struct Decays {
  static constexpr bool elementwise = true, only_adds = true;
  void edit_gradient(Context& c) { c.gradient().add_(c.weights(), 0.3); }
};

struct EveryGradient {
  std::vector<Tensor> all{};
  void step(Context const& c) { all.push_back(c.gradient().clone()); }
};

}  // namespace

TEST_CASE(
    "an observer of gradients changes no bit where strategies add to them, and sees the sum") {
  EveryGradient seen, wanted;
  Counts counts;
  auto const watched = train(seen, {.lr = 0.1}, {}, Decays{});
  auto const plain = train(counts, {.lr = 0.1}, {}, Decays{});
  CHECK((plain.deferred > 0) == uses_own_products());
  CHECK(same(watched.weights, plain.weights));
  train(wanted, {.lr = 0.1}, {.engine = Engine::reference}, Decays{});
  REQUIRE(seen.all.size() == wanted.all.size());
  for (std::size_t i = 0; i < seen.all.size(); ++i) {
    CHECK(seen.all[i].allclose(wanted.all[i], 0, 1e-5));
  }
}

namespace {

/// Pulls to where the weights were when it saw them first.
struct Pulls {
  static constexpr bool elementwise = true, only_adds = true;
  double strength = 0.1;
  bool clips = false;      ///< hands over a tensor that nobody else holds
  std::int64_t forms = 0;  ///< has the gradient formed when it sees so many weights
  Tensor anchor{}, importance{};
  std::int64_t most = 0;  ///< weights that it saw at once, but in the last step

  void begin(Context& c, Experience const&) {
    if (anchor.defined()) return;
    anchor = c.weights().clone();
    importance = torch::rand_like(anchor);
  }
  void edit_gradient(Context& c) {
    auto const omega = c.here(importance);
    c.pull(c.here(anchor), clips ? omega.clamp_max(0.5) : omega, strength);
    if (c.weights().numel() == forms) c.arena.form_gradients();
    if (c.step + 1 < c.steps) most = std::max(most, c.weights().numel());
  }
};
struct PullsMore : Pulls {};

template <class Observer, class... S>
std::pair<Tensor, Pulls> train_large(Observer& observer, Pulls pulls, S... strategies) {
  torch::manual_seed(1);
  Mlp net(12, 4, MlpOptions{.hidden = {200, 200}}, Seed{1});
  Learner learner{net, Sgd{.lr = 0.1}, pulls, strategies...};
  learner.fit(digits(0), {.epochs = 2, .batch_size = 7, .lr_milestones = {1}}, observer);
  return {learner.context().weights().clone(), learner.template strategy<Pulls>()};
}

}  // namespace

TEST_CASE("a single pull goes into the products of large layers, and changes no bit") {
  auto const compare = [](auto... more) {
    EveryGradient looks;
    Counts counts;
    auto const [watched, in_blocks] = train_large(looks, more...);
    auto const [weights, pulls] = train_large(counts, more...);
    CHECK(torch::equal(watched, weights));
    if (uses_own_products()) CHECK(in_blocks.most <= block_size());
    return pulls;
  };
  auto const whole_layer = std::int64_t{200 * 200};
  REQUIRE(whole_layer > block_size());
  auto const alone = compare(Pulls{});
  CHECK((alone.most == whole_layer) == uses_own_products());
  auto const with_another = compare(Pulls{}, PullsMore{{.strength = 0.2}});
  CHECK(with_another.most <= block_size());
  compare(Pulls{.clips = true});
  compare(Pulls{.forms = whole_layer});
  compare(Pulls{.forms = 208 + 800 + 16});  // what comes after that layer, which waits
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

namespace {

/// A chain whose logits are scaled, which its layers do not say.
struct ScaledImpl : nn::Module, Chained {
  ScaledImpl() {
    torch::NoGradGuard no_grad;
    layer = register_module("layer", nn::Linear(64, 40));
    layer->weight.copy_(normal({40, 64}, 11)), layer->bias.copy_(normal({40}, 12));
  }
  Tensor forward(Tensor const& x) { return layer->forward(x) * scale; }
  ChainLayers chain() const override { return {{layer->weight, layer->bias}}; }

  nn::Linear layer{nullptr};
  double scale = 1;
};
TORCH_MODULE(Scaled);

/// 300 rows of 64 numbers, of which a fifth is not zero.
Experience thin_rows() {
  return make_experience(thin(normal({300, 64}, 13)), torch::arange(300, torch::kInt64) % 4);
}

}  // namespace

TEST_CASE(
    "steps of many rows, whose zeros are left out, agree with those of the reference engine") {
  auto const weights = [](Engine engine, std::int64_t steps) {
    Mlp net(64, 4, MlpOptions{.hidden = {48, 40}}, Seed{1});
    Learner learner{net, Sgd{.lr = 0.1}};
    learner.fit(thin_rows(), {.iterations = steps, .batch_size = 100, .engine = engine});
    return learner.context().arena.weights().clone();
  };
  for (std::int64_t const steps : {1, 2, 5}) {  // the gradient of the last one is formed
    CHECK(weights(Engine::compiled, steps).allclose(weights(Engine::reference, steps), 0, 1e-6));
  }
}

TEST_CASE("scores of many rows are those of the module, also when it has changed since training") {
  Scaled net;
  Learner learner{net, Sgd{.lr = 0.1}};
  auto const x = thin(normal({200, 64}, 14));
  auto const own = [&] {
    torch::NoGradGuard no_grad;
    return net->forward(x);
  };
  CHECK(learner.scores(x).allclose(own(), 1e-5, 1e-5));  // nothing is known of it yet
  learner.fit(thin_rows(), {.batch_size = 50});
  CHECK(learner.context().engine() == "compiled");
  CHECK(learner.scores(x).allclose(own(), 1e-5, 1e-5));
  net->scale = 2;
  CHECK(learner.scores(x).allclose(own(), 1e-5, 1e-5));
}
