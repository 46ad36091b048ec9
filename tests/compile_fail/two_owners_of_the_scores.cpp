// expect: pawl: two strategies of this learner both own  scores(Context&, Tensor)
#include "pawl/core/learner.hpp"

struct First {
  torch::Tensor scores(pawl::Context&, torch::Tensor x) { return x; }
};
struct Second {
  torch::Tensor scores(pawl::Context&, torch::Tensor x) { return -x; }
};

void use() {
  pawl::Learner learner{torch::nn::Linear(2, 2), pawl::Sgd{.lr = 0.1}, First{}, Second{}};
}
