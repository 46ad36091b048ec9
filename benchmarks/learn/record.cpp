#include "record.hpp"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstring>
#include <map>
#include <string>
#include <system_error>
#include <vector>

#include <pawl/version.hpp>

#include "commands.hpp"
#include "revision.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <torch/version.h>

namespace bench {

namespace {

#if defined(__clang__)
constexpr char const* compiler = __VERSION__;
#else
constexpr char const* compiler = "GCC " __VERSION__;
#endif

std::string const pawl_version = std::to_string(PAWL_VERSION_MAJOR) + "." +
                                 std::to_string(PAWL_VERSION_MINOR) + "." +
                                 std::to_string(PAWL_VERSION_PATCH);

Json number(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }

Json numbers(std::vector<double> const& values) {
  auto list = Json::array();
  for (auto const v : values) list.push_back(number(v));
  return list;
}

/// Bare lists in the words of the option: numbers where they are numbers.
Json value_of(pawl::Option const& option) {
  using Kind = pawl::Option::Kind;
  auto const text = option.get();
  auto const real = [](std::string const& t) {
    double value = 0;
    std::from_chars(t.data(), t.data() + t.size(), value);
    return number(value);
  };
  switch (option.kind) {
    case Kind::boolean:
      return text == "true";
    case Kind::integer:
      return std::stoll(text);
    case Kind::real:
      return real(text);
    case Kind::integers:
    case Kind::reals: {
      auto list = Json::array();
      for (std::size_t begin = 0; begin < text.size();) {
        auto const end = std::min(text.find(',', begin), text.size());
        auto const item = text.substr(begin, end - begin);
        list.push_back(option.kind == Kind::reals ? real(item) : Json(std::stoll(item)));
        begin = end + 1;
      }
      return list;
    }
    default:
      return text;
  }
}

/// A metric over seeds; null where it is undefined for any of them.
Json summary_json(pawl::Summary const& s) {
  auto const undefined = std::isnan(s.half_width);
  return {{"n", s.n},
          {"mean", number(s.mean)},
          {"std", number(s.deviation)},
          {"sem", number(s.standard_error)},
          {"ci95", undefined ? Json(nullptr)
                             : Json::array({number(s.mean - s.half_width),
                                            number(s.mean + s.half_width)})}};
}

}  // namespace

std::string version_text() { return "pawl-bench " + pawl_version + " (" + git_revision() + ")"; }

Json config_json(Config& config) {
  auto json = Json::object();
  for (auto const& knob : knobs(config)) {
    auto* place = &json;
    for (std::size_t begin = 0; begin < knob.section.size();) {
      auto const end = std::min(knob.section.find('.', begin), knob.section.size());
      place = &(*place)[knob.section.substr(begin, end - begin)];
      begin = end + 1;
    }
    (*place)[knob.option.name] = value_of(knob.option);
  }
  return json;
}

Json header_record(Config& config, std::vector<pawl::StrategyRecord> const& strategies) {
  auto list = Json::array();
  for (std::size_t i = 0; i < strategies.size(); ++i) {
    list.push_back({{"name", strategies[i].name},
                    {"prefix", config.strategies[i].prefix},
                    {"hooks", strategies[i].hooks}});
  }
  return {{"record", "header"},          {"schema", 1},
          {"pawl", pawl_version},        {"git_revision", git_revision()},
          {"compiler", compiler},        {"libtorch", TORCH_VERSION},
          {"device", config.run.device}, {"threads", config.run.threads},
          {"strategies", list},          {"config", config_json(config)}};
}

Json experience_record(ExperienceResult const& r) {
  auto penalties = Json::object();
  for (auto const& [name, value] : r.penalties) penalties[name] = number(value);
  Json record = {
      {"record", "experience"},
      {"seed", r.seed},
      {"experience", r.experience},
      {"accuracy", r.row.accuracy.empty() ? Json(nullptr) : numbers(r.row.accuracy)},
      {"loss", {{"mean", number(r.loss)}, {"last", number(r.last_loss)}, {"penalties", penalties}}},
      {"steps", r.steps},
      {"seconds", {{"train", r.train_seconds}, {"evaluate", r.evaluate_seconds}}}};
  for (auto const& point : r.curve) {
    record["curve"].push_back({{"step", point.step}, {"accuracy", numbers(point.accuracy)}});
  }
  return record;
}

Json result_record(SeedResult const& r) {
  auto metrics = Json::object(), matrix = Json::array();
  for (auto const& [name, value] : r.metrics)
    metrics[name] = value ? number(*value) : Json(nullptr);
  auto const& at = r.forgetting_at_all;
  auto const known = [](double value) { return !std::isnan(value); };
  metrics["forgetting_at"] =
      std::any_of(at.begin(), at.end(), known) ? Json(numbers(at)) : Json(nullptr);
  for (auto const& row : r.matrix) matrix.push_back(numbers(row));
  auto const per_second = [&](std::int64_t count) {
    return r.train_seconds > 0 ? static_cast<double>(count) / r.train_seconds : 0;
  };
  return {
      {"record", "result"},
      {"seed", r.seed},
      {"metrics", metrics},
      {"matrix", matrix},
      {"untrained", r.untrained.empty() ? Json(nullptr) : numbers(r.untrained)},
      {"test_sizes", r.test_sizes},
      {"prediction", r.prediction},
      {"active_classes", r.active},
      {"engine", r.engine},
      {"seconds",
       {{"train", r.train_seconds}, {"evaluate", r.evaluate_seconds}, {"total", r.total_seconds}}},
      {"steps", r.steps},
      {"samples", r.samples},
      {"samples_per_second", per_second(r.samples)},
      {"steps_per_second", per_second(r.steps)},
      {"parameters", r.parameters},
      {"state_bytes", r.state_bytes},
      {"peak_memory_bytes", r.peak_bytes},
      {"peak_device_memory_bytes",
       r.peak_device_bytes ? Json(*r.peak_device_bytes) : Json(nullptr)}};
}

std::map<std::string, pawl::Summary> summaries(std::vector<SeedResult> const& results) {
  std::map<std::string, pawl::Summary> all;
  for (auto const& name : metric_names(results)) {
    std::vector<double> values;
    for (auto const& result : results) {
      if (auto const value = result.metric(name)) values.push_back(*value);
    }
    if (!values.empty() && values.size() == results.size()) all[name] = pawl::summarise(values);
  }
  return all;
}

Json summary_record(std::vector<SeedResult> const& results, Joules const& joules,
                    bool interrupted) {
  auto seeds = Json::array();
  std::vector<double> train, total;
  for (auto const& r : results) {
    seeds.push_back(r.seed);
    train.push_back(r.train_seconds);
    total.push_back(r.total_seconds);
  }
  auto const found = summaries(results);
  auto metrics = Json::object();
  for (auto const& name : metric_names(results)) {
    auto const at = found.find(name);
    metrics[name] = at == found.end() ? Json(nullptr) : summary_json(at->second);
  }
  return {{"record", "summary"},
          {"seeds", seeds},
          {"interrupted", interrupted},
          {"metrics", metrics},
          {"seconds",
           {{"train", train.empty() ? Json(nullptr) : summary_json(pawl::summarise(train))},
            {"total", total.empty() ? Json(nullptr) : summary_json(pawl::summarise(total))}}},
          {"joules",
           {{"processors", joules.processors ? Json(*joules.processors) : Json(nullptr)},
            {"device", joules.device ? Json(*joules.device) : Json(nullptr)}}}};
}

OutputFile::OutputFile(std::filesystem::path path, bool force, std::string flag)
    : path_(std::move(path)), force_(force), flag_(std::move(flag)) {
  if (path_.empty()) return;
  std::error_code error;
  for (int hops = 0; hops < 40 && std::filesystem::is_symlink(path_, error); ++hops) {
    path_ = path_.parent_path() / std::filesystem::read_symlink(path_, error);
  }
  auto const status = std::filesystem::status(path_, error);
  pawl::require(!std::filesystem::is_directory(status),
                {flag_, " ", path_.string(), " is a folder; give the name of a file"});
  pawl::require(
      force || !std::filesystem::is_regular_file(status),
      {flag_, " ", path_.string(), " exists already; give another name, or --force to replace it"});
  auto const direct = std::filesystem::exists(status) && !std::filesystem::is_regular_file(status);
  part_ = direct ? path_.string() : path_.string() + ".part" + std::to_string(::getpid());
  file_.open(part_, std::ios::trunc);
  pawl::require(file_.is_open(),
                {flag_, " ", path_.string(), " cannot be written: ", std::strerror(errno)});
}

OutputFile::~OutputFile() {
  if (part_.empty() || part_ == path_) return;
  std::error_code ignored;
  std::filesystem::remove(part_, ignored);  // does nothing after `finish`
}

void OutputFile::line(Json const& record) {
  if (path_.empty()) return;
  file_ << record.dump(-1, ' ', false, Json::error_handler_t::replace) << std::endl;
  check_written();
}

void OutputFile::check_written() {
  pawl::require(file_.good(),
                {flag_, " ", path_.string(), " could not be written: ", std::strerror(errno)});
}

void OutputFile::finish() {
  if (path_.empty()) return;
  file_.close();
  check_written();
  if (part_ == path_) return;
  if (auto const file = ::open(part_.c_str(), O_RDONLY); file >= 0) {
    ::fsync(file);
    ::close(file);
  }
  // A link, unlike a rename, never replaces a file that has appeared meanwhile.
  if (!force_ && ::link(part_.c_str(), path_.c_str()) == 0) return;
  if (!force_ && errno == EEXIST) {
    auto const kept = std::exchange(part_, std::filesystem::path());
    pawl::fail({flag_, " ", path_.string(), " has appeared during the run; the results are in ",
                kept.string()});
  }
  std::error_code error;
  std::filesystem::rename(part_, path_, error);
  pawl::require(!error, {flag_, " ", path_.string(), " could not be written: ", error.message()});
}

}  // namespace bench
