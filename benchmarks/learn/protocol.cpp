#include "protocol.hpp"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <pawl/metrics/statistics.hpp>

#include <fmt/format.h>
#include <toml++/toml.h>

#ifndef PAWL_PROTOCOLS
#define PAWL_PROTOCOLS "benchmarks/protocols"
#endif

namespace bench {

std::vector<Assignment> assignments_of(toml::table const& table, std::string const& origin);

namespace {

std::filesystem::path protocol_folder(std::string const& given) {
  std::error_code error;
  std::vector<std::filesystem::path> candidates;
  if (!given.empty()) {
    candidates.emplace_back(given);
  } else {
    auto const program = std::filesystem::read_symlink("/proc/self/exe", error);
    if (!error) candidates.push_back(program.parent_path().parent_path() / "share/pawl/protocols");
    candidates.emplace_back(PAWL_PROTOCOLS);
  }
  for (auto const& folder : candidates) {
    if (std::filesystem::is_directory(folder, error)) return folder;
  }
  pawl::fail({"there is no folder of protocols at '", candidates.back().string(),
              "'; give it with --protocols DIR (benchmarks/protocols of the sources)"});
}

Target target_of(toml::table const& table, std::vector<Assignment> const& shared,
                 std::string const& path) {
  Target t;
  auto const text = [&](char const* key, std::string fallback = {}) {
    return table[key].value_or(std::move(fallback));
  };
  t.id = text("id"), t.title = text("title"), t.method = text("method"), t.cost = text("cost");
  t.metric = text("metric", "final_accuracy"), t.spread_kind = text("spread_kind", "none");
  t.published = table["published"].value_or(0.0);
  t.spread = table["spread"].value<double>();
  t.runs = table["runs"].value_or(std::int64_t{1});
  t.tolerance = table["tolerance"].value_or(0.0);
  t.low = table["low"].value_or(0.0), t.high = table["high"].value_or(100.0);
  t.seeds = table["seeds"].value_or(std::int64_t{3});
  auto const band = text("band", "two-sided");
  t.band = band == "range"      ? Target::Band::range
           : band == "at_least" ? Target::Band::at_least
                                : Target::Band::two_sided;
  pawl::require(band == "range" || band == "at_least" || (band == "two-sided" && t.deviation()),
                {path, ": the band of '", t.id,
                 "' must be range, at_least, or two-sided with a spread over runs"});
  t.forgetting = table["forgetting"].value<double>();
  t.forgetting_low = table["forgetting_band"][0].value_or(0.0);
  t.forgetting_high = table["forgetting_band"][1].value_or(1.0);
  t.assignments = shared;
  if (auto const* own = table["config"].as_table()) {
    for (auto& a : assignments_of(*own, path)) t.assignments.push_back(std::move(a));
  }
  for (auto const& a : t.assignments) {
    if (a.key == "stream.scenario") t.scenario = a.value;
  }
  return t;
}

std::vector<Target> read_protocol(std::filesystem::path const& path) {
  toml::table file;
  try {
    file = toml::parse_file(path.string());
  } catch (toml::parse_error const& error) {
    pawl::fail({path.string(), ", line ", error.source().begin.line, ": ",
                std::string(error.description())});
  }
  std::vector<Assignment> shared;
  if (auto const* config = file["config"].as_table())
    shared = assignments_of(*config, path.string());
  std::vector<Target> targets;
  if (auto const* list = file["target"].as_array()) {
    for (auto const& item : *list) {
      if (auto const* table = item.as_table())
        targets.push_back(target_of(*table, shared, path.string()));
    }
  }
  for (auto& t : targets) {
    t.protocol = file["protocol"].value_or(std::string());
    t.source = file["source"].value_or(std::string());
  }
  return targets;
}

/// A1, A2, ... A10 by their numbers.
std::pair<std::size_t, std::string> rank(Target const& t) { return {t.id.size(), t.id}; }

}  // namespace

std::optional<double> Target::deviation() const {
  if (!spread || runs < 2) return std::nullopt;
  auto const kind = spread_kind == "SEM" ? pawl::Spread::standard_error : pawl::Spread::population;
  return pawl::sample_deviation(*spread, kind, runs);
}

double Target::half_width(std::int64_t n) const {
  return pawl::half_width(pawl::agreement_level(runs), *deviation(), n, runs, tolerance);
}

bool Target::contains(double mean, std::int64_t n) const {
  if (band == Band::two_sided) return std::abs(mean - published) <= half_width(n);
  return mean >= low && (band == Band::at_least || mean <= high);
}

std::string Target::published_text() const {
  if (!spread) return fmt::format("{:.2f} ({})", published, runs == 1 ? "one run" : "no spread");
  return fmt::format("{:.2f} +- {:.2f} {}, n={}", published, *spread,
                     spread_kind == "SEM" ? "SEM" : "std", runs);
}

std::string Target::band_text(std::int64_t n) const {
  if (band == Band::at_least) return fmt::format(">= {:.2f}", low);
  if (band == Band::range) return fmt::format("{:.2f} .. {:.2f}", low, high);
  auto const half = half_width(n);
  return fmt::format("{:.2f} .. {:.2f}", published - half, published + half);
}

std::vector<Target> read_protocols(std::string const& given) {
  auto const folder = protocol_folder(given);
  std::vector<std::filesystem::path> files;
  for (auto const& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() == ".toml") files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  std::vector<Target> all;
  for (auto const& file : files) {
    for (auto& target : read_protocol(file)) all.push_back(std::move(target));
  }
  pawl::require(!all.empty(), {"the folder of protocols '", folder.string(), "' holds no targets"});
  std::stable_sort(all.begin(), all.end(),
                   [](auto const& a, auto const& b) { return rank(a) < rank(b); });
  return all;
}

}  // namespace bench
