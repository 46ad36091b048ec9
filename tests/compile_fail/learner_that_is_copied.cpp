// expect: deleted
#include "pawl/core/learner.hpp"

void use() {
  pawl::Learner learner{torch::nn::Linear(2, 2), pawl::Sgd{.lr = 0.1}};
  auto copy = learner;  // would train the same module from a state of its own
}
