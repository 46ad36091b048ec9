// No strategy, and those that add a penalty to the loss.

#include "penalty_loops.hpp"
#include "sides.hpp"
#include "works.hpp"

#include <pawl/strategies/ewc.hpp>
#include <pawl/strategies/lwf.hpp>
#include <pawl/strategies/si.hpp>

namespace peers {

Work naive_work() {
  return {"naive", "split_mnist", 128, 0.05, by_hand<Naive>(), with_pawl(own_mlp)};
}

Work ewc_work() {
  pawl::Ewc ewc;
  ewc.strength = 20;
  ewc.fisher = {.labels = pawl::FisherLabels::empirical, .samples = 200};
  return {"ewc", "permuted_mnist", 128, 0.1, by_hand<Ewc>(), with_pawl(own_mlp, ewc)};
}

Work lwf_work() {
  return {"lwf", "split_mnist", 128, 0.05, by_hand<Lwf>(), with_pawl(own_mlp, pawl::Lwf{})};
}

Work si_work() {
  return {"si", "split_mnist", 128, 0.05, by_hand<Si>(), with_pawl(own_mlp, pawl::Si{})};
}

}  // namespace peers
