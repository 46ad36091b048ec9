#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "config.hpp"

#include <toml++/toml.h>

namespace bench {

namespace {

std::string text_of(toml::node const& node, std::string const& key, std::string const& origin) {
  if (auto const* text = node.as_string()) return text->get();
  if (auto const* number = node.as_integer()) return std::to_string(number->get());
  if (auto const* number = node.as_floating_point()) return pawl::number_text(number->get());
  if (auto const* truth = node.as_boolean()) return truth->get() ? "true" : "false";
  if (auto const* list = node.as_array()) {
    std::string text;
    for (auto const& item : *list)
      text.append(text.empty() ? "" : ",").append(text_of(item, key, origin));
    return text;
  }
  throw UsageError(origin + ": the value of '" + key +
                   "' must be a text, a number, true, false or a list");
}

std::string quoted(std::string const& text) {
  std::string quoted = "\"";
  for (auto const c : text) {
    auto const code = static_cast<unsigned char>(c);
    if (code < 0x20 || code == 0x7f) {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\u%04X", static_cast<unsigned>(code));
      quoted += escape;
      continue;
    }
    if (c == '"' || c == '\\') quoted += '\\';
    quoted += c;
  }
  return quoted + "\"";
}

std::string toml_value(pawl::Option const& option) {
  using Kind = pawl::Option::Kind;
  auto const text = option.get();
  switch (option.kind) {
    case Kind::boolean:
    case Kind::integer:
    case Kind::real:
      return text;
    case Kind::integers:
    case Kind::reals:
      return "[" + text + "]";
    default:
      return quoted(text);
  }
}

}  // namespace

std::vector<Assignment> assignments_of(toml::table const& table, std::string const& origin) {
  std::vector<Assignment> all;
  for (auto const& [key, node] : table) {
    auto const name = std::string(key.str());
    if (auto const* inner = node.as_table()) {
      for (auto a : assignments_of(*inner, origin)) {
        a.key = name + "." + a.key;
        all.push_back(std::move(a));
      }
    } else {
      all.push_back({name, text_of(node, name, origin), origin});
    }
  }
  return all;
}

std::vector<Assignment> read_config(std::string const& path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored))
    throw UsageError("--config " + path + " is a folder; give the name of a file");
  try {
    return assignments_of(toml::parse_file(path), path);
  } catch (toml::parse_error const& error) {
    auto const line = error.source().begin.line;
    throw UsageError(path + (line > 0 ? ", line " + std::to_string(line) : "") + ": " +
                     std::string(error.description()));
  }
}

std::string to_toml(Config& config) {
  std::string text, section;
  for (auto const* const part :
       {"", "stream", "training", "optimizer", "model", "evaluation", "strategy."}) {
    for (auto const& knob : knobs(config)) {
      auto const of_strategy = knob.section.rfind("strategy.", 0) == 0;
      if (of_strategy ? std::string(part) != "strategy." : knob.section != part) continue;
      // Follows from the strategy, and would outlive it when a flag replaces that.
      if (config.reference != "naive" && knob.path() == "stream.kind") continue;
      if (knob.section != section) text += "\n[" + (section = knob.section) + "]\n";
      text += knob.option.name + " = " + toml_value(knob.option) + "\n";
    }
  }
  return text;
}

}  // namespace bench
