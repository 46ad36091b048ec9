#include <algorithm>
#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include <pawl/memory/catalogue.hpp>
#include <pawl/optimizers/catalogue.hpp>
#include <strategies/compiled.hpp>

#include "commands.hpp"
#include "experiment.hpp"
#include "record.hpp"
#include "report.hpp"

#include <fmt/ranges.h>

namespace bench {

namespace {

struct Entry {
  std::string name;
  std::string about;
  std::string prefix;  ///< of its flags, "--" included
  pawl::OptionList options;
  std::vector<std::string> hooks = {};  ///< of a strategy
};

struct Family {
  std::string plural;
  std::string singular;
  std::vector<Entry> entries;
};

/// The formula and the source of a metric; R_ij is the accuracy on j after experience i, T their
/// number.
std::map<std::string, std::string> const metric_texts{
    {"final_accuracy", "ACC: (1/T) sum_j R_{T-1,j} (Lopez-Paz, Ranzato, NeurIPS 2017)"},
    {"average_incremental",
     "(1/T) sum_i A_i, A_i = (1/(i+1)) sum_{j<=i} R_ij (Rebuffi et al., CVPR 2017)"},
    {"average_incremental_from_second", "average_incremental without the first experience"},
    {"learning_accuracy", "(1/T) sum_j R_jj (Riemer et al., ICLR 2019)"},
    {"matrix_mean", "sum_{i>=j} R_ij / (T(T+1)/2) (Diaz-Rodriguez et al., 2018)"},
    {"forgetting",
     "(1/(T-1)) sum_{j<T-1} (max_{i<T-1} R_ij - R_{T-1,j}) (Chaudhry et al., ECCV 2018)"},
    {"forgetting_max_from_j", "forgetting with the maximum over j <= i < T-1"},
    {"forgetting_first_minus_last", "(1/(T-1)) sum_{j<T-1} (R_jj - R_{T-1,j})"},
    {"forgetting_max_incl_final", "forgetting with the last row in the maximum; never negative"},
    {"forgetting_at",
     "forgetting after experience k, for k = 1 .. T-1 (Chaudhry et al., ECCV 2018)"},
    {"bwt", "(1/(T-1)) sum_{j<T-1} (R_{T-1,j} - R_jj) (Lopez-Paz, Ranzato, NeurIPS 2017)"},
    {"bwt_over_T", "bwt divided by T instead of T-1 (released GEM code)"},
    {"bwt_all_pairs", "sum_{i>j} (R_ij - R_jj) / (T(T-1)/2) (Diaz-Rodriguez et al., 2018)"},
    {"rem", "1 - abs(min(bwt_all_pairs, 0)) (Diaz-Rodriguez et al., 2018)"},
    {"bwt_plus", "max(bwt_all_pairs, 0) (Diaz-Rodriguez et al., 2018)"},
    {"fwt",
     "(1/(T-1)) sum_{j>=1} (R_{j-1,j} - b_j), b of the untrained model (Lopez-Paz, Ranzato, "
     "NeurIPS 2017)"},
    {"fwt_over_T", "fwt divided by T instead of T-1 (released GEM code)"},
    {"fwt_all_pairs", "sum_{i<j} R_ij / (T(T-1)/2), no baseline (Diaz-Rodriguez et al., 2018)"},
    {"intransigence", "mean of a*_k - R_kk; needs joint accuracies (Chaudhry et al., ECCV 2018)"},
    {"min_acc", "(1/(T-1)) sum_{j<T-1} min_{i>j} R_ij (De Lange et al., ICLR 2023)"},
    {"wc_acc", "(1/T) R_{T-1,T-1} + ((T-1)/T) min_acc (De Lange et al., ICLR 2023)"},
    {"final_accuracy_by_sample", "final_accuracy over all test samples together"},
    {"average_incremental_by_sample", "average_incremental over all test samples together"},
    {"anytime_aaa",
     "average anytime accuracy on the experiences seen so far (Caccia et al., ICLR 2022)"},
    {"anytime_min_acc",
     "mean over past experiences of the lowest accuracy since their end (De Lange et al., ICLR "
     "2023)"},
    {"anytime_wc_acc", "(1/T) of the last accuracy on the last + ((T-1)/T) anytime_min_acc"},
    {"anytime_wf_10",
     "largest drop within 10 evaluations, mean over experiences (De Lange et al.)"},
    {"anytime_wf_100", "largest drop within 100 evaluations"},
    {"anytime_wp_10", "largest rise within 10 evaluations (De Lange et al.)"},
    {"anytime_wp_100", "largest rise within 100 evaluations"},
    {"anytime_gap_10",
     "stability gap: depth of the dip in the 10 evaluations after the end of an experience, mean "
     "over all but the last (De Lange et al.)"},
    {"anytime_lca_10",
     "area under the learning curves of the first 10 batches, from before the first on (Chaudhry "
     "et al., ICLR 2019); needs --evaluate_every 1"},
};

template <class T>
pawl::OptionList described(T& component) {
  return pawl::options_of(component).all();
}

// Bound to copies that live as long as the program, so that defaults can be read at any time.
Family streams() {
  static auto all = pawl::stream_catalogue();
  Family family{"streams", "stream", {}};
  for (auto& s : all) family.entries.push_back({s.name, s.about, "--stream.", described(s)});
  return family;
}

Family strategies() {
  static std::vector<pawl::AnyStrategy> all;
  Family family{"strategies", "strategy", {}};
  for (auto const& entry : compiled::strategy_catalogue()) all.push_back(entry.make());
  for (std::size_t i = 0; i < compiled::strategy_catalogue().size(); ++i) {
    auto const& entry = compiled::strategy_catalogue()[i];
    family.entries.push_back({entry.name, entry.about, std::string("--") + entry.name + ".",
                              described(all[i]), all[i].record().hooks});
  }
  family.entries.push_back(
      {"naive", "no strategy: train on each experience in turn, the lower reference", "", {}});
  family.entries.push_back(
      {"joint", "train once on the data of all experiences, the upper reference", "", {}});
  family.entries.push_back({"cumulative", "train on the data of all experiences so far", "", {}});
  family.entries.push_back({"from_scratch",
                            "train new weights on the data of all experiences so far, the upper "
                            "reference after each experience",
                            "",
                            {}});
  return family;
}

Family models() {
  static auto all = pawl::model_catalogue();
  Family family{"models", "model", {}};
  for (auto& m : all)
    family.entries.push_back({m.type_name(), m.about(), "--model.", described(m)});
  return family;
}

Family memories() {
  static std::vector<pawl::AnyMemory> all;
  Family family{"memories", "memory", {}};
  for (auto const& entry : pawl::memory_catalogue()) all.push_back(entry.make());
  for (std::size_t i = 0; i < all.size(); ++i) {
    auto const& entry = pawl::memory_catalogue()[i];
    family.entries.push_back({entry.name, entry.about, "--STRATEGY.", described(all[i])});
  }
  return family;
}

Family optimizers() {
  static std::vector<pawl::AnyOptimizer> all;
  Family family{"optimizers", "optimizer", {}};
  for (auto const& entry : pawl::optimizer_catalogue()) all.push_back(entry.make());
  for (std::size_t i = 0; i < all.size(); ++i) {
    auto const& entry = pawl::optimizer_catalogue()[i];
    family.entries.push_back({entry.name, entry.about, "--optimizer.", described(all[i])});
  }
  return family;
}

Family metrics() {
  Family family{"metrics", "metric", {}};
  auto names = metric_names();
  names.emplace_back("forgetting_at");
  for (auto const* name : anytime_names) names.emplace_back(name);
  for (auto const& name : names) {
    auto const text = metric_texts.find(name);
    family.entries.push_back({name, text == metric_texts.end() ? "" : text->second, "", {}});
  }
  return family;
}

std::vector<Family> const& families() {
  static std::vector<Family> const all{streams(),  strategies(), models(),
                                       memories(), optimizers(), metrics()};
  return all;
}

std::string option_text(std::string const& flag, pawl::Option const& option) {
  auto const value = option.get();
  return fmt::format("  {} (default {})\n      {}. {}.\n", flag, value.empty() ? "empty" : value,
                     option.help, option.values);
}

std::string entry_text(Family const& family, Entry const& entry) {
  auto text = fmt::format("{} '{}': {}\n", family.singular, entry.name, entry.about);
  if (!entry.hooks.empty()) text += fmt::format("hooks: {}\n", fmt::join(entry.hooks, ", "));
  if (!entry.options.empty()) text += "\n";
  for (auto const& option : entry.options) text += option_text(entry.prefix + option.name, option);
  return text;
}

Json entry_json(Entry const& entry) {
  Json json{{"name", entry.name}, {"about", entry.about}};
  if (!entry.hooks.empty()) json["hooks"] = entry.hooks;
  if (entry.prefix.empty()) return json;
  json["options"] = Json::array();
  for (auto const& option : entry.options) {
    json["options"].push_back({{"name", option.name},
                               {"flag", entry.prefix + option.name},
                               {"default", option.get()},
                               {"values", option.values},
                               {"help", option.help}});
  }
  return json;
}

std::string cell(std::string const& text) {
  std::string escaped;
  for (auto const c : text) {
    if (c == '|') escaped += '\\';
    escaped += c;
  }
  return escaped;
}

/// The tables of docs/options.md.
std::string const table_head = "\n| flag | default | values | meaning |\n|---|---|---|---|\n";

std::string table_row(std::string const& flag, pawl::Option const& option) {
  return fmt::format("| `{}` | {} | {} | {} |\n", flag, cell(option.get()), cell(option.values),
                     cell(option.help));
}

/// Options that belong to no component.
std::string settings_tables() {
  Config config;
  std::string text;
  for (std::string const section : {"", "training", "evaluation"}) {
    text += "\n## " + (section.empty() ? "run" : section) + "\n" + table_head;
    for (auto const& knob : knobs(config)) {
      if (knob.section == section) text += table_row(knob.flag(), knob.option);
    }
  }
  return text;
}

std::string markdown(std::vector<Family> const& chosen) {
  std::string text =
      "# Options\n\nWritten by `pawl-bench list --markdown`; the texts live beside the options in "
      "the headers.\n";
  if (chosen.size() == families().size()) text += settings_tables();
  for (auto const& family : chosen) {
    text += "\n## " + family.plural + "\n";
    for (auto const& entry : family.entries) {
      text += fmt::format("\n### {}\n\n{}.\n", entry.name, entry.about);
      if (!entry.options.empty()) text += table_head;
      for (auto const& option : entry.options) {
        text += table_row(entry.prefix + option.name, option);
      }
    }
  }
  return text;
}

constexpr char const* list_usage =
    "usage: pawl-bench list [streams|strategies|models|memories|optimizers|metrics] [--json] "
    "[--markdown]\n\n"
    "  --json      everything, with options, defaults and ranges, as JSON\n"
    "  --markdown  the same as tables\n\n"
    "pawl-bench help NAME shows one of them with its options.\n";

std::string section_help(Config& config, std::string const& title, std::string const& section) {
  auto text = "\n" + title + "\n";
  for (auto const& knob : knobs(config)) {
    if (knob.section == section) text += option_text(knob.flag(), knob.option);
  }
  return text;
}

}  // namespace

std::string run_help(Config& config) {
  std::string const text =
      "usage: pawl-bench run [OPTIONS]\n\n"
      "Trains strategies on a stream, once per seed, and measures after each experience. Dashes "
      "and underscores in\n"
      "flags are the same; every flag may be written with its section: --lr is --optimizer.lr. A "
      "strategy that is\n"
      "named twice has its second options under --NAME2. Results go to standard output, progress "
      "to a terminal.\n\n"
      "  --config FILE\n      A TOML file with any of the options; flags win over it.\n"
      "  --print-config\n      Write the complete configuration as such a file, and stop.\n"
      "  --force\n      Replace the file of --out if it exists.\n"
      "  --help\n      This text, with the options of the components that are chosen before it.\n";
  return text + config_help(config);
}

std::string config_help(Config& config) {
  auto text = section_help(config, "Run", "");
  text +=
      section_help(config, "Stream '" + config.stream.name + "': " + config.stream.about, "stream");
  text += section_help(config, "Training", "training");
  text += section_help(config, "Optimizer '" + config.optimizer.type_name() + "'", "optimizer");
  text += section_help(config, "Model '" + config.model.type_name() + "': " + config.model.about(),
                       "model");
  text += section_help(config, "Evaluation", "evaluation");
  for (auto const& s : config.strategies) {
    std::string about;
    for (auto const& entry : compiled::strategy_catalogue()) {
      if (entry.name == s.strategy.type_name()) about = entry.about;
    }
    text += section_help(config, "Strategy '" + s.prefix + "': " + about, "strategy." + s.prefix);
  }
  if (config.strategies.empty()) {
    text +=
        "\nStrategies bring options of their own: name them before --help, or see pawl-bench help "
        "NAME.\n";
  }
  return text;
}

std::string help_of(std::string const& name) {
  if (name == "run") {
    Config config;
    return run_help(config);
  }
  if (name == "list") return list_usage;
  std::string text;
  for (auto const& family : families()) {
    for (auto const& entry : family.entries) {
      if (entry.name == name)
        text.append(text.empty() ? "" : "\n").append(entry_text(family, entry));
    }
  }
  return text;
}

int help_command(Arguments const& arguments) {
  for (auto const& name : arguments) {
    if (name == "reproduce") return reproduce_command({"--help"});
    if (name == "quickstart") return quickstart_command({"--help"});
    if (name == "profile") return profile_command({"--help"});
    auto const text = help_of(name);
    if (text.empty()) {
      std::vector<std::string> names{"run", "profile", "list", "reproduce", "quickstart"};
      for (auto const& family : families()) {
        for (auto const& entry : family.entries) names.push_back(entry.name);
      }
      throw UsageError("there is no help on '" + name + "'" + pawl::suggestion(name, names));
    }
    std::fputs(text.c_str(), stdout);
  }
  return 0;
}

int list_command(Arguments const& arguments) {
  auto parsed = parse(arguments, {"json", "markdown", "help"});
  auto const json = parsed.take_switch("json"), tables = parsed.take_switch("markdown");
  auto const help = parsed.take_switch("help");
  if (!parsed.assignments.empty()) {
    auto const& wrong = parsed.assignments.front().key;
    throw UsageError("list has no option --" + wrong +
                     pawl::suggestion(wrong, {"json", "markdown", "help"}));
  }
  std::vector<Family> chosen;
  for (auto const& name : parsed.names) {
    auto const same = [&](Family const& f) { return f.plural == name || f.singular == name; };
    auto const found = std::find_if(families().begin(), families().end(), same);
    if (found == families().end()) {
      std::vector<std::string> plurals;
      for (auto const& f : families()) plurals.push_back(f.plural);
      throw UsageError("there is no list of '" + name + "'" + pawl::suggestion(name, plurals));
    }
    chosen.push_back(*found);
  }
  if (chosen.empty()) chosen = families();
  if (help && parsed.names.empty()) {
    std::fputs(list_usage, stdout);
    return 0;
  }
  std::string text;
  Json all = Json::object();
  for (auto const& family : chosen) {
    std::vector<std::vector<std::string>> rows;
    for (auto const& entry : family.entries) {
      if (help) text += entry_text(family, entry) + "\n";
      rows.push_back({"  " + entry.name});
      all[family.plural].push_back(entry_json(entry));
    }
    if (help) continue;
    std::size_t width = 0;
    for (auto const& row : rows) width = std::max(width, row.front().size());
    text += (text.empty() ? "" : "\n") + family.plural + "\n";
    for (std::size_t i = 0; i < rows.size(); ++i) {
      text += fmt::format("{:<{}}  {}\n", rows[i].front(), width, family.entries[i].about);
    }
  }
  if (json) text = all.dump(2) + "\n";
  if (tables) text = markdown(chosen);
  std::fputs(text.c_str(), stdout);
  return 0;
}

}  // namespace bench
