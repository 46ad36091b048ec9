#pragma once

// What a run is: every component with every option, from flags and config files, described once.

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include <pawl/core/any_learner.hpp>
#include <pawl/metrics/evaluate.hpp>
#include <pawl/models/make_model.hpp>
#include <pawl/stream/make_stream.hpp>

namespace bench {

/// A mistake in the call: exit code 2.
class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A learner of its own kind: no strategy, but another stream.
inline std::vector<std::string> const reference_names{"naive", "joint", "cumulative",
                                                      "from_scratch"};

enum class Evaluate { each, final_only };
/// Of products and convolutions of float32 numbers, under LibTorch's names.
enum class Precision { highest, high, medium };
enum class Format { table, json, csv };

/// Options of a run that belong to no component.
struct RunOptions {
  std::int64_t seeds = 1;
  std::int64_t first_seed = 0;
  std::int64_t stream_seed = -1;
  std::int64_t init_seed = -1;
  std::int64_t threads = 1;
  std::int64_t jobs = 1;
  bool fleet = true;
  std::string device = "cpu";
  Precision precision = Precision::highest;
  std::string data;
  std::string out;
  std::string save;
  std::vector<std::int64_t> epochs_per_experience;
  std::vector<double> lr_per_experience;
  Evaluate evaluate = Evaluate::each;
  std::int64_t evaluate_every = 0;
  bool trace_penalties = false;
  Format format = Format::table;

  void describe(pawl::Options& o);
};

struct NamedStrategy {
  std::string prefix;  ///< "replay", and "replay2" for the second of that name
  pawl::AnyStrategy strategy;
};

struct Config {
  Config();

  RunOptions run;
  std::string reference = "naive";  ///< used when there are no strategies
  std::vector<NamedStrategy> strategies;
  pawl::AnyStream stream;
  pawl::Training training;
  pawl::AnyOptimizer optimizer;
  pawl::AnyModelChoice model;
  pawl::Evaluation evaluation;

  std::string strategy_text() const;  ///< "replay,lwf"
  void set_strategies(std::string const& names);
};

/// An option of one part of a configuration, bound to it: valid until a component is replaced.
struct Knob {
  std::string section;  ///< "", stream, training, optimizer, model, evaluation or strategy.<prefix>
  pawl::Option option;

  std::string path() const;  ///< in a config file: strategy.replay.capacity
  std::string flag() const;  ///< on the command line: --replay.capacity
};

std::vector<Knob> knobs(Config& config);

/// A value for an option, by any of its spellings.
struct Assignment {
  std::string key;
  std::string value;
  std::string origin = {};  ///< the config file; empty on the command line
  bool given = true;        ///< false for a flag without a value
};

/// Applies values, later ones over earlier ones; throws UsageError.
void configure(Config& config, std::vector<Assignment> const& assignments);

/// Throws UsageError for a flag that is not at its default and that nothing reads in this run. (A
/// config file may hold every option, whether read or not.)
void check_flags_are_read(Config& config, std::vector<Assignment> const& flags);

/// The option of a key or flag, by any spelling (dashes or underscores, with or without the section
/// where that is clear); nullptr when there is none.
Knob const* find_knob(std::vector<Knob> const& all, std::string const& key);

/// The values of a TOML config file, in its order.
std::vector<Assignment> read_config(std::string const& path);
std::string to_toml(Config& config);

}  // namespace bench
