// expect: pawl: an optimizer needs  void step(Arena&)
#include "pawl/core/learner.hpp"

struct Idle {
  double learning_rate() const { return 0; }
};

void use() { pawl::Learner learner{torch::nn::Linear(2, 2), Idle{}}; }
