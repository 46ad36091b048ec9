#include "config.hpp"

#include <algorithm>
#include <fstream>
#include <map>
#include <sstream>

#include <fmt/format.h>
#include <toml++/toml.h>

namespace bench {

namespace {

/// A key as it is looked up: without leading dashes, and with underscores.
std::string normalised(std::string key) {
  key.erase(0, key.find_first_not_of('-'));
  std::replace(key.begin(), key.end(), '-', '_');
  return key;
}

std::string sentence(std::exception const& error) {
  std::string text = error.what();
  return text.starts_with("pawl: ") ? text.substr(6) : text;
}

/// Runs `action`, and turns an Error of the library into a usage error.
template <class F>
auto as_usage(F&& action) {
  try {
    return action();
  } catch (pawl::Error const& error) {
    throw UsageError(sentence(error));
  }
}

std::string last_value(Settings const& settings, std::vector<std::string> const& keys,
                       std::string value) {
  for (auto const& [key, text] : settings) {
    if (std::find(keys.begin(), keys.end(), key) != keys.end()) value = text;
  }
  return value;
}

std::vector<std::string> words(std::string const& text) {
  std::vector<std::string> parts;
  std::stringstream stream(text);
  for (std::string part; std::getline(stream, part, ',');) parts.push_back(part);
  return parts;
}

/// The strategies of a comma-separated list. `joint` and `cumulative` name the upper references: naive
/// training on another kind of stream.
void choose_strategies(RunConfig& config) {
  std::map<std::string, int> times;
  for (auto const& name : words(config.run.strategy)) {
    if (name == "naive") continue;
    if (name == "joint") {
      config.stream.kind = pawl::StreamKind::joint;
    } else if (name == "cumulative") {
      config.stream.kind = pawl::StreamKind::cumulative;
    } else {
      auto names = pawl::strategy_names();
      names.insert(names.end(), {"naive", "joint", "cumulative"});
      if (std::find(names.begin(), names.end(), name) == names.end()) {
        throw UsageError("there is no strategy '" + name + "'" + pawl::suggestion(name, names));
      }
      auto const n = ++times[name];
      config.strategies.push_back(
          {n == 1 ? name : name + std::to_string(n), pawl::make_strategy(name)});
    }
  }
}

struct Found {
  pawl::Option option;
  std::string full;  ///< its name with prefix
};

/// The option of a key, with its full prefix or, for the run, the stream, the training and the optimizer, without.
Found find_option(RunConfig& config, std::string const& key) {
  std::vector<Found> plain;
  std::vector<std::string> names;
  for (auto& section : config.sections()) {
    auto const bare = section.prefix.empty() || section.prefix == "stream" ||
                      section.prefix == "training" || section.prefix == "optimizer";
    for (auto& option : section.options) {
      auto const full = section.prefix.empty() ? option.name : section.prefix + "." + option.name;
      if (key == full) return {option, full};
      if (bare && key == option.name) plain.push_back({option, full});
      names.push_back(full);
      if (bare && !section.prefix.empty()) names.push_back(option.name);
    }
  }
  if (plain.size() == 1) return plain.front();
  if (plain.empty()) {
    throw UsageError("there is no option '" + key + "'" + pawl::suggestion(key, names) +
                     " (--help lists all options of the chosen components)");
  }
  std::string all;
  for (auto const& found : plain) all += (all.empty() ? "" : " or ") + ("--" + found.full);
  throw UsageError("'" + key + "' is an option of several components; write " + all);
}

void apply(RunConfig& config, Settings const& settings, bool components) {
  for (auto const& [key, value] : settings) {
    if (components && key.find('.') == std::string::npos) continue;
    if (components) {
      auto const owner = key.substr(0, key.find('.'));
      auto const known = std::any_of(config.strategies.begin(), config.strategies.end(),
                                     [&](auto const& s) { return s.prefix == owner; });
      if (!known || !key.ends_with(".memory")) continue;
    }
    auto const found = find_option(config, key);
    if (!components && found.option.kind == pawl::Option::Kind::component) continue;
    try {
      found.option.set(value);
    } catch (pawl::Error const& error) {
      auto text = sentence(error);
      auto const quoted = "'" + found.option.name + "'";
      if (auto const at = text.find(quoted); at != std::string::npos) {
        text.replace(at, quoted.size(), "'" + found.full + "'");
      }
      throw UsageError(text);
    }
  }
}

std::string toml_value(pawl::Option const& option) {
  using Kind = pawl::Option::Kind;
  auto const value = option.get();
  switch (option.kind) {
    case Kind::boolean:
    case Kind::integer:
      return value;
    case Kind::real:
      return value.find_first_of(".einf") == std::string::npos ? value + ".0" : value;
    case Kind::integers:
      return "[" + value + "]";
    case Kind::reals: {
      std::string list;
      for (auto number : words(value)) {
        if (number.find_first_of(".e") == std::string::npos) number += ".0";
        list += (list.empty() ? "" : ", ") + number;
      }
      return "[" + list + "]";
    }
    default: {
      std::ostringstream text;
      text << toml::value<std::string>(value);
      return text.str();
    }
  }
}

std::string scalar_text(toml::node const& node, std::string const& key, std::string const& origin) {
  if (auto const* text = node.as_string()) return text->get();
  if (auto const* flag = node.as_boolean()) return flag->get() ? "true" : "false";
  if (auto const* whole = node.as_integer()) return std::to_string(whole->get());
  if (auto const* real = node.as_floating_point()) return fmt::format("{}", real->get());
  throw UsageError(origin + ": '" + key + "' must be a text, a number, true or false, or a list");
}

void flatten(toml::table const& table, std::string const& prefix, std::string const& origin,
             Settings& out) {
  for (auto const& [name, node] : table) {
    auto const key = prefix + std::string(name.str());
    if (auto const* inner = node.as_table()) {
      flatten(*inner, key == "strategy" ? "" : key + ".", origin, out);
    } else if (auto const* list = node.as_array()) {
      std::string text;
      for (auto const& item : *list) {
        text += (text.empty() ? "" : ",") + scalar_text(item, key, origin);
      }
      out.emplace_back(key, text);
    } else {
      out.emplace_back(key, scalar_text(node, key, origin));
    }
  }
}

}  // namespace

void RunOptions::describe(pawl::Options& o) {
  auto const choice = [&](char const* name, std::vector<std::string> names, std::string& value,
                          char const* help) {
    o.component(
        name, std::move(names), help, [&value] { return value; },
        [&value](std::string const& text) { value = text; });
  };
  choice("stream", pawl::stream_names(), stream, "data and how it is cut into experiences");
  o("strategy", strategy, "strategies in calling order, comma-separated; naive, joint, cumulative");
  choice("model", pawl::model_names(), model, "network");
  choice("optimizer", pawl::optimizer_names(), optimizer, "optimizer");
  o("data", data, "folder of data sets; empty: PAWL_DATA, else ./data");
  o("device", device, "cpu, cuda or cuda:N");
  o("seeds", seeds, pawl::at_least(1), "runs; run k has seed first_seed + k");
  o("first_seed", first_seed, pawl::at_least(0), "seed of the first run");
  o("stream_seed", stream_seed, pawl::at_least(-1),
    "seed of class order, permutations and angles, for all runs; -1: the seed of each run");
  o("threads", threads, pawl::at_least(1), "threads of LibTorch");
}

std::vector<RunConfig::Section> RunConfig::sections() {
  std::vector<Section> all;
  all.push_back({"", "the run", pawl::options_of(run).all()});
  all.push_back({"stream", stream.about, pawl::options_of(stream).all()});
  all.push_back({"training", "how an experience is trained", pawl::options_of(training).all()});
  all.push_back({"optimizer", pawl::optimizer_about(run.optimizer),
                 pawl::options_of(optimizer).all()});
  all.push_back({"model", model.about(), pawl::options_of(model).all()});
  all.push_back({"evaluation", "how accuracy is measured", pawl::options_of(evaluation).all()});
  for (auto& named : strategies) {
    std::string about;
    for (auto const& entry : pawl::strategy_catalogue()) {
      if (entry.name == named.strategy.type_name()) about = entry.about;
    }
    all.push_back({named.prefix, about, pawl::options_of(named.strategy).all()});
  }
  return all;
}

RunConfig make_config(Settings const& given) {
  Settings settings;
  for (auto const& [key, value] : given) settings.emplace_back(normalised(key), value);
  RunConfig config;
  auto& run = config.run;
  run.stream = last_value(settings, {"stream"}, run.stream);
  run.strategy = last_value(settings, {"strategy"}, run.strategy);
  run.model = last_value(settings, {"model"}, run.model);
  run.optimizer = last_value(settings, {"optimizer"}, run.optimizer);
  return as_usage([&] {
    config.stream = pawl::make_stream_choice(run.stream);
    config.model = pawl::make_model_choice(run.model);
    config.optimizer = pawl::make_optimizer(run.optimizer);
    choose_strategies(config);
    apply(config, settings, true);
    apply(config, settings, false);
    return std::move(config);
  });
}

Settings settings_from_toml(std::string const& text, std::string const& origin) {
  try {
    Settings settings;
    flatten(toml::parse(text), "", origin, settings);
    return settings;
  } catch (toml::parse_error const& error) {
    throw UsageError(fmt::format("{}: line {}: {}", origin, error.source().begin.line,
                                 error.description()));
  }
}

Settings settings_from_file(std::string const& path) {
  std::ifstream file(path);
  if (!file) throw UsageError("cannot open the config file '" + path + "'; check the path");
  std::stringstream text;
  text << file.rdbuf();
  return settings_from_toml(text.str(), path);
}

std::string to_toml(RunConfig& config) {
  std::string text;
  for (auto const& section : config.sections()) {
    auto const own = section.prefix == "stream" || section.prefix == "training" ||
                     section.prefix == "optimizer" || section.prefix == "model" ||
                     section.prefix == "evaluation";
    // The names of the components are keys of the run, so their tables have names of their own.
    if (!section.prefix.empty()) {
      text += fmt::format("\n[{}]\n", own ? "options." + section.prefix : "strategies." + section.prefix);
    }
    for (auto const& option : section.options) {
      text += fmt::format("{} = {}\n", option.name, toml_value(option));
    }
  }
  return text;
}

}  // namespace bench
