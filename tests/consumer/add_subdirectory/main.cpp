#include <pawl/core/data.hpp>

int main() {
  auto const experience = pawl::make_experience(torch::zeros({4, 2}), torch::arange(4));
  return experience.train.size() == 4 ? 0 : 1;
}
