#include <pawl/core/learner.hpp>
#include <pawl/observe/jsonl.hpp>
#include <pawl/observe/progress.hpp>

#include <sstream>
#include <string>
#include <vector>

#include <doctest/doctest.h>  // after LibTorch, whose own CHECK must not win

using namespace pawl;

namespace {

/// Adds the constant 2 to the loss, and reports 3 as a penalty that it adds in closed form.
struct Constant {
  static constexpr char const* name = "constant";
  Tensor penalty(Context& c) { return c.logits.sum() * 0 + 2; }
  void edit_gradient(Context&) {}
  Tensor penalty_value(Context&) { return torch::full({}, 3.0); }
};

Experience two_rows(std::int64_t index = 0) {
  return make_experience(torch::eye(2), torch::tensor({0, 1}), {}, index);
}

/// A linear layer of zeros: its first loss is ln 2.
nn::Linear zeros() {
  nn::Linear net(2, 2);
  torch::NoGradGuard no_grad;
  for (auto& p : net->parameters()) p.zero_();
  return net;
}

std::vector<std::string> lines(std::ostringstream const& out) {
  std::vector<std::string> all;
  std::istringstream in(out.str());
  for (std::string line; std::getline(in, line);) all.push_back(line);
  return all;
}

}  // namespace

TEST_CASE("Jsonl writes the loss and every penalty of each step as one object per line") {
  std::ostringstream out;
  Learner learner{zeros(), Sgd{.lr = 0}, Constant{}};
  learner.fit(two_rows(3), {.epochs = 2, .batch_size = 1}, Jsonl{out});
  auto const text = lines(out);
  REQUIRE(text.size() == 4);
  CHECK(text[0].find("{\"experience\":3,\"epoch\":0,\"step\":0,\"loss\":0.69314") == 0);
  CHECK(text[0].find("\"penalties\":{\"constant\":2,\"constant2\":3}}") != std::string::npos);
  CHECK(text[3].find("{\"experience\":3,\"epoch\":1,\"step\":3,") == 0);
}

TEST_CASE("Jsonl can leave steps out") {
  std::ostringstream out;
  Learner learner{zeros(), Sgd{.lr = 0}};
  learner.fit(two_rows(), {.epochs = 5, .batch_size = 1}, Jsonl{out, 4});
  auto const text = lines(out);
  REQUIRE(text.size() == 3);
  CHECK(text[1].find("\"step\":4,") != std::string::npos);
  CHECK(text[2].find("\"step\":8,") != std::string::npos);
}

TEST_CASE("watching a run does not change it") {
  auto const weights = [](auto&&... observers) {
    Learner learner{zeros(), Sgd{.lr = 0.5, .momentum = 0.9}};
    learner.fit(two_rows(), {.epochs = 7, .batch_size = 1}, observers...);
    return learner.context().weights().clone();
  };
  std::ostringstream out;
  CHECK(weights().equal(weights(Jsonl{out}, Progress{"seed 1"})));
}

TEST_CASE("Progress is silent where stderr is not a terminal") {
  Progress progress{"seed 1"};
  progress.terminal = false;
  Learner learner{zeros(), Sgd{.lr = 0.5}};
  learner.fit(two_rows(), {.epochs = 3, .batch_size = 1}, progress);
  CHECK(progress.last == progress.started);  // it never came to write a line
}
