// expect: pawl: two strategies of this learner both own  loss(Context&)
// expect: check_loss_owners
// expect: FirstLoss, SecondLoss>
// expect: pawl: two strategies of this learner both own  scores(Context&, Tensor)
// expect: check_scores_owners
// expect: FirstScores, SecondScores>
#include "pawl/core/learner.hpp"

struct FirstLoss {
  torch::Tensor loss(pawl::Context& context) { return context.logits.sum(); }
};
struct SecondLoss {
  torch::Tensor loss(pawl::Context& context) { return context.logits.mean(); }
};
struct FirstScores {
  torch::Tensor scores(pawl::Context&, torch::Tensor x) { return x; }
};
struct SecondScores {
  torch::Tensor scores(pawl::Context&, torch::Tensor x) { return -x; }
};

void use() {
  pawl::Learner learner{torch::nn::Linear(2, 2), pawl::Sgd{.lr = 0.1}, FirstLoss{},
                        FirstScores{},           SecondLoss{},         SecondScores{}};
}
