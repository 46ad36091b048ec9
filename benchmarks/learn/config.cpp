#include "config.hpp"

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <pawl/memory/catalogue.hpp>
#include <pawl/optimizers/catalogue.hpp>
#include <strategies/compiled.hpp>

namespace bench {

namespace {

std::string const strategy_section = "strategy.";

std::vector<std::string> split(std::string const& text) {
  std::vector<std::string> parts;
  std::size_t begin = 0;
  while (begin <= text.size()) {
    auto const end = std::min(text.find(',', begin), text.size());
    auto part = text.substr(begin, end - begin);
    part.erase(0, part.find_first_not_of(' '));
    part.erase(part.find_last_not_of(' ') + 1);
    if (!part.empty()) parts.push_back(std::move(part));
    begin = end + 1;
  }
  return parts;
}

/// Dashes for underscores, no leading dashes.
std::string normalised(std::string key) {
  key.erase(0, key.find_first_not_of('-'));
  std::replace(key.begin(), key.end(), '-', '_');
  return key;
}

/// What the user wrote, without pawl's own prefix and with the flag for the bare name.
[[noreturn]] void bad_value(Knob const& knob, Assignment const& a, pawl::Error const& error) {
  std::string text = error.what();
  if (text.rfind("pawl: ", 0) == 0) text.erase(0, 6);
  auto const bare = "option '" + knob.option.name + "'";
  if (auto const at = text.find(bare); at != std::string::npos) {
    text.replace(at, bare.size(), knob.flag());
  } else {
    text = knob.flag() + ": " + text;
  }
  throw UsageError(text + (a.origin.empty() ? "" : " (in " + a.origin + ")"));
}

void add(std::vector<Knob>& all, std::string const& section, pawl::Options options) {
  for (auto& option : std::move(options).all()) all.push_back({section, std::move(option)});
}

void add_names(std::vector<Knob>& all, Config& c) {
  using pawl::Options;
  auto strategies = compiled::strategy_names();
  strategies.insert(strategies.begin(), reference_names.begin(), reference_names.end());
  std::string known;
  for (auto const& name : strategies) known += (known.empty() ? "" : " | ") + name;
  all.push_back({"",
                 {.name = "strategies",
                  .kind = pawl::Option::Kind::component,
                  .values = "comma-separated: " + known,
                  .help = "what keeps the model from forgetting, in order; naive: nothing; joint: "
                          "trained once on all data; cumulative, from_scratch: on all data so far, "
                          "going on or with new weights",
                  .choices = strategies,
                  .present = [&c] { return c.strategy_text(); },
                  .several = true,
                  .replace = [&c](std::string const& names) { c.set_strategies(names); }}});
  Options stream, optimizer, model;
  stream.component(
      "name", pawl::stream_names(), "data set and what makes experiences of it",
      [&c] { return c.stream.name; },
      [&c](std::string const& name) { c.stream = pawl::make_stream_choice(name); });
  optimizer.component(
      "name", pawl::optimizer_names(), "what applies the gradients",
      [&c] { return c.optimizer.type_name(); },
      [&c](std::string const& name) { c.optimizer = pawl::make_optimizer(name); });
  model.component(
      "name", pawl::model_names(), "network", [&c] { return c.model.type_name(); },
      [&c](std::string const& name) { c.model = pawl::make_model_choice(name); });
  add(all, "stream", std::move(stream));
  add(all, "optimizer", std::move(optimizer));
  add(all, "model", std::move(model));
}

std::vector<std::string> spellings(std::vector<Knob> const& all) {
  std::vector<std::string> names{"strategy", "stream", "optimizer", "model",
                                 "config",   "force",  "help",      "print_config"};
  for (auto const& knob : all) {
    names.push_back(knob.flag().substr(2));
    names.push_back(knob.path());
    auto const bare =
        knob.section == "stream" || knob.section == "training" || knob.section == "optimizer";
    if (bare && knob.option.name != "name") names.push_back(knob.option.name);
  }
  return names;
}

/// For a wrong name of a strategy: what papers call it counts as near.
std::string suggested_strategy(std::string const& wrong, std::vector<std::string> const& known) {
  static constexpr std::pair<char const*, char const*> in_papers[] = {
      {"er", "replay"},        {"experience_replay", "replay"},
      {"rehearsal", "replay"}, {"der++", "derpp"},
      {"ace", "er_ace"},       {"nearest_mean", "ncm"},
      {"nmc", "ncm"},          {"finetune", "naive"},
      {"sgd", "naive"}};
  for (auto const& [theirs, ours] : in_papers) {
    if (wrong == theirs) return c10::str("; did you mean '", ours, "'?");
  }
  return pawl::suggestion(wrong, known);
}

/// Which parts that the run has not chosen have an option, as "the memory ring, quota".
std::string owners(std::string const& option) {
  std::string text;
  auto const look = [&](char const* kind, std::vector<std::string> const& names, auto&& make) {
    std::string found;
    for (auto const& name : names) {
      auto part = make(name);
      for (auto const& each : pawl::options_of(part).all()) {
        if (each.name == option) found += (found.empty() ? "" : ", ") + name;
      }
    }
    if (!found.empty()) text += (text.empty() ? "the " : ", the ") + (kind + (" " + found));
  };
  look("memory", pawl::memory_names(), [](auto const& name) { return pawl::make_memory(name); });
  look("optimizer", pawl::optimizer_names(),
       [](auto const& name) { return pawl::make_optimizer(name); });
  look("model", pawl::model_names(),
       [](auto const& name) { return pawl::make_model_choice(name); });
  return text;
}

[[noreturn]] void unknown_key(std::vector<Knob> const& all, Assignment const& a) {
  auto const key = normalised(a.key);
  auto const where = a.origin.empty() ? "" : " (in " + a.origin + ")";
  auto text = (a.origin.empty() ? "there is no option --" : "there is no key ") + a.key + where;
  auto const inner = key.substr(key.rfind(strategy_section, 0) == 0 ? strategy_section.size() : 0);
  auto const prefix = inner.substr(0, inner.find('.'));
  auto const name = prefix.substr(0, prefix.find_last_not_of("0123456789") + 1);
  auto const strategies = compiled::strategy_names();
  auto const known = std::find(strategies.begin(), strategies.end(), name) != strategies.end();
  auto const listed = std::any_of(all.begin(), all.end(), [&](Knob const& knob) {
    return knob.section == strategy_section + prefix;
  });
  if (inner != prefix && known && !listed) {
    throw UsageError((a.origin.empty() ? "--" : "the key ") + a.key + where +
                     " is for the strategy '" + prefix + "', which this run does not use; add " +
                     name + " to --strategy");
  }
  // The same name in another section is nearer than one that is spelled alike.
  auto const last = key.substr(key.rfind('.') + 1);
  auto const namesake = std::find_if(all.begin(), all.end(), [&](Knob const& knob) {
    return knob.option.name == last && last != "name";
  });
  auto const elsewhere = namesake == all.end() ? owners(last) : "";
  if (!elsewhere.empty()) throw UsageError(text + "; " + last + " is an option of " + elsewhere);
  auto const near = namesake != all.end()
                        ? (a.origin.empty() ? namesake->flag().substr(2) : namesake->path())
                        : pawl::nearest_name(key, spellings(all));
  text += near.empty() ? "; see pawl-bench run --help"
                       : "; did you mean " + std::string(a.origin.empty() ? "--" : "") + near + "?";
  throw UsageError(text);
}

/// Says of options that those of another part are read instead.
void note_replaced(std::vector<Knob>& all, Config const& c) {
  for (auto& knob : all) {
    auto const is = [path = knob.path()](char const* other) { return path == other; };
    auto const& run = c.run;
    if (is("training.epochs") && !run.epochs_per_experience.empty()) {
      knob.option.lacks = "epochs_per_experience is empty";
    }
    if (is("optimizer.lr") && !run.lr_per_experience.empty()) {
      knob.option.lacks = "lr_per_experience is empty";
    }
    if (is("epochs_per_experience") && c.training.iterations > 0) {
      knob.option.lacks = "iterations = 0";
    }
  }
}

}  // namespace

void RunOptions::describe(pawl::Options& o) {
  o("seeds", seeds, pawl::between(1, 1e6), "number of runs, each with a seed of its own");
  o("first_seed", first_seed, pawl::between(0, 1e15),
    "seed of the first run; the next has one more");
  o("stream_seed", stream_seed, pawl::at_least(-1),
    "fixes class order, permutations, angles and subsets for all runs; -1: each run has its own");
  o("init_seed", init_seed, pawl::at_least(-1),
    "fixes the initial weights for all runs; -1: each run has its own");
  o("threads", threads, pawl::between(1, 1024), "threads that share products, updates and gathers");
  o("jobs", jobs, pawl::between(1, 1024),
    "seeds run at the same time, each in threads of its own; the results are the same, the seconds "
    "of a seed are not");
  o("fleet", fleet,
    "on a device, seeds that run at the same time share graphs and matrix products where their "
    "steps "
    "are alike, which may change last bits");
  o.only_if(jobs > 1 && device != "cpu", "jobs > 1 and device = cuda");
  o("device", device, "cpu, cuda or cuda:N");
  o("precision", precision, {"highest", "high", "medium"},
    "of float32 matrix products and convolutions: highest, all bits; high, TensorFloat32 on a GPU; "
    "medium, that, and bfloat16 in matrix products where the CPU has it");
  o("data", data, "folder of the data sets; empty: PAWL_DATA, else data");
  o("out", out, "file for the results, one JSON object per line; empty: none");
  o("save", save,
    "folder for the trained learners, a checkpoint per seed: seed_0.safetensors; empty: none");
  o("epochs_per_experience", epochs_per_experience, pawl::at_least(1),
    "epochs of experience 0, 1, ... instead of the same for all (the last one goes on); empty: see "
    "epochs");
  o("lr_per_experience", lr_per_experience, pawl::at_least(0),
    "learning rates of experience 0, 1, ... instead of the same for all (the last one goes on); "
    "empty: see lr of the optimizer");
  o("evaluate", evaluate, {"each", "final"},
    "measure after each experience, or after the last one");
  o("evaluate_every", evaluate_every, pawl::at_least(0),
    "steps from one evaluation during training to the next, on all test sets, for the metrics "
    "anytime_*; 0: none. Limit the test rows (evaluation.limit) when it is small");
  o("trace_penalties", trace_penalties,
    "also record the values of penalties that are added in closed form");
  o("format", format, {"table", "json", "csv"}, "of the results on standard output");
}

Config::Config()
    : stream(pawl::make_stream_choice("split_mnist")), model(pawl::make_model_choice("mlp")) {}

std::string Config::strategy_text() const {
  if (strategies.empty()) return reference;
  std::string text;
  for (auto const& s : strategies)
    text.append(text.empty() ? "" : ",").append(s.strategy.type_name());
  return text;
}

void Config::set_strategies(std::string const& text) {
  auto const names = split(text);
  auto known = compiled::strategy_names();
  known.insert(known.begin(), reference_names.begin(), reference_names.end());
  pawl::require(!names.empty(), "no strategy is named; use naive for none");
  strategies.clear();
  reference = "naive";
  std::map<std::string, int> count;
  for (auto const& name : names) {
    auto const is = [&](std::string const& other) { return other == name; };
    if (std::any_of(reference_names.begin(), reference_names.end(), is)) {
      pawl::require(names.size() == 1,
                    {"'", name, "' is a way to train of its own; name it alone"});
      reference = name;
      continue;
    }
    pawl::require(std::any_of(known.begin(), known.end(), is),
                  {"there is no strategy '", name, "'", suggested_strategy(name, known)});
    auto const number = ++count[name];
    auto const prefix = number == 1 ? name : name + std::to_string(number);
    strategies.push_back({prefix, compiled::make_strategy(name)});
  }
}

std::string Knob::path() const {
  return section.empty() ? option.name : section + "." + option.name;
}

std::string Knob::flag() const {
  if (section.rfind(strategy_section, 0) == 0) {
    return "--" + section.substr(strategy_section.size()) + "." + option.name;
  }
  if (option.name == "name") return "--" + section;
  if (option.name == "strategies") return "--strategy";
  auto const bare = section == "stream" || section == "training" || section == "optimizer";
  auto const clash = option.name == "drop_last" || option.name == "mean";
  return "--" + (bare && !clash ? option.name : path());
}

std::vector<Knob> knobs(Config& c) {
  std::vector<Knob> all;
  add_names(all, c);
  add(all, "", pawl::options_of(c.run));
  add(all, "stream", pawl::options_of(c.stream));
  add(all, "training", pawl::options_of(c.training));
  add(all, "optimizer", pawl::options_of(c.optimizer));
  add(all, "model", pawl::options_of(c.model));
  add(all, "evaluation", pawl::options_of(c.evaluation));
  for (auto& s : c.strategies) add(all, strategy_section + s.prefix, pawl::options_of(s.strategy));
  note_replaced(all, c);
  return all;
}

Knob const* find_knob(std::vector<Knob> const& all, std::string const& written) {
  auto key = normalised(written);
  if (key == "strategy") key = "strategies";
  if (key == "stream" || key == "optimizer" || key == "model") key += ".name";
  std::vector<Knob const*> found;
  for (auto const& knob : all) {
    if (knob.path() == key || knob.path() == strategy_section + key) return &knob;
    auto const bare =
        knob.section == "stream" || knob.section == "training" || knob.section == "optimizer";
    if (bare && knob.option.name == key && key != "name") found.push_back(&knob);
  }
  if (found.size() > 1) {
    throw UsageError("--" + key + " can mean --" + found[0]->path() + " or --" + found[1]->path() +
                     "; write one of them");
  }
  return found.empty() ? nullptr : found.front();
}

void configure(Config& config, std::vector<Assignment> const& assignments) {
  std::vector<bool> done(assignments.size(), false);
  std::vector<std::string>
      exchanged;  // parts that a flag replaced: options of the old one in the file go with it
  // Components first, all of the outer ones before the inner ones: choosing one brings its options,
  // with their defaults.
  bool inner = false;
  for (bool again = true; again || !inner;) {
    inner = inner || !again;
    again = false;
    auto const all = knobs(config);
    for (std::size_t i = 0; i < assignments.size() && !again; ++i) {
      auto const* knob = done[i] ? nullptr : find_knob(all, assignments[i].key);
      if (knob == nullptr || knob->option.kind != pawl::Option::Kind::component) continue;
      if (!inner && knob->section.rfind(strategy_section, 0) == 0) continue;
      if (!assignments[i].given)
        throw UsageError(knob->flag() + " needs a name: " + knob->option.values);
      auto const before = knob->option.get();
      try {
        if (before != assignments[i].value || knob->path() == "strategies") {
          knob->option.set(assignments[i].value);
        }
      } catch (pawl::Error const& error) {
        bad_value(*knob, assignments[i], error);
      }
      if (assignments[i].origin.empty() && before != assignments[i].value) {
        exchanged.push_back(knob->path() == "strategies" ? strategy_section : knob->section + ".");
      }
      done[i] = again = true;
    }
  }
  auto const all = knobs(config);
  for (std::size_t i = 0; i < assignments.size(); ++i) {
    if (done[i]) continue;
    auto const& a = assignments[i];
    auto const* knob = find_knob(all, a.key);
    auto const left_behind = [&](std::string const& part) { return a.key.rfind(part, 0) == 0; };
    if (knob == nullptr && !a.origin.empty() &&
        std::any_of(exchanged.begin(), exchanged.end(), left_behind))
      continue;
    if (knob == nullptr) unknown_key(all, a);
    if (!a.given && knob->option.kind != pawl::Option::Kind::boolean) {
      throw UsageError(knob->flag() + " needs a value: " + knob->option.values);
    }
    try {
      knob->option.set(a.value);
    } catch (pawl::Error const& error) {
      bad_value(*knob, a, error);
    }
  }
  if (config.reference == "naive") return;
  auto const kind =
      config.reference == "joint" ? pawl::StreamKind::joint : pawl::StreamKind::cumulative;
  if (config.stream.kind != kind && config.stream.kind != pawl::StreamKind::sequential) {
    throw UsageError("--strategy " + config.reference +
                     " and --kind contradict each other; give one");
  }
  config.stream.kind = kind;
}

void check_flags_are_read(Config& config, std::vector<Assignment> const& flags) {
  Config usual_config;  // the same parts, with their defaults
  usual_config.set_strategies(config.strategy_text());
  usual_config.stream = pawl::make_stream_choice(config.stream.name);
  usual_config.optimizer = pawl::make_optimizer(config.optimizer.type_name());
  usual_config.model = pawl::make_model_choice(config.model.type_name());
  auto const all = knobs(config), usual = knobs(usual_config);
  for (auto const& flag : flags) {
    auto const* knob = find_knob(all, flag.key);
    if (knob == nullptr) continue;
    if (auto const* rival = knob->option.rival) {
      for (auto const& other : flags) {
        auto const* replaced = find_knob(all, other.key);
        if (replaced == nullptr || replaced->option.member != rival) continue;
        throw UsageError(knob->flag() + " takes the place of " + replaced->flag() +
                         "; give one of them");
      }
    }
    if (knob->option.lacks == nullptr) continue;
    auto const* same = find_knob(usual, knob->path());
    if (same != nullptr && same->option.get() == knob->option.get()) continue;
    throw UsageError(knob->flag() + " has no effect in this run: it is read only if " +
                     knob->option.lacks);
  }
}

}  // namespace bench
