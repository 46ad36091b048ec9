// expect: pawl: a strategy needs at least one hook: begin
#include "pawl/core/learner.hpp"

struct Halve {
  void edit_gradients(pawl::Context& context) { context.gradient().mul_(0.5); }
};

void use() { pawl::Learner learner{torch::nn::Linear(2, 2), pawl::Sgd{.lr = 0.1}, Halve{}}; }
