// expect: pawl: an observer needs at least one of  begin, step, end (Context const&)
#include "pawl/core/learner.hpp"

struct Blind {};

void use() {
  pawl::Learner learner{torch::nn::Linear(2, 2), pawl::Sgd{.lr = 0.1}};
  learner.fit({}, {.epochs = 1}, Blind{});
}
