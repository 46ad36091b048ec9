// expect: pawl: the hook must be  void begin(Context&, Experience const&)
// expect: pawl: the hook must be  Dataset enlarge(Context&, Dataset)
// expect: pawl: the hook must be  Batch extend(Context&, Batch)
// expect: pawl: the hook must be  Tensor loss(Context&)
// expect: pawl: the hook must be  Tensor penalty(Context&)
// expect: pawl: the hook must be  void edit_gradient(Context&)
// expect: pawl: the hook must be  void after_step(Context&)
// expect: pawl: the hook must be  void end(Context&, Experience const&)
// expect: pawl: the hook must be  Tensor scores(Context&, Tensor)
#include "pawl/core/learner.hpp"

struct Halve {
  void begin(pawl::Context&) {}
  void enlarge(pawl::Context&, pawl::Dataset) {}
  pawl::Batch extend(pawl::Batch batch) { return batch; }
  double loss(pawl::Context&) { return 1; }
  double penalty(pawl::Context&) { return 1; }
  void edit_gradient(torch::Tensor gradient) { gradient.mul_(0.5); }
  void after_step(pawl::Context) {}  // would see a copy
  int end(pawl::Context&, pawl::Experience const&) { return 1; }
  torch::Tensor scores(torch::Tensor x) { return x; }
};

void use() { pawl::Learner learner{torch::nn::Linear(2, 2), pawl::Sgd{.lr = 0.1}, Halve{}}; }
