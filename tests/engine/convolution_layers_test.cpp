// What convolutions and what comes behind them are replaced with, operation by operation.

#include <cstdint>
#include <vector>

#include <pawl/core/error.hpp>
#include <pawl/engine/convolution_layers.hpp>

#include <doctest/doctest.h>  // after LibTorch, whose own CHECK must not win

using namespace pawl;

namespace {

/// Images with their channels last, which gradients go to.
Tensor leaf(std::vector<std::int64_t> const& sizes) {
  return torch::randn(sizes).contiguous(at::MemoryFormat::ChannelsLast).requires_grad_(true);
}
/// The same numbers in the plain layout.
Tensor plain_leaf(Tensor const& images) {
  return images.detach().contiguous().requires_grad_(true);
}

bool laid_out(Tensor const& y) {
  return y.suggest_memory_format() == at::MemoryFormat::ChannelsLast;
}

bool close(Tensor const& a, Tensor const& b) { return a.allclose(b, 1e-5, 1e-6); }

/// Looks at gradients on their way: those of images lie as images do.
struct Passes : torch::autograd::Function<Passes> {
  using Context = torch::autograd::AutogradContext;
  using Tensors = torch::autograd::variable_list;
  static inline bool laid_out = false;
  static Tensor forward(Context*, Tensor const& x) { return x.clone(); }
  static Tensors backward(Context*, Tensors const& gradients) {
    laid_out = ::laid_out(gradients[0]);
    return gradients;
  }
};

}  // namespace

TEST_CASE("convolutions by functions, with one stride for both directions, and what is not safe") {
  ConvolutionLayers::Scope const met(true);
  auto const x = torch::rand({2, 6, 5, 5}), w = torch::rand({4, 6, 3, 3});
  CHECK(laid_out(at::conv2d(x, w)));
  CHECK(laid_out(at::conv2d(x, w, {}, 2, 1)));
  CHECK(laid_out(at::conv2d(x, w, {}, at::IntArrayRef{1, 2})));
  CHECK(at::conv2d(x[0], w).equal(at::conv2d(x.narrow(0, 0, 1), w)[0]));
  auto const pixels = torch::rand({4, 6, 1, 1});
  CHECK(laid_out(at::conv2d(x, pixels)));
  CHECK_FALSE(laid_out(at::conv2d(x, pixels, {}, 2)));
  auto const one = at::conv2d(x, torch::rand({1, 6, 3, 3}));
  REQUIRE(laid_out(one));
  CHECK_FALSE(laid_out(at::conv2d(one, torch::rand({4, 1, 1, 1}), {}, 2)));
  CHECK_FALSE(laid_out(at::conv_transpose2d(x, torch::rand({6, 4, 2, 2}))));
  CHECK_FALSE(laid_out(at::conv2d(x, torch::rand({6, 1, 3, 3}), {}, 1, 1, 1, 6)));
}

TEST_CASE("views of images with their channels last are met only where it is wanted") {
  auto const x = torch::arange(24, torch::kFloat32).view({1, 2, 3, 4});
  auto const last = x.contiguous(at::MemoryFormat::ChannelsLast);
  CHECK_THROWS(last.view({1, -1}));
  {
    ConvolutionLayers::Scope const met(true);
    torch::NoGradGuard const no_grad;
    CHECK(last.view({1, -1}).equal(x.view({1, -1})));
    CHECK(last.view({2, 1, 12}).equal(x.view({2, 1, 12})));
    CHECK(last.reshape({2, 12}).equal(x.view({2, 12})));
    CHECK(last.flatten(1).equal(x.view({1, 24})));
    CHECK(last.flatten(2).equal(x.view({1, 2, 12})));
    CHECK(last.narrow(0, 0, 0).flatten(1).sizes() == at::IntArrayRef{0, 24});
    CHECK(last.view({1, 2, 3, 4}).data_ptr() == last.data_ptr());
    CHECK_THROWS(last.view({5, -1}));
    CHECK(last.transpose(2, 3).view({1, -1}).equal(x.transpose(2, 3).reshape({1, -1})));
    torch::AutoGradMode const learns(true);
    auto leaf = last.clone().requires_grad_(true);
    auto const d = torch::arange(24, torch::kFloat32).view({1, 24});
    (leaf.view({1, 24}) * d).sum().backward();
    CHECK(leaf.grad().equal(d.view({1, 2, 3, 4})));
    auto const once =
        torch::autograd::grad({leaf.view({1, 24}).pow(3).sum()}, {leaf}, {}, {}, true);
    auto const twice = torch::autograd::grad({once[0].sum()}, {leaf});
    CHECK(twice[0].equal(6 * last));
    CHECK_THROWS(last.view({1, -1}));  // which nothing is differentiated by
    ConvolutionLayers::Scope const not_met(false);
    CHECK_THROWS(last.view({1, -1}));
  }
  CHECK_THROWS(last.view({1, -1}));
}

