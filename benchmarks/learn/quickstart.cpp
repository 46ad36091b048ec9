#include <chrono>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "commands.hpp"
#include "experiment.hpp"
#include "report.hpp"

#include <unistd.h>

#include <fmt/format.h>

namespace bench {

namespace {

using Settings = std::vector<std::pair<std::string, std::string>>;

/// What all rows of the table share. Strengths were searched on seeds 100 to 102, in steps of
/// about 3.
Settings const common{
    {"stream", "split_digits"}, {"experiences", "5"}, {"scenario", "class"}, {"model", "mlp"},
    {"model.hidden", "200"},    {"optimizer", "sgd"}, {"lr", "0.05"},        {"epochs", "5"},
    {"batch_size", "10"}};

std::vector<std::pair<std::string, Settings>> const rows{
    {"naive", {}},
    {"ewc", {{"ewc.strength", "100"}}},
    {"lwf", {{"lwf.strength", "1"}}},
    {"replay", {{"replay.capacity", "200"}, {"replay.batch", "10"}}},
    {"replay,lwf", {{"replay.capacity", "200"}, {"replay.batch", "10"}, {"lwf.strength", "0.3"}}},
    {"derpp",
     {{"derpp.capacity", "200"},
      {"derpp.batch", "10"},
      {"derpp.alpha", "0.5"},
      {"derpp.beta", "1"}}},
    {"joint", {}},
};

constexpr char const* usage =
    "usage: pawl-bench quickstart [--data DIR] [--seeds N]\n\n"
    "Seven strategies learn the 8x8 digits, two classes at a time, and are compared on all ten.\n\n"
    "  --data DIR  folder of the data sets (default: PAWL_DATA, else data)\n"
    "  --seeds N   runs per strategy (default 5)\n";

Config configured(std::string const& strategy, Settings const& own, std::string const& data,
                  std::string const& seeds) {
  std::vector<Assignment> all{{"strategy", strategy}, {"data", data}, {"seeds", seeds}};
  for (auto const& [key, value] : common) all.push_back({key, value});
  for (auto const& [key, value] : own) all.push_back({key, value});
  Config config;
  configure(config, all);
  return config;
}

}  // namespace

int quickstart_command(Arguments const& arguments) {
  auto parsed = parse(arguments, {"help"});
  if (parsed.take_switch("help")) {
    std::fputs(usage, stdout);
    return 0;
  }
  auto const data_folder = parsed.take("data"), seeds = parsed.take("seeds", "5");
  if (!parsed.assignments.empty() || !parsed.names.empty()) {
    auto const wrong =
        parsed.names.empty() ? "--" + parsed.assignments.front().key : parsed.names.front();
    throw UsageError("quickstart knows --data and --seeds, but not '" + wrong + "'");
  }
  set_threads(1);
  catch_interrupts();
  auto const terminal = ::isatty(STDERR_FILENO) != 0;
  std::vector<std::vector<std::string>> table{
      {"strategy", "final accuracy %", "average incremental %", "forgetting %", "seconds"}};
  for (auto const& [name, settings] : rows) {
    auto const config = configured(name, settings, data_folder, seeds);
    check(config);
    auto const data = load_data(config);
    auto const start = std::chrono::steady_clock::now();
    std::vector<SeedResult> results;
    try {
      for (std::int64_t seed = 0; seed < config.run.seeds; ++seed) {
        auto const label = fmt::format("{:<10} seed {}/{}", name, seed + 1, config.run.seeds);
        results.push_back(run_seed(config, data, seed, label, [](auto const&) {}));
      }
    } catch (Interrupted const&) {
      std::fprintf(stderr, "%spawl-bench: interrupted\n", terminal ? "\r\033[K" : "");
      if (table.size() > 1) std::fputs(aligned(table).c_str(), stdout);
      return exit_interrupted;
    }
    auto const seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    table.push_back({name, mean_and_interval(results, "final_accuracy", 100),
                     mean_and_interval(results, "average_incremental", 100),
                     mean_and_interval(results, "forgetting", 100),
                     fmt::format("{:.1f}", seconds)});
    std::fprintf(stderr, "%s%-10s %s %% after the last experience\n", terminal ? "\r\033[K" : "",
                 name.c_str(), table.back()[1].c_str());
  }
  std::printf(
      "\nsplit digits, 5 experiences of 2 classes, class-incremental, %s seeds, 95 %% "
      "intervals\n\n%s",
      seeds.c_str(), aligned(table).c_str());
  return 0;
}

}  // namespace bench
