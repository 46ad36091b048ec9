// expect: pawl: a model must be a module holder (nn::Sequential, a TORCH_MODULE)
#include "pawl/core/learner.hpp"

struct Silent : torch::nn::Module {};

void use() { pawl::Learner learner{std::make_shared<Silent>(), pawl::Sgd{.lr = 0.1}}; }
