// The loops by hand and pawl, the same work in turns in one process: Split-MNIST with
// 784-400-400-10 and plain SGD.  pawl-peers [--data DIR] [--work NAME] [--rounds N] [--threads N]
//
// Prints, per work, the median and range of microseconds per step on both sides, the ratio of the
// medians, and the final accuracy of both over all classes.

#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "loops.hpp"

#include <malloc.h>

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <pawl/data/find.hpp>
#include <pawl/models/mlp.hpp>
#include <pawl/pawl.hpp>

namespace {

using Clock = std::chrono::steady_clock;

/// Split-MNIST, on both sides the same rows.
struct Task {
  pawl::Stream stream;
  std::vector<peers::Rows> experiences;
  torch::Tensor test_x, test_y;
};

Task split_mnist(std::filesystem::path const& folder) {
  auto const mnist = pawl::load_mnist(folder);
  Task task;
  task.stream = pawl::split_classes(mnist, {.experiences = 5});
  std::vector<torch::Tensor> x, y;
  for (auto const& experience : task.stream) {
    auto const all = torch::arange(experience.train.size());
    auto const rows = experience.train.read(all);
    task.experiences.push_back({rows.stored, rows.y});
    auto const test = experience.test.read(torch::arange(experience.test.size()));
    x.push_back(test.stored), y.push_back(test.y);
  }
  task.test_x = torch::cat(x), task.test_y = torch::cat(y);
  return task;
}

double seconds(std::function<void()> const& run) {
  auto const start = Clock::now();
  run();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// One side of a comparison: learns an experience, and predicts.
struct Side {
  std::function<void(std::size_t)> learn;
  std::function<torch::Tensor(torch::Tensor const&)> logits;
};

struct Work {
  std::string name;
  std::int64_t batch;
  double lr;
  std::function<Side(Task const&, Work const&)> by_hand, pawl;
};

template <class Loop>
Side by_hand(Task const& task, Work const& work) {
  auto loop = std::make_shared<Loop>(work.lr);
  return {[loop, &task, &work](std::size_t e) { loop->learn(task.experiences[e], work.batch); },
          [loop](torch::Tensor const& x) { return loop->net->forward(Loop::inputs(x)); }};
}

template <class... S>
auto with_pawl(S... strategies) {
  return [=](Task const& task, Work const& work) -> Side {
    using Learner = decltype(pawl::Learner{pawl::Mlp{nullptr}, pawl::Sgd{}, strategies...});
    auto const learner = std::make_shared<Learner>(
        pawl::Mlp(784, 10, pawl::MlpOptions{.hidden = {400, 400}}, pawl::Seed{1}),
        pawl::Sgd{.lr = work.lr}, strategies...);
    return {[learner, &task, &work](std::size_t e) {
              learner->fit(task.stream[static_cast<std::int64_t>(e)], {.batch_size = work.batch});
            },
            [learner](torch::Tensor const& x) {
              return learner->model()->forward(x.to(torch::kFloat32) / 255.);
            }};
  };
}

std::vector<Work> all_work() {
  pawl::Ewc ewc;
  ewc.strength = 100;
  ewc.fisher.samples = 200;  // of which the time of a step knows nothing
  return {
      {"er", 10, 0.05, by_hand<peers::Er>, with_pawl(pawl::Replay{.batch = 10})},
      {"naive", 128, 0.05, by_hand<peers::Naive>, with_pawl()},
      {"lwf", 128, 0.05, by_hand<peers::Lwf>, with_pawl(pawl::Lwf{})},
      {"ewc", 128, 0.05, by_hand<peers::Ewc>, with_pawl(ewc)},
      {"si", 128, 0.05, by_hand<peers::Si>, with_pawl(pawl::Si{})},
      {"a_gem", 128, 0.05, by_hand<peers::AGem>, with_pawl(pawl::AGem{.batch = 128})},
      {"derpp", 128, 0.05, by_hand<peers::DerPlusPlus>, with_pawl(pawl::DerPlusPlus{})},
  };
}

struct Times {
  std::vector<double> all;
  double median() const {
    auto sorted = all;
    std::sort(sorted.begin(), sorted.end());
    return sorted[sorted.size() / 2];
  }
  std::string text() const {
    auto const [low, high] = std::minmax_element(all.begin(), all.end());
    return fmt::format("{:7.0f} [{:.0f}, {:.0f}]", median(), *low, *high);
  }
};

void compare(Task const& task, Work const& work, int rounds) {
  Times hand, own;
  double hand_right = 0, own_right = 0;
  for (int round = 0; round < rounds; ++round) {
    auto a = work.by_hand(task, work), b = work.pawl(task, work);
    for (std::size_t e = 0; e < task.experiences.size(); ++e) {
      auto const steps =
          static_cast<double>((task.experiences[e].x.size(0) + work.batch - 1) / work.batch);
      auto const first = seconds([&] { a.learn(e); }), second = seconds([&] { b.learn(e); });
      if (e == 0) continue;  // memories fill, penalties begin
      hand.all.push_back(first / steps * 1e6), own.all.push_back(second / steps * 1e6);
    }
    torch::NoGradGuard no_grad;
    auto const right = [&](Side const& side) {
      return side.logits(task.test_x).argmax(1).eq(task.test_y).to(torch::kFloat64).mean();
    };
    hand_right += right(a).item<double>(), own_right += right(b).item<double>();
  }
  fmt::print("| {:<6} | {:>5} | {:<22} | {:<22} | {:5.2f} | {:.3f} | {:.3f} |\n", work.name,
             work.batch, hand.text(), own.text(), hand.median() / own.median(), hand_right / rounds,
             own_right / rounds);
  std::fflush(stdout);
}

}  // namespace

int main(int count, char** arguments) {
  CLI::App app{"The same continual learning by hand and with pawl, in turns in one process"};
  std::string data, only;
  int rounds = 2, threads = 1;
  app.add_option("--data", data, "folder of the MNIST files; default: PAWL_DATA");
  app.add_option("--work", only, "one row of the table; default: all");
  app.add_option("--rounds", rounds, "times that all is learned")->check(CLI::PositiveNumber);
  app.add_option("--threads", threads, "of LibTorch")->check(CLI::PositiveNumber);
  CLI11_PARSE(app, count, arguments);
  try {
    // Large blocks stay with the process, on both sides: else every step pays for fresh pages.
    mallopt(M_MMAP_THRESHOLD, 1 << 30);
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
    at::set_num_threads(threads);
    auto const task = split_mnist(pawl::data_root(data));
    fmt::print(
        "| work | batch | by hand, us/step | pawl, us/step | by hand / pawl | accuracy by hand | "
        "accuracy pawl |\n|---|---|---|---|---|---|---|\n");
    bool found = false;
    for (auto const& work : all_work()) {
      if (!only.empty() && work.name != only) continue;
      found = true;
      compare(task, work, rounds);
    }
    pawl::require(found, "there is no work '", only, "'");
  } catch (std::exception const& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
  return 0;
}
