// The same with a learner of two strategies that is trained.
#include <pawl/pawl.hpp>

void learn(pawl::nn::Sequential const& net, pawl::Stream const& stream) {
  pawl::Learner learner{net, pawl::Sgd{.lr = 0.05}, pawl::Replay{}, pawl::Lwf{}};
  for (auto const& experience : stream) learner.fit(experience, {.epochs = 1});
}
