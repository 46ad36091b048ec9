// Where the time of training goes, part by part.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "commands.hpp"
#include "cost.hpp"
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
  std::string engine;              ///< of a run
  double run_seconds = 0;          ///< training as in a run, where nothing is watched
  std::int64_t run_steps = 0, run_samples = 0;
  std::int64_t flops = 0;       ///< of the counted steps
  double product_rate = 0;      ///< floating-point operations per second of large products
  std::int64_t peak_bytes = 0;  ///< resident memory of the process
  std::optional<std::int64_t> peak_device_bytes;

  double steps_per_second() const { return static_cast<double>(run_steps) / run_seconds; }
  double samples_per_second() const { return static_cast<double>(run_samples) / run_seconds; }
  double flops_per_step() const {
    return static_cast<double>(flops) / static_cast<double>(counted_steps);
  }
  double flops_per_second() const { return flops_per_step() * steps_per_second(); }
};

/// The first rows of an experience, so many that an epoch has at most this many steps.
pawl::Experience cut(pawl::Experience experience, std::int64_t steps, std::int64_t batch_size) {
  auto const rows = std::min(experience.train.size(), steps * batch_size);
  experience.train = experience.train.select(torch::arange(rows));
  return experience;
}

struct Steps {
  static constexpr bool only_losses = true;

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
      part.flops = counted.flops;
      if (part.path == "step") profile.flops = counted.flops;
    }
  }
}

/// From before the first step of an experience until a device is done with the last one.
struct Stopwatch {
  static constexpr bool only_losses = true;
  using Clock = std::chrono::steady_clock;

  void begin(pawl::Context const&) { started = Clock::now(); }
  void step(pawl::Context const& c) {
    if (c.step < c.steps) return;
    wait_for(c.arena.device());
    seconds = std::chrono::duration<double>(Clock::now() - started).count();
  }
  Clock::time_point started = {};
  double seconds = 0;
};

