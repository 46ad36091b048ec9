#include "drawn.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <functional>
#include <random>
#include <utility>
#include <vector>

#include "penalty_loops.hpp"
#include "replay_loops.hpp"
#include "sides.hpp"

#include <fmt/format.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/normalization.h>

#include <pawl/core/any_learner.hpp>
#include <pawl/memory/reservoir.hpp>
#include <pawl/optimizers/adam.hpp>
#include <pawl/strategies/a_gem.hpp>
#include <pawl/strategies/der.hpp>
#include <pawl/strategies/ewc.hpp>
#include <pawl/strategies/lwf.hpp>
#include <pawl/strategies/replay.hpp>
#include <pawl/strategies/si.hpp>

namespace peers {
namespace {

namespace nn = torch::nn;

class Draw {
 public:
  explicit Draw(std::uint64_t seed) : random_(seed) {}

  /// The same numbers with every standard library, which its distributions do not promise.
  std::int64_t below(std::int64_t n) {
    return static_cast<std::int64_t>(random_() % static_cast<std::uint64_t>(n));
  }
  bool chance(std::int64_t percent) { return below(100) < percent; }
  template <std::size_t n>
  std::int64_t one_of(std::array<std::int64_t, n> const& all) {
    return all[static_cast<std::size_t>(below(n))];
  }

 private:
  std::mt19937_64 random_;
};

/// Images as they go through a network: channels [c, side, side].
struct Maps {
  std::int64_t channels, side;
};

/// A network with a forward of its own, drawn from a seed.
struct DrawnNetImpl : nn::Module {
  DrawnNetImpl(std::uint64_t seed, Maps maps, bool convolves) : draw_(seed) {
    torch::manual_seed(seed);
    activation_ = draw_.chance(70) ? 0 : 1 + draw_.below(4);
    auto const convolutions = convolves ? 1 + draw_.below(4) : 0;
    for (std::int64_t i = 0; i < convolutions && maps.side >= 6; ++i) convolve(maps);
    if (convolves && draw_.chance(40)) {
      then("mean over pixels", [](Tensor const& x) { return at::adaptive_avg_pool2d(x, {1, 1}); });
      maps.side = 1;
    }
    auto features = maps.channels * maps.side * maps.side;
    auto const views = draw_.chance(50);
    then("", [=](Tensor const& x) { return views ? x.view({-1, features}) : x.flatten(1); });
    auto const layers = convolves ? draw_.below(2) : draw_.below(4);
    for (std::int64_t i = 0; i < layers; ++i) connect(features);
    then("10", layer(nn::Linear(features, 10)));
  }

  Tensor forward(Tensor x) {
    for (auto const& stage : stages_) x = stage(x);
    return x;
  }
  std::string const& text() const { return text_; }

 private:
  using Stage = std::function<Tensor(Tensor const&)>;

  void then(std::string const& name, Stage stage) {
    if (!name.empty()) text_ += (text_.empty() ? "" : ", ") + name;
    stages_.push_back(std::move(stage));
  }
  template <class Layer>
  Stage layer(Layer made) {
    auto const kept = register_module(std::to_string(children().size()), std::move(made));
    return [kept](Tensor const& x) mutable { return kept->forward(x); };
  }
  Stage activation() const {
    switch (activation_) {
      case 1:
        return [](Tensor const& x) { return x.tanh(); };
      case 2:
        return [](Tensor const& x) { return at::gelu(x); };
      case 3:
        return [](Tensor const& x) { return at::elu(x); };
      case 4:
        return [](Tensor const& x) { return at::silu(x); };
      default:
        return [](Tensor const& x) { return x.relu(); };
    }
  }

  void convolve(Maps& maps) {
    auto const out = draw_.one_of<6>({6, 16, 20, 32, 48, 64}), size = draw_.one_of<3>({3, 3, 5});
    auto const stride = draw_.chance(30) ? 2 : 1;
    auto const normalises = draw_.chance(40);
    auto const options = nn::Conv2dOptions(maps.channels, out, size);
    then(fmt::format("conv {} k{} s{}", out, size, stride),
         layer(nn::Conv2d(
             nn::Conv2dOptions(options).stride(stride).padding(size / 2).bias(!normalises))));
    if (normalises) then("norm", layer(nn::BatchNorm2d(out)));
    then("", activation());
    maps = {out, (maps.side + 2 * (size / 2) - size) / stride + 1};
    auto const pool = draw_.below(3);
    if (pool == 0 || maps.side < 4) return;
    if (pool == 1) then("max pool", [](Tensor const& x) { return at::max_pool2d(x, 2); });
    if (pool == 2) then("mean pool", [](Tensor const& x) { return at::avg_pool2d(x, 2); });
    maps.side /= 2;
  }

  void connect(std::int64_t& features) {
    if (features <= 1000 && draw_.chance(20)) {
      auto const inner = layer(nn::Linear(features, features)), outer = activation();
      then(fmt::format("residual {}", features),
           [=](Tensor const& x) { return x + outer(inner(x)); });
      return;
    }
    auto const out = draw_.one_of<7>({50, 64, 100, 128, 256, 400, 1000});
    then(std::to_string(out), layer(nn::Linear(features, out)));
    auto const kind = draw_.below(8);
    if (kind == 0) then("layer norm", layer(nn::LayerNorm(nn::LayerNormOptions({out}))));
    if (kind == 1) then("norm", layer(nn::BatchNorm1d(out)));
    then("", activation());
    if (kind == 2) then("dropout", layer(nn::Dropout(0.2)));
    features = out;
  }

