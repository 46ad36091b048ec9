// Strategies that keep a memory of rows.

#include <cstdint>

#include "replay_loops.hpp"
#include "sides.hpp"
#include "works.hpp"

#include <pawl/memory/reservoir.hpp>
#include <pawl/models/slim_resnet18.hpp>
#include <pawl/strategies/a_gem.hpp>
#include <pawl/strategies/der.hpp>
#include <pawl/strategies/replay.hpp>

namespace peers {

Work er_work() {
  return {"er", "split_mnist", 10,
          0.05, by_hand<Er>(), with_pawl(own_mlp, pawl::Replay{.batch = 10})};
}

Work a_gem_work() {
  return {"a_gem",
          "split_mnist",
          128,
          0.05,
          by_hand<AGem>(),
          with_pawl(own_mlp, pawl::AGem{.memory = pawl::Reservoir{}, .batch = 128})};
}

Work derpp_work() {
  return {"derpp", "split_mnist",          128,
          0.05,    by_hand<DerPlusPlus>(), with_pawl(own_mlp, pawl::DerPlusPlus{})};
}

Work er_cnn_work() {
  auto const cnn = [](pawl::Seed seed) {
    return pawl::SlimResNet18(3, 10, pawl::SlimResNet18Options{}, seed);
  };
  auto const cnn_by_hand = [cnn](std::uint64_t seed) { return Network(cnn(pawl::Seed{seed})); };
  return {"er_cnn", "split_cifar10",          10,
          0.03,     by_hand<Er>(cnn_by_hand), with_pawl(cnn, pawl::Replay{.batch = 10})};
}

}  // namespace peers
