// The loops by hand and pawl, the same work in turns in one process.
//   pawl-peers [--data DIR] [--work NAME]... [--rounds N] [--rows N] [--images N] [--json]
//   pawl-peers --drawn N [--seed N] [--steps N]
//
// Prints, per work, the median and range of microseconds per step on both sides, the ratio of the
// medians, and the final accuracy of both over all classes. scripts/compare_peers adds Python.
// The second command draws works at random and needs no data: is pawl slower anywhere?

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <iostream>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "drawn.hpp"
#include "works.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/version.h>
#include <CLI/CLI.hpp>

#include <pawl/data/find.hpp>
#include <pawl/engine/pages.hpp>

namespace {

using peers::Task;
using peers::Work;

/// What one side did in one round.
struct Result {
  std::vector<double> step_us, end_ms;  ///< of each experience: a step, what follows the last one
  double accuracy = 0;
};

double accuracy(peers::Side const& side, Task const& task) {
  torch::NoGradGuard no_grad;
  double right = 0;
  auto const x = task.test_x.split(500), y = task.test_y.split(500);
  for (std::size_t i = 0; i < x.size(); ++i) {
    auto const z = side.logits(peers::Loop::inputs(x[i]));
    right += z.argmax(1).eq(y[i]).sum().item<double>();
  }
  return right / static_cast<double>(task.test_y.size(0));
}

/// One round: both sides learn the task, experience by experience in turns.
std::pair<Result, Result> learn(Task const& task, Work const& work, std::uint64_t seed) {
  auto const hand = work.by_hand(task, work, seed), own = work.pawl(task, work, seed);
  std::pair<Result, Result> results;
  for (std::size_t e = 0; e < task.experiences.size(); ++e) {
    auto const steps =
        static_cast<double>((task.experiences[e].x.size(0) + work.batch - 1) / work.batch);
    auto const note = [&](Result& result, peers::Seconds const& seconds) {
      result.step_us.push_back(seconds.steps / steps * 1e6);
      result.end_ms.push_back(seconds.end * 1e3);
    };
    note(results.first, hand.learn(e));
    note(results.second, own.learn(e));
  }
  results.first.accuracy = accuracy(hand, task), results.second.accuracy = accuracy(own, task);
  return results;
}

std::string compiler() {
  std::string const version = __VERSION__;  // of g++ a number, of others with their name
  return version[0] >= '0' && version[0] <= '9' ? "g++ " + version : version;
}

void print_json(Work const& work, std::string const& side, Result const& result) {
  fmt::print(R"({{"work": "{}", "side": "{}", "step_us": [{:.1f}], "end_ms": [{:.2f}], )"
             R"("accuracy": {:.4f}, "versions": "LibTorch {}, {}"}})"
             "\n",
             work.name, side, fmt::join(result.step_us, ", "), fmt::join(result.end_ms, ", "),
             result.accuracy, TORCH_VERSION, compiler());
}

/// The experiences after the first, in which memories fill and penalties begin, of all rounds.
struct Times {
  std::vector<double> all;
  double right = 0;