  Draw draw_;
  std::int64_t activation_ = 0;
  std::vector<Stage> stages_;
  std::string text_;
};
TORCH_MODULE(DrawnNet);

using MakeNet = std::function<DrawnNet()>;

/// One method, by hand and with pawl.
struct Method {
  char const* name;
  std::function<std::shared_ptr<Loop>(std::function<Network()>, Rule const&)> by_hand;
  std::function<std::vector<pawl::AnyStrategy>(std::int64_t batch)> pawl;
};

template <class Hand>
std::shared_ptr<Loop> loop(std::function<Network()> const& network, Rule const& rule) {
  return std::make_shared<Hand>(network, rule);
}
template <class S>
std::vector<pawl::AnyStrategy> only(S strategy) {
  std::vector<pawl::AnyStrategy> all;
  all.emplace_back(std::move(strategy));
  return all;
}

std::vector<Method> methods() {
  return {
      {"naive", loop<Naive>, [](auto) { return std::vector<pawl::AnyStrategy>(); }},
      {"er", loop<Er>, [](auto batch) { return only(pawl::Replay{.batch = batch}); }},
      {"ewc",
       [](auto const& network, auto const& rule) {
         auto const ewc = std::make_shared<Ewc>(network, rule);
         ewc->strength = 1;
         return ewc;
       },
       [](auto) {
         pawl::Ewc ewc;
         ewc.strength = 1;
         ewc.fisher = {.labels = pawl::FisherLabels::empirical, .samples = 200};
         return only(ewc);
       }},
      {"lwf", loop<Lwf>, [](auto) { return only(pawl::Lwf{}); }},
      {"si", loop<Si>, [](auto) { return only(pawl::Si{}); }},
      {"a_gem", loop<AGem>,
       [](auto) { return only(pawl::AGem{.memory = pawl::Reservoir{}, .batch = 128}); }},
      {"derpp", loop<DerPlusPlus>, [](auto) { return only(pawl::DerPlusPlus{}); }},
  };
}

pawl::AnyOptimizer optimizer_of_pawl(Rule const& rule) {
  if (rule.kind == Rule::Kind::adam) return pawl::Adam{.lr = rule.lr};
  return pawl::Sgd{.lr = rule.lr, .momentum = rule.kind == Rule::Kind::momentum ? 0.9 : 0};
}

/// Random images of ten classes, two of them in each experience. `dark` percent of pixels are
/// black.
std::unique_ptr<Task> random_task(Maps const& maps, std::int64_t rows, std::int64_t dark) {
  auto const images = [&](std::int64_t n) {
    std::vector<std::int64_t> const shape{n, maps.channels, maps.side, maps.side};
    auto const seen = torch::rand(shape).mul_(100).ge_(dark);
    return (torch::rand(shape).mul_(255) * seen).to(torch::kUInt8);
  };
  auto const labels = [](std::int64_t n) { return torch::arange(n) % 10; };
  pawl::TrainTest const data{.name = "random images",
                             .train = pawl::resident(images(5 * rows), labels(5 * rows)),
                             .test = pawl::resident(images(50), labels(50)),
                             .classes = 10,
                             .normalise = {.scale = 1 / 255.}};
  return std::make_unique<Task>(task_of(pawl::split_classes(data, {.experiences = 5}), rows));
}

}  // namespace

Drawn drawn_work(std::uint64_t seed, std::int64_t steps) {
  Draw draw(seed);
  auto const convolves = draw.chance(40);
  auto const maps = draw.chance(50) ? Maps{1, 28} : Maps{3, 32};
  auto const batch = draw.one_of<5>({10, 10, 32, 64, 128});
  auto const all = methods();
  auto const method = all[static_cast<std::size_t>(draw.below(std::ssize(all)))];
  auto const kind = draw.chance(50) ? 0 : 1 + draw.below(2);
  auto const rule = std::array{Rule{Rule::Kind::sgd, 0.01}, Rule{Rule::Kind::momentum, 0.01},
                               Rule{Rule::Kind::adam, 0.001}}[static_cast<std::size_t>(kind)];
  MakeNet const network = [=] { return DrawnNet(seed, maps, convolves); };

  Drawn drawn;
  constexpr std::array names{"SGD", "momentum", "Adam"};
  drawn.text = fmt::format("{}, {}, batch {}, {}x{}x{}: {}", method.name,
                           names[static_cast<std::size_t>(kind)], batch, maps.channels, maps.side,
                           maps.side, network()->text());
  drawn.task = random_task(maps, steps * batch, draw.chance(50) ? 80 : 0);
  drawn.work = {
      std::to_string(seed),
      "drawn",
      batch,
      rule.lr,
      [=](Task const& task, Work const& work, std::uint64_t) {
        return side_by_hand(method.by_hand([=] { return Network(network()); }, rule), task, work);
      },
      [=](Task const& task, Work const& work, std::uint64_t number) {
        auto const learner =
            std::make_shared<pawl::AnyLearner>(pawl::Model(network()), optimizer_of_pawl(rule),
                                               pawl::StrategyList(method.pawl(batch)));
        learner->seed(pawl::Seed{number});
        return side_with_pawl(learner, task, work);
      }};
  return drawn;
}

}  // namespace peers
