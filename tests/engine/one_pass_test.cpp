// What goes over weights in one pass is what LibTorch's operations give one after another, but for
// the last bit of a root.

#include <cstdint>
#include <string>
#include <vector>

#include <torch/nn/modules/linear.h>
#include <pawl/core/learner.hpp>
#include <pawl/strategies/quadratic_anchor.hpp>

#include <doctest/doctest.h>  // after LibTorch, whose own CHECK must not win

using namespace pawl;

namespace {

enum class Gradients { in_arena, apart };

/// Weights, moments and what else there is to compare after some steps with random gradients.
struct After {
  Tensor weights, first, second;
};

/// Sizes that leave a rest in vectors of 8 and of 16, a whole vector, and a bias of one.
nn::Sequential network() {
  nn::Sequential net(nn::Linear(37, 16), nn::Linear(16, 41), nn::Linear(41, 1));
  std::uint64_t i = 0;
  for (auto& p : net->parameters()) fill_normal(p, 0, 0.5, Seed{3}.generator("net", i++));
  return net;
}

/// `leave_out`: a parameter that gets no gradient in every second step; -1: none.
template <class Opt>
After steps(Opt optimizer, bool plain, Gradients where, std::int64_t n, int leave_out = -1,
            double scale = 0.01) {
  auto net = network();
  Arena arena(*net);
  arena.by_operations(plain);
  auto generator = Seed{5}.generator("gradients");
  for (std::int64_t step = 0; step < n; ++step) {
    arena.clear_gradients();
    for (std::size_t i = 0; i < arena.parameters().size(); ++i) {
      auto p = arena.parameters()[i];
      auto g = torch::empty_like(p.detach());
      fill_normal(g, 0, scale, generator.fork(static_cast<std::uint64_t>(step)).fork(i));
      auto const left_out = static_cast<int>(i) == leave_out && step % 2 == 1;
      if (!left_out) p.mutable_grad() = g;
    }
    arena.note_active();
    if (where == Gradients::in_arena) arena.gradient();
    optimizer.step(arena);
  }
  return {arena.weights().clone(), optimizer.first, optimizer.second};
}

double distance(Tensor const& a, Tensor const& b) { return (a - b).abs().max().item<double>(); }

template <class Opt>
std::vector<Opt> variants() {
  return {{},
          {.lr = 0.01, .weight_decay = 0},
          {.lr = 0.003, .beta1 = 0.8, .beta2 = 0.95, .eps = 1e-4, .weight_decay = 0.1},
          {.lr = 0.01, .beta1 = 0, .beta2 = 0, .weight_decay = 0.2}};
}

}  // namespace

TEST_CASE_TEMPLATE(
    "one pass gives the moments of LibTorch's operations to the bit, and the weights "
    "to a root's",
    Opt, Adam, AdamW) {
  CHECK(one_pass::suits(torch::zeros({1})) == (products::kernels() != products::Kernels::none));
  CHECK_FALSE(one_pass::suits(torch::zeros({1}, torch::kFloat64)));
  for (auto const& optimizer : variants<Opt>()) {
    for (auto const where : {Gradients::in_arena, Gradients::apart}) {
      for (int const leave_out : {-1, 2}) {
        CAPTURE(optimizer.beta1);
        CAPTURE(leave_out);
        // The gradients do not depend on the weights, so without L2 decay moments are the same.
        auto const fast = steps(optimizer, false, where, 150, leave_out);
        auto const slow = steps(optimizer, true, where, 150, leave_out);
        auto const decays = std::is_same_v<Opt, Adam> && optimizer.weight_decay != 0;
        if (decays) {
          CHECK(distance(fast.first, slow.first) < 1e-7);
          CHECK(distance(fast.second, slow.second) < 1e-7);
        } else {
          CHECK(fast.first.equal(slow.first));
          CHECK(fast.second.equal(slow.second));
        }
        CHECK(distance(fast.weights, slow.weights) < 1e-6);
        auto const once = steps(optimizer, false, where, 1),
                   once_slow = steps(optimizer, true, where, 1);
        // The last bit of an update, and that of the sum.
        CHECK(distance(once.weights, once_slow.weights) <= 2.5e-7);
      }
    }
  }
}

TEST_CASE("one pass gives the same bits from the arena and apart, in blocks and with threads") {
  auto const optimizer = Adam{.lr = 0.01, .weight_decay = 0.1};
  auto const in_arena = steps(optimizer, false, Gradients::in_arena, 20);
  auto const apart = steps(optimizer, false, Gradients::apart, 20);
  CHECK(in_arena.weights.equal(apart.weights));
  CHECK(in_arena.second.equal(apart.second));

  auto const large = [&](bool by_blocks, int threads) {
    auto const before = at::get_num_threads();
    at::set_num_threads(threads);
    nn::Sequential net(nn::Linear(700, 301));
    for (auto& p : net->parameters()) fill_normal(p, 0, 0.5, Seed{3}.generator("net"));
    Arena arena(*net);
    arena.by_operations(false);
    auto adam = optimizer;
    for (int step = 0; step < 3; ++step) {
      arena.clear_gradients();
      for (auto p : arena.parameters()) p.mutable_grad() = p.detach() * 0.01;
      arena.note_active();
      arena.gradient();
      adam.count(arena);
      if (by_blocks) {
        each_block(arena.weights(), [&](Block const& block) { adam.apply(arena, block); });
      } else {
        adam.apply(arena);
      }
    }
    at::set_num_threads(before);
    return arena.weights().clone();
  };
  auto const once = large(false, 1);
  CHECK(once.equal(large(true, 1)));
  CHECK(once.equal(large(false, 3)));
}

