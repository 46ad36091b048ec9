#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <pawl/core/any_learner.hpp>
#include <pawl/core/optimizer_catalogue.hpp>
#include <pawl/metrics/evaluate.hpp>
#include <pawl/models/make_model.hpp>
#include <pawl/strategies/catalogue.hpp>
#include <pawl/stream/make_stream.hpp>

namespace bench {

/// A mistake on the command line or in a config file: exit code 2.
struct UsageError : pawl::Error {
  using pawl::Error::Error;
};

/// Keys and values in the order given; later ones win. Keys are `experiences`, `stream.experiences`,
/// `replay.capacity`; dashes count as underscores.
using Settings = std::vector<std::pair<std::string, std::string>>;

/// What a run is, besides its components.
struct RunOptions {
  std::string stream = "split_mnist";
  std::string strategy = "naive";
  std::string model = "mlp";
  std::string optimizer = "sgd";
  std::string data = "";
  std::string device = "cpu";
  std::int64_t seeds = 1;
  std::int64_t first_seed = 0;
  std::int64_t stream_seed = -1;
  std::int64_t threads = 1;

  void describe(pawl::Options& o);
};

/// A strategy of a run and the prefix of its options: `replay`, `replay2`, ...
struct NamedStrategy {
  std::string prefix;
  pawl::AnyStrategy strategy;
};

/// A run with everything resolved.
struct RunConfig {
  RunOptions run;
  pawl::AnyStream stream;
  pawl::AnyModelChoice model;
  pawl::AnyOptimizer optimizer;
  pawl::Training training;
  pawl::Evaluation evaluation;
  std::vector<NamedStrategy> strategies;

  /// Sections of options, bound to this config: prefix and options.
  struct Section {
    std::string prefix;
    std::string about;
    std::vector<pawl::Option> options;
  };
  std::vector<Section> sections();
};

/// Resolves settings; throws UsageError that names the nearest right key or value.
RunConfig make_config(Settings const& settings);

/// The settings of a TOML text; `origin` is named in messages.
Settings settings_from_toml(std::string const& text, std::string const& origin);
Settings settings_from_file(std::string const& path);

/// A TOML text that gives the same config again.
std::string to_toml(RunConfig& config);

}  // namespace bench