/// Learns the last experience once more as a run does.
void run_unwatched(pawl::AnyLearner& learner, pawl::Experience const& experience,
                   pawl::Training training, std::int64_t count, Profile& profile) {
  Steps steps;
  Stopwatch watch;
  training.iterations = count;
  learner.fit(experience, training, steps, watch);
  profile.run_seconds = watch.seconds;
  profile.run_steps = steps.count, profile.run_samples = steps.samples;
  profile.engine = learner.context().engine();
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
  // A device does a step that was captured as a whole: there are no parts to be told apart.
  auto const in_parts = [&](std::int64_t e) {
    auto training = training_at(e);
    auto const captured = training.engine == pawl::Engine::compiled;
    if (captured && config.run.device != "cpu") training.engine = pawl::Engine::eager;
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
  auto const device = learner.context().arena.device();
  {
    Steps steps;
    PhaseListener listener(PhaseListener::Measure::time, device);
    for (auto e = std::min<std::int64_t>(last, 1); e <= last; ++e) {
      learner.fit(part(e, options.steps), in_parts(e), steps);
      ++profile.experiences;
    }
    profile.parts = listener.records();
    profile.steps = steps.count, profile.samples = steps.samples;
  }
  run_unwatched(learner, part(last, options.steps), training_at(last), options.steps, profile);
  profile.peak_bytes = peak_bytes();
  profile.peak_device_bytes = peak_device_bytes(device);
  count_operations(learner, part(last, std::min<std::int64_t>(options.steps, 50)), in_parts(last),
                   profile);
  profile.product_rate = rate_of_products(device);
  if (!options.trace.empty()) {
    trace.line(trace_of(learner, part(last, std::min<std::int64_t>(options.steps, 50)),
                        in_parts(last), options.trace + ".whole"));
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
      {"part of a step", "us", "share", "operations", "allocations", "graph nodes", "MFLOP"}};
  std::vector<std::vector<std::string>> others{{"part of an experience", "ms"}};
  for (auto const& part : profile.parts) {
    auto const indent = std::string(static_cast<std::size_t>(2 * part.depth), ' ');
    if (in_step(part)) {
      auto const counted = [&](std::int64_t n) {
        return fmt::format("{:.1f}",
                           static_cast<double>(n) / static_cast<double>(profile.counted_steps));
      };
      auto const mega = [&](std::int64_t flops) {
        return fmt::format("{:.3g}", static_cast<double>(flops) / 1e6 /
                                         static_cast<double>(profile.counted_steps));
      };
      rows.push_back({indent + part.name, fmt::format("{:.1f}", part.seconds / steps * 1e6),
                      fmt::format("{:.1f} %", part.seconds / all * 100), counted(part.operations),
                      counted(part.allocations), counted(part.nodes),
                      part.flops == 0 ? "" : mega(part.flops)});
    } else {
      others.push_back(
          {indent + part.name,
           fmt::format("{:.2f}", part.seconds / static_cast<double>(profile.experiences) * 1e3)});
    }
  }
  auto text =
      fmt::format("{} on {}, engine {}, {}: {} steps in {} experience{}\n", config.strategy_text(),
                  config.stream.name, profile.engine, config.run.device, profile.steps,
                  profile.experiences, profile.experiences == 1 ? "" : "s");
  text += fmt::format("the last experience as a run learns it: {:.0f} steps/s, {:.0f} samples/s\n",
                      profile.steps_per_second(), profile.samples_per_second());
  text += fmt::format(
      "products and convolutions: {:.3g} MFLOP a step (zeros that are left out included), {:.3g} "
      "GFLOP/s, {:.0f} % of what large products reach ({:.3g} GFLOP/s)\n",
      profile.flops_per_step() / 1e6, profile.flops_per_second() / 1e9,
      profile.flops_per_second() / profile.product_rate * 100, profile.product_rate / 1e9);
  text += fmt::format("peak memory: {:.0f} MB", static_cast<double>(profile.peak_bytes) / 1e6);
  if (profile.peak_device_bytes) {
    text += fmt::format(", {:.0f} MB on the device",
                        static_cast<double>(*profile.peak_device_bytes) / 1e6);
  }
  text += "\n\n";
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
                     {"nodes", part.nodes},
                     {"flops", part.flops}});
  }
  return {{"engine", profile.engine},
          {"experiences", profile.experiences},
          {"steps", profile.steps},
          {"samples", profile.samples},
          {"counted_steps", profile.counted_steps},
          {"steps_per_second", profile.steps_per_second()},
          {"samples_per_second", profile.samples_per_second()},
          {"flops_per_step", profile.flops_per_step()},
          {"flops_per_second", profile.flops_per_second()},
          {"product_flops_per_second", profile.product_rate},
          {"peak_memory_bytes", profile.peak_bytes},
          {"peak_device_memory_bytes",
           profile.peak_device_bytes ? Json(*profile.peak_device_bytes) : Json(nullptr)},
          {"parts", parts}};
}

std::string csv(Profile const& profile) {
  std::string text = "part,calls,seconds,operations,allocations,nodes,flops\n";
  for (auto const& part : profile.parts) {
    text += fmt::format("{},{},{},{},{},{},{}\n", part.path, part.calls, part.seconds,
                        part.operations, part.allocations, part.nodes, part.flops);
  }
  return text;
}

constexpr char const* usage =
    "usage: pawl-bench profile [OPTIONS]\n\n"
    "Trains as `run` would, one seed and some steps of every experience, and tells where the time "
    "of a step goes: reading\nrows, forward, backward, each hook of each strategy, the memory, the "
    "optimizer. The first experience is left out where\nthere are more, because little is kept "
    "against forgetting there. Operations (calls of LibTorch, nested ones included),\nallocations "
    "on the host, nodes of autograd's graph and floating-point operations of products and "
    "convolutions are counted in\nfurther steps of the last experience. On a GPU every part is "
    "waited for, and steps are not captured; the rates at the top are\nthose of a run.\n\n"
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
  for (auto const* flag : {"out", "save", "seeds", "jobs"}) {
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
  check_flags_are_read(config, parsed.assignments);
  check(config);
  catch_interrupts();
  OutputFile trace(options.trace, options.force, "--trace");
  set_threads(config.run.threads);
  set_precision(config.run.precision);
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
