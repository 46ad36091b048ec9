#pragma once

// Results as JSON, one object per line, and the file they go to.

#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <pawl/metrics/statistics.hpp>

#include "config.hpp"
#include "energy.hpp"
#include "experiment.hpp"

#include <nlohmann/json.hpp>

namespace bench {

using Json = nlohmann::ordered_json;

Json header_record(Config& config, std::vector<pawl::StrategyRecord> const& strategies);
Json experience_record(ExperienceResult const& result);
Json result_record(SeedResult const& result);

/// Metrics that are defined for every seed, over seeds.
std::map<std::string, pawl::Summary> summaries(std::vector<SeedResult> const& results);
/// `joules`: of the whole run.
Json summary_record(std::vector<SeedResult> const& results, Joules const& joules, bool interrupted);

/// All options of a configuration, as in a config file.
Json config_json(Config& config);

/// A file of lines that appears under its name only when it is complete. Refuses, when it is made,
/// a name that cannot be written or that exists already (unless `force`). Without a name it writes
/// nothing.
class OutputFile {
 public:
  OutputFile(std::filesystem::path path, bool force, std::string flag = "--out");
  ~OutputFile();
  OutputFile(OutputFile const&) = delete;
  OutputFile& operator=(OutputFile const&) = delete;

  void line(Json const& record);
  void finish();

 private:
  void check_written();

  std::filesystem::path path_, part_;
  bool force_;
  std::string flag_;  ///< that named the file, for messages
  std::ofstream file_;
};

}  // namespace bench