  void add(Result const& result) {
    all.insert(all.end(), result.step_us.begin() + 1, result.step_us.end());
    right += result.accuracy;
  }
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

struct Arguments {
  std::string data;
  std::vector<std::string> works;
  int rounds = 2, threads = 1;
  peers::Limits limits{.rows = std::numeric_limits<std::int64_t>::max(), .images = 500};
  bool json = false, asked = false;
  std::int64_t drawn = 0, steps = 20;
  std::uint64_t seed = 1;
};

/// All the rounds of a work, as a row of the table or as lines of JSON.
void compare(peers::Tasks& tasks, Work const& work, Arguments const& arguments,
             std::uint64_t& seed) {
  auto const& task = tasks[work.task];
  Times hand, own;
  for (int round = 0; round < arguments.rounds; ++round) {
    auto const [a, b] = learn(task, work, ++seed);
    hand.add(a), own.add(b);
    if (!arguments.json) continue;
    print_json(work, "C++ by hand", a);
    print_json(work, "pawl", b);
  }
  if (!arguments.json) {
    fmt::print("| {:<6} | {:>5} | {:<22} | {:<22} | {:5.2f} | {:.3f} | {:.3f} |\n", work.name,
               work.batch, hand.text(), own.text(), hand.median() / own.median(),
               hand.right / arguments.rounds, own.right / arguments.rounds);
  }
  std::fflush(stdout);
}

/// Works that seeds draw, one after another, and what all of them come to.
void compare_drawn(Arguments const& arguments) {
  fmt::print(
      "| seed | drawn | by hand, us/step | pawl, us/step | by hand / pawl |\n"
      "|---|---|---|---|---|\n");
  std::vector<double> ratios;
  for (std::int64_t i = 0; i < arguments.drawn; ++i) {
    auto const seed = arguments.seed + static_cast<std::uint64_t>(i);
    auto const drawn = peers::drawn_work(seed, arguments.steps);
    fmt::print("| {} | {} | ", seed, drawn.text);
    try {
      auto const [a, b] = learn(*drawn.task, drawn.work, seed);
      Times hand, own;
      hand.add(a), own.add(b);
      ratios.push_back(hand.median() / own.median());
      fmt::print("{} | {} | {:.2f} |\n", hand.text(), own.text(), ratios.back());
    } catch (pawl::Diverged const&) {
      fmt::print("it diverges | | |\n");
    }
    std::fflush(stdout);
  }
  if (ratios.empty()) return;
  std::sort(ratios.begin(), ratios.end());
  fmt::print("\nby hand / pawl of {}: lowest {:.2f}, a tenth up to {:.2f}, median {:.2f}\n",
             ratios.size(), ratios.front(), ratios[ratios.size() / 10], ratios[ratios.size() / 2]);
}

Work const& find(std::vector<Work> const& works, std::string const& name) {
  auto const found =
      std::find_if(works.begin(), works.end(), [&](Work const& work) { return work.name == name; });
  pawl::require(found != works.end(), {"there is no work '", name, "'"});
  return *found;
}

void run(Arguments const& arguments) {
  if (arguments.drawn > 0) return compare_drawn(arguments);
  peers::Tasks tasks(pawl::data_root(arguments.data), arguments.limits);
  auto const works = peers::all_works();
  std::uint64_t seed = 0;
  if (arguments.asked) {
    for (std::string name; std::getline(std::cin, name);) {
      compare(tasks, find(works, name), arguments, seed);
      fmt::print("\n");
      std::fflush(stdout);
    }
    return;
  }
  if (!arguments.json) {
    fmt::print(
        "| work | batch | by hand, us/step | pawl, us/step | by hand / pawl | accuracy by hand | "
        "accuracy pawl |\n|---|---|---|---|---|---|---|\n");
  }
  for (auto const& name : arguments.works) {
    compare(tasks, find(works, name), arguments, seed);
  }
  if (!arguments.works.empty()) return;
  for (auto const& work : works) {
    if (work.task == "split_cifar10" && !peers::has_cifar10(tasks.data())) {
      fmt::print(stderr, "{} is left out: there is no CIFAR-10 in '{}'\n", work.name,
                 tasks.data().string());
      continue;
    }
    compare(tasks, work, arguments, seed);
  }
}

}  // namespace

int main(int count, char** given) {
  CLI::App app{"The same continual learning by hand and with pawl, in turns in one process"};
  Arguments arguments;
  CLI::Validator const at_least_one(
      [](std::string const& given) {
        std::int64_t number = 0;
        auto const fits = CLI::detail::lexical_cast(given, number) && number >= 1;
        return fits ? std::string() : "'" + given + "' is no whole number of 1 or more";
      },
      "COUNT");
  app.add_option("--data", arguments.data, "folder of MNIST and CIFAR-10; default: PAWL_DATA");
  auto* const work = app.add_option("--work", arguments.works, "a row of the table; default: all");
  app.add_option("--rounds", arguments.rounds, "times that all is learned")->check(at_least_one);
  app.add_option("--rows", arguments.limits.rows, "digits per experience; default: all")
      ->check(at_least_one);
  app.add_option("--images", arguments.limits.images, "CIFAR-10 images per experience")
      ->check(at_least_one);
  app.add_option("--threads", arguments.threads, "of LibTorch")->check(at_least_one);
  auto* const json = app.add_flag("--json", arguments.json,
                                  "a line of JSON per round and side instead of the table");
  auto* const asked =
      app.add_flag("--asked", arguments.asked,
                   "works are named on standard input, one a line; an empty line ends each answer");
  auto* const drawn =
      app.add_option("--drawn", arguments.drawn, "so many works drawn at random, in their place")
          ->check(at_least_one);
  for (auto* const other : {work, json, asked}) drawn->excludes(other);
  app.add_option("--seed", arguments.seed, "of the first one drawn")->needs(drawn);
  app.add_option("--steps", arguments.steps, "in each of five experiences of one drawn")
      ->check(at_least_one)
      ->needs(drawn);
  CLI11_PARSE(app, count, given);
  try {
    pawl::keep_freed_memory();  // on both sides: else every step by hand pays for fresh pages
    at::set_num_threads(arguments.threads);
    run(arguments);
  } catch (std::exception const& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
  return 0;
}
