// expect: pawl: the hook must be  Tensor penalty(Context&)
#include "pawl/core/learner.hpp"

struct Shrink {
  double penalty(pawl::Context&) { return 1; }
};

void use() { pawl::Learner learner{torch::nn::Linear(2, 2), pawl::Sgd{.lr = 0.1}, Shrink{}}; }
