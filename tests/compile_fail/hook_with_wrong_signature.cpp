// expect: pawl: the hook must be  void edit_gradient(Context&)
#include "pawl/core/learner.hpp"

struct Halve {
  void edit_gradient(torch::Tensor gradient) { gradient.mul_(0.5); }
};

void use() { pawl::Learner learner{torch::nn::Linear(2, 2), pawl::Sgd{.lr = 0.1}, Halve{}}; }