TEST_CASE("the pull of an anchor is that of LibTorch's operations, to the bit") {
  auto const pulled = [](bool by_operations, bool clip, int threads) {
    auto const before = at::get_num_threads();
    at::set_num_threads(threads);
    Context c;
    auto net = network();
    net->push_back(nn::Linear(700, 301));  // more than one thread's share
    for (auto& p : net->parameters()) fill_normal(p, 0, 0.5, Seed{3}.generator("net"));
    c.model = Model(net);
    c.arena.bind(*net);
    c.arena.by_operations(by_operations);
    c.note_learning_rate(0.1);
    QuadraticAnchor anchor{.clip_step = clip};
    auto omega = torch::empty_like(c.arena.weights()), way = torch::empty_like(omega);
    fill_uniform(omega, 0, 3, Seed{6}.generator("omega"));
    fill_normal(way, 0, 0.1, Seed{7}.generator("way"));
    anchor.move(c, omega, "test");
    torch::NoGradGuard const no_grad;
    c.arena.weights().add_(way);
    c.arena.set_gradient(way * 0.3);
    anchor.pull(c, 7);
    // A block that fills no vector.
    {
      Context::LookAt const look(c, Block{16, 16 + 61});
      anchor.pull(c, 0.3);
    }
    at::set_num_threads(before);
    return c.arena.gradient().clone();
  };
  for (bool const clip : {false, true}) {
    auto const slow = pulled(true, clip, 1);
    CHECK(slow.equal(pulled(false, clip, 1)));
    CHECK(slow.equal(pulled(false, clip, 3)));
    CHECK_FALSE(slow.equal(pulled(true, !clip, 1)));
  }
}

TEST_CASE(
    "a pull to what lies apart is computed all the same, and one to something else is refused") {
  auto const pulled = [](bool by_operations, auto&& pull) {
    Context c;
    auto net = network();
    c.model = Model(net);
    c.arena.bind(*net);
    c.arena.by_operations(by_operations);
    c.arena.set_gradient(torch::ones_like(c.arena.weights()));
    torch::NoGradGuard const no_grad;
    pull(c, torch::arange(2 * c.arena.weights().numel(), torch::kFloat32).mul_(0.001));
    return c.arena.gradient().clone();
  };
  auto const strided = [](Context& c, Tensor const& twice) {
    c.pull(twice.view({-1, 2}).select(1, 1), twice.view({-1, 2}).select(1, 0), 0.7);
  };
  CHECK(pulled(false, strided).equal(pulled(true, strided)));
  auto const shorter = [](Context& c, Tensor const& twice) {
    c.pull(twice.narrow(0, 0, 17), twice.narrow(0, 0, 17), 0.7);
  };
  CHECK_THROWS(pulled(false, shorter));
}

TEST_CASE("one pull goes to the weights right away, and several together, with the same bits") {
  struct Pulls {
    Tensor weights;
    bool at_once = false;
  };
  auto const after = [](int pulls, bool by_operations, bool formed) {
    Context c;
    auto net = network();
    c.model = Model(net);
    c.arena.bind(*net);
    c.arena.by_operations(by_operations);
    auto omega = torch::empty_like(c.arena.weights()), anchor = torch::empty_like(omega);
    fill_uniform(omega, 0, 3, Seed{6}.generator("omega"));
    fill_normal(anchor, 0, 0.1, Seed{7}.generator("anchor"));
    torch::NoGradGuard const no_grad;
    Pulls found;
    for (auto const& block : {Block{0, 512}, Block{512, c.arena.weights().numel()}}) {
      Context::LookAt look(c, block, true);
      for (int i = 0; i < pulls; ++i) c.pull(c.here(anchor), c.here(omega * (i + 1)), 0.7);
      CHECK(look.asked() == (pulls > 0));
      if (formed) c.gradient();
      auto const* const pull = look.only_pull();
      found.at_once = pull != nullptr;
      if (found.at_once) {
        pull->subtract_from(c.weights(), 0.1);
      } else if (pulls > 0) {
        c.weights().add_(c.gradient(), -0.1);
      }
    }
    found.weights = c.arena.weights().clone();
    return found;
  };
  auto const kernels = products::kernels() != products::Kernels::none;
  CHECK_FALSE(after(0, false, false).at_once);
  for (int const pulls : {1, 2}) {
    auto const slow = after(pulls, true, false), fast = after(pulls, false, false);
    CHECK_FALSE(slow.at_once);
    CHECK(fast.at_once == (kernels && pulls == 1));
    CHECK(fast.weights.equal(slow.weights));
    CHECK(after(pulls, false, true).weights.equal(slow.weights));
    CHECK_FALSE(slow.weights.equal(after(0, true, false).weights));
  }
}

TEST_CASE("a learner updates in one pass, but with engine = reference") {
  auto const learned = [](Engine engine, bool plain) {
    auto net = network();
    auto x = torch::empty({40, 37});
    fill_normal(x, 0, 1, Seed{1}.generator("x"));
    Learner learner{net, Adam{.lr = 0.01}};
    learner.fit(make_experience(x, torch::zeros({40}, torch::kInt64)),
                {.batch_size = 8, .engine = engine});
    CHECK(learner.context().arena.by_operations() == plain);
    return learner.context().weights().clone();
  };
  CHECK(distance(learned(Engine::compiled, false), learned(Engine::reference, true)) < 1e-5);
}
