#include "experiment.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <ctime>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <pawl/data/pad.hpp>
#include <pawl/observe/progress.hpp>

#include "cost.hpp"

#include <ATen/Context.h>

namespace bench {

namespace {

volatile std::sig_atomic_t interrupt_seen = 0;

/// Ends the program when it is the second signal; but not when it comes with the first one, as from
/// `timeout`, which sends it to the program and to its group.
void on_signal(int number) {
  static std::atomic<std::int64_t> first{0};  // nanoseconds
  static_assert(decltype(first)::is_always_lock_free);
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  auto const time = now.tv_sec * std::int64_t{1'000'000'000} + now.tv_nsec;
  interrupt_seen = 1;
  std::int64_t none = 0;
  if (first.compare_exchange_strong(none, time) || time - none < 1'000'000'000) return;
  std::signal(number, SIG_DFL);
  std::raise(number);
}

using Clock = std::chrono::steady_clock;

/// What a list says of experience e: its last entry goes on.
template <class T>
T entry(std::vector<T> const& list, std::size_t e) {
  return list[std::min(e, list.size() - 1)];
}
double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Sums of losses on the device, read once at the end of an experience. Asks after every step
/// whether the user wants to stop: a compiled step does not pass through the model's forward.
struct Losses {
  static constexpr bool only_losses = true;

  void step(pawl::Context const& c) {
    torch::NoGradGuard no_grad;
    add(sum, c.task_loss);
    last = c.task_loss;
    std::map<std::string, int> count;
    for (auto const& [name, value] : c.penalties) {
      auto const number = ++count[name];
      add(penalties[number == 1 ? name : name + std::to_string(number)], value.detach());
    }
    ++steps;
    samples += c.fresh.size();
    if (interrupted()) throw Interrupted{};
  }
  double mean(torch::Tensor const& total) const {
    return total.defined() ? total.item<double>() / static_cast<double>(steps)
                           : std::numeric_limits<double>::quiet_NaN();
  }

  torch::Tensor sum, last;
  std::map<std::string, torch::Tensor> penalties;
  std::int64_t steps = 0, samples = 0;

 private:
  static void add(torch::Tensor& total, torch::Tensor const& value) {
    if (total.defined()) {
      total.add_(value);
    } else {
      total = value.to(torch::kFloat64, /*non_blocking=*/false, /*copy=*/true);
    }
  }
};
struct TracedLosses : Losses {
  static constexpr bool wants_penalties = true;
};

/// A learner without its strategies, for the accuracy before training.
struct Untrained {
  pawl::Context& c;
  pawl::ImageLayout images{};
  pawl::Context& context() { return c; }
  torch::Tensor scores(torch::Tensor const& x, torch::Tensor const& tasks) {
    pawl::ModeScope mode(*c.model.module, false);
    auto const layers = c.fast_layers();
    auto const layout = images.scope();
    c.model.route(tasks);
    return c.model.forward(x);
  }
};

torch::Device device_of(std::string const& name) {
  if (name != "cpu" && name != "cuda" && name.rfind("cuda:", 0) != 0) {
    throw UsageError("there is no device '" + name + "'" + pawl::suggestion(name, {"cpu", "cuda"}));
  }
  pawl::require(
      name == "cpu" || at::hasCUDA(),
      {"device is '", name, "' but this LibTorch finds no CUDA device; use --device cpu"});
  try {
    return torch::Device(name);
  } catch (c10::Error const&) {
    throw UsageError("--device is '" + name + "' but must be cpu, cuda or cuda:N");
  }
}

pawl::Seed fixed(std::int64_t option, std::int64_t seed) {
  return pawl::Seed{static_cast<std::uint64_t>(option >= 0 ? option : seed)};
}

pawl::StrategyList list_of(Config const& config) {
  std::vector<pawl::AnyStrategy> strategies;
  for (auto const& s : config.strategies) strategies.push_back(s.strategy);
  return strategies;
}

pawl::Stream test_stream(Config const& config, pawl::TrainTest const& data, pawl::Seed seed) {
  auto own = config.stream;
  own.kind = pawl::StreamKind::sequential;
  own.chunk = 0;
  return own.build(data, seed);
}

/// The same model, whose every pass first asks whether the user wants to stop: in a step, in an
/// evaluation, and where a strategy runs over the data at the end of an experience.
pawl::Model interruptible(pawl::Model model) {
  for (auto* pass : {&model.forward, &model.features}) {
    if (!*pass) continue;
    *pass = [inner = *pass](torch::Tensor const& x) {
      if (interrupted()) throw Interrupted{};
      return inner(x);
    };
  }
  return model;
}

pawl::Model model_of(Config const& config, pawl::Stream const& test, std::int64_t seed) {
  auto const tasks = test.scenario == pawl::Scenario::task ? test.size() : 0;
  auto model = config.model.build(test[0].train.source->shape, test.outputs, tasks,
                                  fixed(config.run.init_seed, seed));
  model.module->to(device_of(config.run.device));
  return interruptible(std::move(model));
}

pawl::AnyLearner learner_of(Config const& config, pawl::Stream const& test, std::int64_t seed) {
  pawl::AnyLearner learner{model_of(config, test, seed), config.optimizer, list_of(config)};
  learner.seed({static_cast<std::uint64_t>(seed)});
  return learner;
}

/// b_j; empty where the model has no outputs yet (growing heads).
std::vector<double> untrained_accuracy(pawl::AnyLearner& of, pawl::Stream const& test,
                                       Config const& config) {
  Untrained learner{of.context()};
  torch::NoGradGuard no_grad;
  auto const& first = test[0].test;
  auto const row = first.read(torch::arange(1, torch::kInt64), learner.c.arena.device());
  auto const x = first.normalise(row.stored, learner.c.arena.dtype());
  try {
    if (learner.scores(x, row.task).size(1) < test.outputs) return {};
  } catch (pawl::Error const&) {
    return {};  // a head that grows has no outputs at all
  }
  if (!config.training.reference()) {
    learner.images.decide(learner.c.model, x, row.task);
  }
  return pawl::evaluate(learner, test, config.evaluation).accuracy;
}

/// A model that was trained jointly has no row per experience: only its accuracy at the end is
/// defined.
void joint_metrics(SeedResult& result, pawl::AccuracyRow const& row) {
  for (auto& [name, value] : result.metrics) {
    value.reset();
    if (name == "final_accuracy") value = pawl::mean_accuracy(row);
    if (name == "final_accuracy_by_sample") value = pawl::pooled_accuracy(row);
  }
  result.forgetting_at_all.clear();
}

/// A memory with fewer rows than classes would leave some of them out: refused before anything is
/// trained.
void check_capacities(Config const& config, pawl::Stream const& stream) {
  std::vector<std::int64_t> classes;
  for (auto const& experience : stream) {
    classes.insert(classes.end(), experience.classes.begin(), experience.classes.end());
  }
  std::sort(classes.begin(), classes.end());
  auto const count = std::unique(classes.begin(), classes.end()) - classes.begin();
  for (auto named : config.strategies) {
    std::int64_t capacity = 0, per_group = 0;
    bool unused = false;
    for (auto const& option : pawl::options_of(named.strategy).all()) {
      if (option.name == "capacity") capacity = std::stoll(option.get());
      if (option.name == "per_group") per_group = std::stoll(option.get());
      unused = unused || (option.name == "source" && option.get() == "data");
    }
    if (unused || per_group > 0 || capacity == 0 || capacity >= count) continue;
    throw UsageError(c10::str("--", named.prefix, ".capacity is ", capacity, " but the stream has ",
                              count, " classes, so some would have no row; give ", count,
                              " or more, or 0 to keep none"));
  }
}

}  // namespace

void catch_interrupts() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}
bool interrupted() { return interrupt_seen != 0; }
void interrupt() { interrupt_seen = 1; }

std::optional<double> SeedResult::metric(std::string const& name) const {
  for (auto const& [key, value] : metrics) {
    if (key == name) return value;
  }
  return std::nullopt;
}

std::vector<std::string> metric_names() {
  std::vector<std::string> names;
  for (auto const& metric : pawl::AccuracyMatrix{}.metrics()) names.push_back(metric.first);
  return names;
}

std::vector<std::string> metric_names(std::vector<SeedResult> const& results) {
  if (results.empty()) return metric_names();
  std::vector<std::string> names;
  for (auto const& metric : results.front().metrics) names.push_back(metric.first);
  return names;
}

std::vector<pawl::StrategyRecord> check(Config const& config) {
  device_of(config.run.device);
  auto list = list_of(config);
  list.check();
  list.check_values();
  return list.records();
}

std::optional<int> gpu_of(Config const& config) {
  auto const device = device_of(config.run.device);
  if (device.is_cpu()) return std::nullopt;
  return device.has_index() ? device.index() : 0;
}

pawl::TrainTest load_data(Config const& config) {
  return pawl::on_device(config.stream.load(config.run.data), device_of(config.run.device));
}

pawl::Training training_of(Config const& config, std::size_t e, std::int64_t rows) {
  auto training = config.training;
  auto const& epochs = config.run.epochs_per_experience;
  if (!epochs.empty()) training.epochs = entry(epochs, e);
  if (training.batch_size <= config.stream.chunk && rows > 0) {
    training.batch_size = std::min(training.batch_size, rows);
  }
  return training;
}

Setting setting_of(Config const& config, pawl::TrainTest const& data, std::int64_t seed) {
  auto const stream_seed = fixed(config.run.stream_seed, seed);
  auto test = test_stream(config, data, stream_seed);
  check_capacities(config, test);
  auto learner = learner_of(config, test, seed);
  return {config.stream.build(data, stream_seed), std::move(test), std::move(learner)};
}

std::filesystem::path checkpoint_of(Config const& config, std::int64_t seed) {
  auto const& folder = config.run.save;
  if (folder.empty()) return {};
  return std::filesystem::path(folder) / ("seed_" + std::to_string(seed) + ".safetensors");
}

SeedResult run_seed(Config const& config, pawl::TrainTest const& data, std::int64_t seed,
                    std::string const& label, OnExperience const& done) {
  auto const start = Clock::now();
  auto setting = setting_of(config, data, seed);
  auto const &train = setting.train, &test = setting.test;
  auto& learner = setting.learner;
  SeedResult result{.seed = seed};
  pawl::AccuracyMatrix matrix;
  auto const timed = [&](double& seconds, auto&& work) {
    auto const begin = Clock::now();
    work();
    wait_for(learner.context().arena.device());
    seconds += seconds_since(begin);
  };
  timed(result.evaluate_seconds,
        [&] { result.untrained = untrained_accuracy(learner, test, config); });
  if (!result.untrained.empty()) matrix.untrained(result.untrained);
  auto const points = pawl::evaluation_points(train);
  auto const every = config.run.evaluate_every;
  AnytimeObserver curves([&] { return pawl::evaluate(learner, test, config.evaluation).accuracy; },
                         test.size(), every);
  TracedLosses losses;
  ExperienceResult one{.seed = seed};
  for (auto const& experience : train) {
    pawl::Progress progress{label};
    progress.terminal = progress.terminal && !label.empty();
    if (config.reference == "from_scratch" && experience.index > 0) {
      learner = learner_of(config, test, seed);
    }
    auto const e = result.matrix.size();
    auto const training = training_of(config, e, experience.train.size());
    if (auto const& rates = config.run.lr_per_experience; !rates.empty()) {
      learner.optimizer().set_learning_rate(entry(rates, e));
    }
    timed(one.train_seconds, [&] {
      if (every > 0) {
        learner.fit(experience, training, losses, curves, progress);
      } else if (config.run.trace_penalties) {
        learner.fit(experience, training, losses, progress);
      } else {
        learner.fit(experience, training, static_cast<Losses&>(losses), progress);
      }
    });
    auto const between = curves.take_seconds();
    one.train_seconds -= between;
    one.evaluate_seconds += between;
    if (!std::binary_search(points.begin(), points.end(), experience.index)) continue;
    auto const last = experience.index + 1 == train.size();
    if (last || config.run.evaluate == Evaluate::each) {
      timed(one.evaluate_seconds,
            [&] { one.row = pawl::evaluate(learner, test, config.evaluation); });
      result.prediction = one.row.prediction;
      result.active = one.row.active;
      result.test_sizes = one.row.size;
    }
    curves.end(static_cast<std::int64_t>(e), one.row.accuracy);
    one.curve = curves.take_points();
    one.loss = losses.mean(losses.sum);
    one.last_loss = losses.last.defined() ? losses.last.item<double>() : one.loss;
    for (auto const& [name, sum] : losses.penalties) one.penalties[name] = losses.mean(sum);
    one.steps = losses.steps;
    result.matrix.push_back(one.row.accuracy);
    result.matrix.back().resize(static_cast<std::size_t>(test.size()),
                                std::numeric_limits<double>::quiet_NaN());
    matrix.append(pawl::AccuracyRow{one.row.accuracy, one.row.size, ""});
    result.train_seconds += one.train_seconds;
    result.evaluate_seconds += one.evaluate_seconds;
    result.steps += losses.steps;
    result.samples += losses.samples;
    done(one);
    one = {.seed = seed, .experience = one.experience + 1};
    losses = {};
  }
  if (auto const file = checkpoint_of(config, seed); !file.empty()) learner.save(file.string());
  result.metrics = matrix.metrics();
  result.forgetting_at_all = matrix.forgetting_at_all();
  if (every > 0) {
    for (auto& metric : curves.metrics(result.untrained)) {
      result.metrics.push_back(std::move(metric));
    }
  }
  if (config.stream.kind == pawl::StreamKind::joint) joint_metrics(result, matrix.rows().back());
  for (auto const& p : learner.context().arena.parameters()) result.parameters += p.numel();
  result.state_bytes = learner.state_bytes();
  result.engine = learner.context().engine();
  result.peak_bytes = peak_bytes();
  result.peak_device_bytes = peak_device_bytes(learner.context().arena.device());
  result.total_seconds = seconds_since(start);
  return result;
}

}  // namespace bench
