#pragma once

// One configuration under one seed: train, evaluate, measure.

#include <cstdint>
#include <exception>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <pawl/metrics/accuracy_matrix.hpp>

#include "anytime.hpp"
#include "config.hpp"

namespace bench {

/// Thrown before the next pass through the model after Ctrl-C.
struct Interrupted : std::exception {};

/// Lets Ctrl-C (and a polite kill) end the run at the next pass through the model; another one, a
/// second later or more, ends the program at once.
void catch_interrupts();
bool interrupted();
void interrupt();  ///< as Ctrl-C would

/// After one experience.
struct ExperienceResult {
  std::int64_t seed = 0;
  std::int64_t experience = 0;
  pawl::AccuracyRow row = {};                    ///< empty accuracy: not evaluated
  double loss = 0;                               ///< supervised loss, mean over steps
  double last_loss = 0;                          ///< of the last step
  std::map<std::string, double> penalties = {};  ///< mean over steps
  std::int64_t steps = 0;
  double train_seconds = 0;
  double evaluate_seconds = 0;
  std::vector<CurvePoint> curve = {};  ///< of evaluations during training
};

struct SeedResult {
  std::int64_t seed = 0;
  std::vector<std::pair<std::string, std::optional<double>>> metrics = {};
  std::vector<double> forgetting_at_all = {};
  std::vector<std::vector<double>> matrix = {};  ///< NaN where not evaluated
  std::vector<std::int64_t> test_sizes = {};
  std::string prediction = {};         ///< class, task_masked or task_head
  std::string active = {};             ///< classes that competed at test: seen, all or task
  std::string engine = {};             ///< how the last experience's steps were computed
  std::vector<double> untrained = {};  ///< empty: the model has no outputs before training
  double train_seconds = 0, evaluate_seconds = 0, total_seconds = 0;
  std::int64_t steps = 0;
  std::int64_t samples = 0;  ///< fresh rows trained on
  std::int64_t parameters = 0;
  std::int64_t state_bytes = 0;                        ///< of the strategies, memories included
  std::int64_t peak_bytes = 0;                         ///< resident memory of the process so far
  std::optional<std::int64_t> peak_device_bytes = {};  ///< of tensors on a device so far

  std::optional<double> metric(std::string const& name) const;
};

/// Throws what is wrong with the composition before anything is trained.
std::vector<pawl::StrategyRecord> check(Config const& config);

/// Where the learner of a seed is saved; empty: nowhere.
std::filesystem::path checkpoint_of(Config const& config, std::int64_t seed);

/// The data set of a configuration; shared by all seeds.
pawl::TrainTest load_data(Config const& config);

/// CUDA index of the device of a run; none for the host.
std::optional<int> gpu_of(Config const& config);

/// What one seed is made of: what is trained on, what is tested (the experiences' own test sets,
/// whatever the training sets are), and a learner whose weights are drawn.
struct Setting {
  pawl::Stream train;
  pawl::Stream test;
  pawl::AnyLearner learner;
};
Setting setting_of(Config const& config, pawl::TrainTest const& data, std::int64_t seed);

/// How the e-th experience is trained; the parts of an online stream count as the experience they
/// come from, and one that is shorter than the others is a batch of its own.
pawl::Training training_of(Config const& config, std::size_t e, std::int64_t rows);

using OnExperience = std::function<void(ExperienceResult const&)>;

/// Runs one seed, and saves its learner. `label` opens the line of progress; empty: no such line.
SeedResult run_seed(Config const& config, pawl::TrainTest const& data, std::int64_t seed,
                    std::string const& label, OnExperience const& done);

/// Names of the metrics that every run has, in the order of records.
std::vector<std::string> metric_names();
/// The same for these results, which may have more.
std::vector<std::string> metric_names(std::vector<SeedResult> const& results);

}  // namespace bench
