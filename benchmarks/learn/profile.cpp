// Where the time of training goes, part by part.

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "commands.hpp"
#include "experiment.hpp"
#include "phases.hpp"
#include "record.hpp"
#include "report.hpp"

#include <fmt/format.h>
#include <torch/csrc/autograd/profiler_kineto.h>

namespace bench {

namespace {

struct ProfileOptions {
  std::int64_t steps = 200;
  std::string trace;
  bool force = false;
};

/// Of the experiences that were measured.
struct Profile {
  std::vector<PhaseRecord> parts;
  std::int64_t experiences = 0;
  std::int64_t steps = 0;
  std::int64_t samples = 0;        ///< fresh rows
  std::int64_t counted_steps = 0;  ///< in which operations, allocations and nodes were counted
  std::string engine;
};

/// The first rows of an experience, so many that an epoch has at most this many steps.
pawl::Experience cut(pawl::Experience experience, std::int64_t steps, std::int64_t batch_size) {
  auto const rows = std::min(experience.train.size(), steps * batch_size);
  experience.train = experience.train.select(torch::arange(rows));
  return experience;
}

struct Steps {
  void step(pawl::Context const& c) {
    ++count;
    samples += c.fresh.size();
    if (interrupted()) throw Interrupted{};
  }
  std::int64_t count = 0, samples = 0;
};

/// Learns the last experience once more, this time counting: the counting itself takes time.
void count_operations(pawl::AnyLearner& learner, pawl::Experience const& experience,
                      pawl::Training const& training, Profile& profile) {
  Steps steps;
  PhaseListener listener(PhaseListener::Measure::operations, learner.context().arena.device());
  learner.fit(experience, training, steps);
  profile.counted_steps = steps.count;
  for (auto const& counted : listener.records()) {
    for (auto& part : profile.parts) {
      if (part.path != counted.path) continue;
      part.operations = counted.operations;
      part.allocations = counted.allocations;
      part.nodes = counted.nodes;
    }
  }
}

/// Learns an experience under LibTorch's profiler: what it saw, as a Chrome trace.
Json trace_of(pawl::AnyLearner& learner, pawl::Experience const& experience,
              pawl::Training const& training, std::string const& aside) {
  namespace profiler = torch::autograd::profiler;
  namespace impl = torch::profiler::impl;
  ::setenv("KINETO_LOG_LEVEL", "5", 0);  // its notes on start and stop are not for users
  std::set<impl::ActivityType> activities{impl::ActivityType::CPU};
  if (learner.context().arena.device().is_cuda()) activities.insert(impl::ActivityType::CUDA);
  impl::ProfilerConfig const config(impl::ProfilerState::KINETO);
  profiler::prepareProfiler(config, activities);
  profiler::enableProfiler(config, activities);
  learner.fit(experience, training);
  profiler::disableProfiler()->save(aside);
  std::ifstream file(aside);
  auto trace = Json::parse(file);
  std::filesystem::remove(aside);
  return trace;
}

Profile profile_of(Config const& config, ProfileOptions const& options, OutputFile& trace) {
  auto const data = load_data(config);
  auto setting = setting_of(config, data, config.run.first_seed);
  auto& learner = setting.learner;
  auto const& stream = setting.train;
  auto const training_at = [&](std::int64_t e) {
    auto training = training_of(config, static_cast<std::size_t>(e), stream[e].train.size());
    training.epochs = 1;
    return training;
  };
  Profile profile;
  auto const last = stream.size() - 1;
  auto const part = [&](std::int64_t e, std::int64_t steps) {
    return cut(stream[e], steps, training_at(e).batch_size);
  };
  // What is kept against forgetting begins to work in the second experience.
  if (last > 0) {
    Steps unseen;
    learner.fit(part(0, options.steps), training_at(0), unseen);
  }
  {
    Steps steps;
    PhaseListener listener(PhaseListener::Measure::time, learner.context().arena.device());
    for (auto e = std::min<std::int64_t>(last, 1); e <= last; ++e) {
      learner.fit(part(e, options.steps), training_at(e), steps);
      ++profile.experiences;
    }
    profile.parts = listener.records();
    profile.steps = steps.count, profile.samples = steps.samples;
  }
  profile.engine = learner.context().engine();
  count_operations(learner, part(last, std::min<std::int64_t>(options.steps, 50)),
                   training_at(last), profile);
  if (!options.trace.empty()) {
    trace.line(trace_of(learner, part(last, std::min<std::int64_t>(options.steps, 50)),
                        training_at(last), options.trace + ".whole"));
    trace.finish();
  }
  return profile;
}

bool in_step(PhaseRecord const& part) { return part.path.rfind("step", 0) == 0; }

std::string table(Config const& config, Profile const& profile) {
  auto const steps = static_cast<double>(profile.steps);
  double all = 0;
  for (auto const& part : profile.parts) {
    if (part.path == "step") all = part.seconds;
  }
  std::vector<std::vector<std::string>> rows{
      {"part of a step", "us", "share", "operations", "allocations", "graph nodes"}};
  std::vector<std::vector<std::string>> others{{"part of an experience", "ms"}};
  for (auto const& part : profile.parts) {
    auto const indent = std::string(static_cast<std::size_t>(2 * part.depth), ' ');
    if (in_step(part)) {
      auto const counted = [&](std::int64_t n) {
        return fmt::format("{:.1f}",
                           static_cast<double>(n) / static_cast<double>(profile.counted_steps));
      };
      rows.push_back({indent + part.name, fmt::format("{:.1f}", part.seconds / steps * 1e6),
                      fmt::format("{:.1f} %", part.seconds / all * 100), counted(part.operations),
                      counted(part.allocations), counted(part.nodes)});
    } else {
      others.push_back(
          {indent + part.name,
           fmt::format("{:.2f}", part.seconds / static_cast<double>(profile.experiences) * 1e3)});
    }
  }
  auto text =
      fmt::format("{} on {}, engine {}, {}: {} steps in {} experience{}, {:.0f} samples/s\n\n",
                  config.strategy_text(), config.stream.name, profile.engine, config.run.device,
                  profile.steps, profile.experiences, profile.experiences == 1 ? "" : "s",
                  static_cast<double>(profile.samples) / all);
  text += aligned(rows);
  if (others.size() > 1) text += "\n" + aligned(others);
  return text;
}

Json json(Profile const& profile) {
  auto parts = Json::array();
  for (auto const& part : profile.parts) {
    parts.push_back({{"part", part.path},
                     {"calls", part.calls},
                     {"seconds", part.seconds},
                     {"operations", part.operations},
                     {"allocations", part.allocations},
                     {"nodes", part.nodes}});
  }
  return {{"engine", profile.engine},
          {"experiences", profile.experiences},
          {"steps", profile.steps},
          {"samples", profile.samples},
          {"counted_steps", profile.counted_steps},
          {"parts", parts}};
}

std::string csv(Profile const& profile) {
  std::string text = "part,calls,seconds,operations,allocations,nodes\n";
  for (auto const& part : profile.parts) {
    text += fmt::format("{},{},{},{},{},{}\n", part.path, part.calls, part.seconds, part.operations,
                        part.allocations, part.nodes);
  }
  return text;
}

constexpr char const* usage =
    "usage: pawl-bench profile [OPTIONS]\n\n"
    "Trains as `run` would, one seed and some steps of every experience, and tells where the time "
    "of a step goes: reading\nrows, forward, backward, each hook of each strategy, the memory, the "
    "optimizer. The first experience is left out where\nthere are more, because little is kept "
    "against forgetting there. Operations (calls of LibTorch, nested ones included),\nallocations "
    "on the host and nodes of autograd's graph are counted in further steps of the last "
    "experience.\n\n"
    "  --steps N\n      Steps per experience, at most. Default 200.\n"
    "  --trace FILE\n      Also write up to 50 steps of the last experience as a Chrome trace "
    "(chrome://tracing, Perfetto).\n"
    "  --force\n      Replace the file of --trace if it exists.\n"
    "  --config FILE\n      A TOML file with any of the options; flags win over it.\n"
    "  --help\n      This text, with the options of the components that are chosen before it.\n";

/// Takes out what is this command's own; `run`'s record file, seeds and so on mean nothing here.
ProfileOptions take_options(Parsed& parsed) {
  ProfileOptions options;
  auto const steps = parsed.take("steps", std::to_string(options.steps));
  std::size_t used = 0;
  try {
    options.steps = std::stoll(steps, &used);
  } catch (std::exception const&) {
    used = 0;
  }
  if (used != steps.size() || options.steps < 1) {
    throw UsageError("--steps is '" + steps + "' but must be an integer, 1 or more");
  }
  options.trace = parsed.take("trace");
  options.force = parsed.take_switch("force");
  for (auto const* flag : {"out", "seeds", "jobs"}) {
    if (parsed.has(flag)) {
      throw UsageError(std::string("profile has no option --") + flag +
                       ": it trains one seed and writes its table to standard output");
    }
  }
  return options;
}

}  // namespace

int profile_command(Arguments const& arguments) {
  auto parsed = parse(arguments, {"help", "force"});
  auto const help = parsed.take_switch("help");
  auto const options = take_options(parsed);
  auto config = take_config(parsed, "profile");
  if (help) {
    std::fputs((usage + config_help(config)).c_str(), stdout);
    return 0;
  }
  check(config);
  catch_interrupts();
  OutputFile trace(options.trace, options.force, "--trace");
  set_threads(config.run.threads);
  try {
    auto const profile = profile_of(config, options, trace);
    auto const text = config.run.format == Format::table  ? table(config, profile)
                      : config.run.format == Format::json ? json(profile).dump(2) + "\n"
                                                          : csv(profile);
    std::fputs(text.c_str(), stdout);
    pawl::require(std::fflush(stdout) == 0, "the profile could not be written to standard output");
    return 0;
  } catch (Interrupted const&) {
    std::fputs("pawl-bench: interrupted\n", stderr);
    return exit_interrupted;
  }
}

}  // namespace bench