TEST_CASE("images of any size become rows and come back, number by number") {
  for (auto const& sizes : std::vector<std::vector<std::int64_t>>{{1, 2, 1, 2},
                                                                  {3, 5, 4, 7},
                                                                  {2, 8, 8, 8},
                                                                  {2, 16, 3, 11},
                                                                  {3, 17, 5, 5},
                                                                  {1, 33, 9, 31}}) {
    auto const x = leaf(sizes), expected = plain_leaf(x);
    auto const shape = text_of({x.sizes()});
    CAPTURE(shape);
    auto const d = torch::randn({sizes[0], x.numel() / sizes[0]});
    (expected.flatten(1) * d).sum().backward();
    ConvolutionLayers::Scope const met(true);
    auto const rows = Passes::apply(x).flatten(1);
    CHECK(rows.equal(expected.flatten(1)));
    (rows * d).sum().backward();
    CHECK(x.grad().equal(expected.grad()));
    CHECK(Passes::laid_out);
    // Gradients of other strides, as a broadcast sum has.
    x.mutable_grad() = Tensor();
    x.view({sizes[0], -1}).sum(1).sum().backward();
    CHECK(x.grad().equal(torch::ones(sizes)));
  }
}

TEST_CASE("the mean over pixels is LibTorch's, and its gradient lies as images do") {
  auto const x = leaf({3, 5, 4, 7}), expected = plain_leaf(x);
  auto const d = torch::randn({3, 5});
  (expected.mean({2, 3}).pow(2) * d).sum().backward();
  using Mean = Tensor (*)(Tensor const&);
  for (Mean const mean : {Mean([](Tensor const& y) {
                            return y.mean({2, 3});
                          }),
                          Mean([](Tensor const& y) {
                            return y.mean({-1, -2});
                          }),
                          Mean([](Tensor const& y) {
                            return y.mean({2, -1}, true).flatten(1);
                          }),
                          Mean([](Tensor const& y) {
                            return at::adaptive_avg_pool2d(y, {1, 1}).view({y.size(0), y.size(1)});
                          })}) {
    ConvolutionLayers::Scope const met(true);
    x.mutable_grad() = Tensor();
    Passes::laid_out = false;
    auto const y = mean(Passes::apply(x));
    CHECK(close(y, expected.mean({2, 3})));
    (y.pow(2) * d).sum().backward();
    CHECK(close(x.grad(), expected.grad()));
    CHECK(Passes::laid_out);
    auto const once = torch::autograd::grad({(mean(x).pow(3)).sum()}, {x}, {}, {}, true);
    auto const twice = torch::autograd::grad({once[0].square().sum()}, {x});
    auto const plain = plain_leaf(x);
    auto const first =
        torch::autograd::grad({plain.mean({2, 3}).pow(3).sum()}, {plain}, {}, {}, true);
    CHECK(close(twice[0], torch::autograd::grad({first[0].square().sum()}, {plain})[0]));
  }
}

TEST_CASE("a mean that keeps its dimensions lies as LibTorch's does, and may be written to") {
  auto const x = leaf({3, 5, 4, 7});
  auto const theirs = at::adaptive_avg_pool2d(x, {1, 1});
  ConvolutionLayers::Scope const met(true);
  auto y = at::adaptive_avg_pool2d(x, {1, 1});
  CHECK(y.equal(theirs));
  CHECK(y.strides() == theirs.strides());
  y.relu_();
  CHECK(laid_out(at::conv2d(y, torch::randn({4, 5, 1, 1}))));
}

TEST_CASE("other means are LibTorch's own") {
  auto const x = leaf({2, 3, 4, 5}), plain = plain_leaf(x);
  ConvolutionLayers::Scope const met(true);
  CHECK(close(x.mean({1, 2}), plain.mean({1, 2})));
  CHECK(close(x.mean({0, 2, 3}), plain.mean({0, 2, 3})));
  CHECK(close(x.mean(3), plain.mean(3)));
  CHECK(close(x.mean(), plain.mean()));
  CHECK((x.mean({2, 3}, false, torch::kFloat64).scalar_type() == torch::kFloat64));
  CHECK_THROWS(x.mean({2, 2}));
  CHECK_THROWS(x.mean({2, 7}));
  auto const whole = x.detach().to(torch::kInt64);
  CHECK_THROWS(whole.mean({2, 3}));
}
