// expect: pawl: two strategies of this learner both own  loss(Context&)
#include "pawl/core/learner.hpp"

struct First {
  torch::Tensor loss(pawl::Context& context) { return context.logits.sum(); }
};
struct Second {
  torch::Tensor loss(pawl::Context& context) { return context.logits.mean(); }
};

void use() {
  pawl::Learner learner{torch::nn::Linear(2, 2), pawl::Sgd{.lr = 0.1}, First{}, Second{}};
}
