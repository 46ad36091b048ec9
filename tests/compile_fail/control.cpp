// compiles
#include "pawl/core/learner.hpp"

struct Halve {
  void edit_gradient(pawl::Context& context) { context.gradient().mul_(0.5); }
};
struct Watch {
  void step(pawl::Context const&) {}
};

void use() {
  pawl::Learner learner{torch::nn::Linear(2, 2), pawl::Sgd{.lr = 0.1}, Halve{}};
  learner.fit({}, {.epochs = 1}, Watch{});
}
