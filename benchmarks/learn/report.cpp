#include "report.hpp"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "record.hpp"

#include <fmt/format.h>

namespace bench {

namespace {

std::string cell(double value, double scale, int digits) {
  return std::isnan(value) ? "-" : fmt::format("{:.{}f}", value * scale, digits);
}

}  // namespace

std::string aligned(std::vector<std::vector<std::string>> const& rows, std::size_t left) {
  std::vector<std::size_t> width;
  for (auto const& row : rows) {
    width.resize(std::max(width.size(), row.size()), 0);
    for (std::size_t i = 0; i < row.size(); ++i) width[i] = std::max(width[i], row[i].size());
  }
  std::string text;
  for (auto const& row : rows) {
    std::string line;
    for (std::size_t i = 0; i < row.size(); ++i) {
      line += i == 0 ? "" : "  ";
      line += i < left ? fmt::format("{:<{}}", row[i], width[i])
                       : fmt::format("{:>{}}", row[i], width[i]);
    }
    text += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
  }
  return text;
}

std::string mean_and_interval(std::vector<SeedResult> const& results, std::string const& metric,
                              double scale) {
  auto const all = summaries(results);
  auto const found = all.find(metric);
  if (found == all.end()) return "-";
  auto const digits = scale == 1 ? 4 : 2;
  auto const text = cell(found->second.mean, scale, digits);
  if (std::isnan(found->second.half_width)) return text;
  return text + " +- " + cell(found->second.half_width, scale, digits);
}

std::string result_table(Config const& config, std::vector<SeedResult> const& results,
                         Joules const& joules) {
  auto const all = summaries(results);
  std::vector<std::vector<std::string>> rows{{"metric", "mean", "95 % interval", "std", "n"}};
  for (auto const& name : metric_names(results)) {
    auto const found = all.find(name);
    if (found == all.end()) continue;
    auto const& s = found->second;
    auto const interval =
        std::isnan(s.half_width) ? std::string("-") : "+- " + cell(s.half_width, 1, 4);
    rows.push_back(
        {name, cell(s.mean, 1, 4), interval, cell(s.deviation, 1, 4), std::to_string(s.n)});
  }
  std::vector<double> train, evaluate, rate;
  for (auto const& r : results) {
    train.push_back(r.train_seconds);
    evaluate.push_back(r.evaluate_seconds);
    rate.push_back(static_cast<double>(r.samples) / r.train_seconds);
  }
  auto text =
      fmt::format("{} on {}, {} seed{} from {}\n\n", config.strategy_text(), config.stream.name,
                  results.size(), results.size() == 1 ? "" : "s", config.run.first_seed);
  text += aligned(rows);
  if (results.empty()) return text;
  text += fmt::format(
      "\nper seed: {:.1f} s training, {:.1f} s evaluation, {:.0f} samples/s; engine: {}\n",
      pawl::mean(train), pawl::mean(evaluate), pawl::mean(rate), results.back().engine);
  if (joules.processors) text += fmt::format("processors: {:.0f} J in all\n", *joules.processors);
  if (joules.device) text += fmt::format("device: {:.0f} J in all\n", *joules.device);
  return text;
}

std::string result_csv(std::vector<SeedResult> const& results) {
  std::string text = "seed";
  for (auto const& name : metric_names(results)) text += "," + name;
  text += ",train_seconds,evaluate_seconds,total_seconds,steps,samples\n";
  for (auto const& r : results) {
    text += std::to_string(r.seed);
    for (auto const& [name, value] : r.metrics) text += value ? fmt::format(",{}", *value) : ",";
    text += fmt::format(",{},{},{},{},{}\n", r.train_seconds, r.evaluate_seconds, r.total_seconds,
                        r.steps, r.samples);
  }
  return text;
}

}  // namespace bench
