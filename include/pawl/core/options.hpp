#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <string>
#include <string_view>
#include <type_traits>
#include <typeinfo>
#include <utility>
#include <vector>

#include "error.hpp"
#include "number_text.hpp"

namespace pawl {
inline namespace v0 {

/// One knob of a component, bound to the member that holds it.
struct Option {
  enum class Kind { boolean, integer, real, text, choice, integers, reals, component };

  std::string name;                  ///< flag and key, as in `--ewc.strength`
  Kind kind{};                       ///< what `set` accepts
  std::string values;                ///< range or list of choices, in words
  std::string help;                  ///< meaning and unit
  std::vector<std::string> choices;  ///< of a choice or a component

  std::string get() const;                  ///< the present value as `set` would take it
  void set(std::string const& text) const;  ///< throws Error on a bad value
  void check() const { put(get()); }        ///< throws Error where the present value is a bad one

  // The binding. One description for all types: a closure for each option would cost a user's
  // compiler more than the rest of this file.
  void* member = nullptr;                             ///< of the type that `kind` tells
  Range range{};                                      ///< of numbers
  std::int64_t* rival = nullptr;                      ///< becomes 0 when this one is set
  char const* lacks = nullptr;                        ///< why its value is not read at present
  std::size_t (*number)(void const*) = nullptr;       ///< of the present enumerator
  void (*assign)(void*, std::size_t) = nullptr;       ///< an enumerator by its number
  std::function<std::string()> present{};             ///< of a component: its name
  bool several = false;                               ///< component: a list, read by `replace`
  std::function<void(std::string const&)> replace{};  ///< of a component: makes another

 private:
  template <class T>
  T& as() const {
    return *static_cast<T*>(member);
  }
  std::size_t choice(std::string const& text) const;
  void put(std::string const& text) const;
  void assign_value(std::string const& text) const;
};

using OptionList = c10::SmallVector<Option, 0>;

/// Collects the knobs of a component. Every component describes its options once, in
/// `void describe(Options&)`; flags, config keys, help, docs and defaults all come from there.
///
/// @code
///   void describe(pawl::Options& o) {
///     o("strength", strength, pawl::at_least(0), "pull towards the anchor; 0 is naive training");
///     o("estimator", estimator, {"exact", "empirical"}, "labels of the Fisher");  // an enum class
///   }
/// @endcode
class Options {
 public:
  void operator()(std::string name, bool& value, std::string help) {
    add(std::move(name), Option::Kind::boolean, "true or false", std::move(help), &value);
  }
  void operator()(std::string name, double& value, Range range, std::string help) {
    add(std::move(name), Option::Kind::real, range.text(), std::move(help), &value).range = range;
  }
  void operator()(std::string name, std::int64_t& value, Range range, std::string help) {
    add(std::move(name), Option::Kind::integer, "integer " + range.text(), std::move(help), &value)
        .range = range;
  }
  void operator()(std::string name, std::string& value, std::string help) {
    add(std::move(name), Option::Kind::text, "text", std::move(help), &value);
  }
  void operator()(std::string name, std::vector<double>& value, Range range, std::string help) {
    add(std::move(name), Option::Kind::reals, "comma-separated numbers " + range.text(),
        std::move(help), &value)
        .range = range;
  }
  void operator()(std::string name, std::vector<std::int64_t>& value, Range range,
                  std::string help) {
    add(std::move(name), Option::Kind::integers, "comma-separated integers " + range.text(),
        std::move(help), &value)
        .range = range;
  }

  /// A named choice: enumerators 0, 1, ... are called `names[0]`, `names[1]`, ...
  template <class Enum>
  requires std::is_enum_v<Enum>
  void operator()(std::string name, Enum& value, c10::ArrayRef<char const*> names,
                  std::string help) {
    std::vector<std::string> all;
    for (auto const* each : names) all.push_back(each);
    auto& option = choice(std::move(name), Option::Kind::choice, std::move(all), std::move(help));
    option.member = &value;
    option.number = [](void const* v) {
      return static_cast<std::size_t>(*static_cast<Enum const*>(v));
    };
    option.assign = [](void* v, std::size_t i) { *static_cast<Enum*>(v) = static_cast<Enum>(i); };
  }

  /// A part chosen by name (a memory, say): `get` names the present one, `set` makes another with
  /// its defaults, after which the whole must be described anew. Its own options follow by
  /// `describe`.
  void component(std::string name, std::vector<std::string> names, std::string help,
                 std::function<std::string()> get, std::function<void(std::string const&)> set) {
    auto& option =
        choice(std::move(name), Option::Kind::component, std::move(names), std::move(help));
    option.present = std::move(get);
    option.replace = std::move(set);
  }

  /// The option described last takes the place of another: setting it sets `other` to 0.
  void instead_of(std::int64_t& other) { all_.back().rival = &other; }

  /// The option described last is read only if `condition` holds, which is `words`: "mode =
  /// online".
  void only_if(bool condition, char const* words) {
    all_.back().lacks = condition ? nullptr : words;
  }

  OptionList const& all() const& { return all_; }
  OptionList all() && { return std::move(all_); }

 private:
  Option& add(std::string name, Option::Kind kind, std::string values, std::string help,
              void* member) {
    auto& option = all_.emplace_back();
    option.name = std::move(name);
    option.kind = kind;
    option.values = std::move(values);
    option.help = std::move(help);
    option.member = member;
    return option;
  }

  Option& choice(std::string name, Option::Kind kind, std::vector<std::string> names,
                 std::string help) {
    std::string values;
    for (auto const& n : names) values += (values.empty() ? "" : " | ") + n;
    auto& option = add(std::move(name), kind, std::move(values), std::move(help), nullptr);
    option.choices = std::move(names);
    return option;
  }

  OptionList all_;
};

inline std::string Option::get() const {
  switch (kind) {
    case Kind::boolean:
      return as<bool>() ? "true" : "false";
    case Kind::integer:
      return number_text(as<std::int64_t>());
    case Kind::real:
      return number_text(as<double>());
    case Kind::text:
      return as<std::string>();
    case Kind::choice:
      return choices.at(number(member));
    case Kind::integers:
      return list_text(as<std::vector<std::int64_t>>());
    case Kind::reals:
      return list_text(as<std::vector<double>>());
    case Kind::component:
      return present();
  }
  return "";
}

inline std::size_t Option::choice(std::string const& text) const {
  auto const found = std::find(choices.begin(), choices.end(), text);
  require(found != choices.end(),
          {"option '", name, "' has no value '", text, "'", suggestion(text, choices)});
  return static_cast<std::size_t>(found - choices.begin());
}

inline void Option::set(std::string const& text) const {
  put(text);
  if (rival != nullptr) *rival = 0;
}

inline void Option::put(std::string const& text) const {
  if (kind == Kind::choice) return assign(member, choice(text));
  if (kind == Kind::component) {
    if (!several) (void)choice(text);
    return replace(text);
  }
  try {
    assign_value(text);
  } catch (Error const&) {
    double number = 0;
    auto const huge = read_number(text, number) && std::abs(number) > largest_number;
    fail({"option '", name, "' is '", text, "' but must be ", values,
          huge ? ", and at most 3.4e38" : ""});
  }
}

inline void Option::assign_value(std::string const& text) const {
  auto const among = [&text](std::initializer_list<char const*> words) {
    return std::find(words.begin(), words.end(), text) != words.end();
  };
  switch (kind) {
    case Kind::boolean:
      require(among({"true", "1", "yes", "on", "false", "0", "no", "off"}), "no truth value");
      as<bool>() = among({"true", "1", "yes", "on"});
      return;
    case Kind::integer:
      as<std::int64_t>() = parsed_number<std::int64_t>(text, range);
      return;
    case Kind::real:
      as<double>() = parsed_number<double>(text, range);
      return;
    case Kind::text:
      as<std::string>() = text;
      return;
    case Kind::integers:
      as<std::vector<std::int64_t>>() = parsed_list<std::int64_t>(text, range);
      return;
    case Kind::reals:
      as<std::vector<double>>() = parsed_list<double>(text, range);
      return;
    default:
      return;
  }
}

/// The name of a component for messages and records: what `type_name()` says, or `name`, else its
/// type.
template <class Component>
std::string component_name(Component const& component) {
  if constexpr (requires { component.type_name(); }) {
    return component.type_name();
  } else if constexpr (requires { Component::name; }) {
    return Component::name;
  } else {
    return c10::demangle(typeid(Component).name());
  }
}

/// The options of a component, bound to its members.
template <class Component>
Options options_of(Component& component) {
  Options options;
  if constexpr (requires { component.describe(options); }) component.describe(options);
  return options;
}

/// Sets one option by name; throws `Error` naming the nearest option when there is none of that
/// name.
template <class Component>
void set_option(Component& component, std::string_view name, std::string const& value) {
  std::vector<std::string> names;
  for (auto const& option : options_of(component).all()) {
    if (option.name == name) return option.set(value);
    names.push_back(option.name);
  }
  fail({"there is no option '", name, "'", suggestion(name, names)});
}

/// Throws `Error` when a member holds a value outside its range. For values set in C++.
template <class Component>
void check_options(Component& component, std::string_view owner) {
  for (auto const& option : options_of(component).all()) {
    if (option.kind == Option::Kind::component) continue;
    try {
      option.check();
    } catch (Error const& error) {
      fail({owner, ": ", std::string_view(error.what()).substr(6)});
    }
  }
}

}  // namespace v0
}  // namespace pawl
