#pragma once

#include <charconv>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <string_view>
#include <typeinfo>
#include <utility>
#include <vector>

#include "error.hpp"

namespace pawl {
inline namespace v0 {

/// The values a number may take.
struct Range {
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();
  bool open_low = false;   ///< the low end itself is excluded
  bool open_high = false;  ///< the high end itself is excluded

  bool contains(double v) const {
    return (open_low ? v > low : v >= low) && (open_high ? v < high : v <= high);
  }
  std::string text() const {
    if (std::isinf(low) && std::isinf(high)) return "any number";
    if (std::isinf(high)) return c10::str(open_low ? "> " : ">= ", low);
    return c10::str(open_low ? "(" : "[", low, ", ", high, open_high ? ")" : "]");
  }
};
inline Range at_least(double low) { return {.low = low}; }
inline Range above(double low) { return {.low = low, .open_low = true}; }
inline Range between(double low, double high) { return {.low = low, .high = high}; }

/// One knob of a component, bound to the member that holds it.
struct Option {
  enum class Kind { boolean, integer, real, text, choice, integers, reals, component };

  std::string name;                             ///< flag and key, as in `--ewc.strength`
  Kind kind{};                                  ///< what `set` accepts
  std::string values;                           ///< range or list of choices, in words
  std::string help;                             ///< meaning and unit
  std::vector<std::string> choices;             ///< of a choice or a component
  std::function<std::string()> get;             ///< the present value as `set` would take it
  std::function<void(std::string const&)> set;  ///< throws Error on a bad value
};

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
    add(
        std::move(name), Option::Kind::boolean, "true or false", std::move(help),
        [&value] { return std::string(value ? "true" : "false"); },
        [&value](std::string const& text) {
          if (text == "true" || text == "1" || text == "yes" || text == "on") {
            value = true;
          } else if (text == "false" || text == "0" || text == "no" || text == "off") {
            value = false;
          } else {
            fail("is '", text, "' but must be true or false");
          }
        });
  }

  void operator()(std::string name, double& value, Range range, std::string help) {
    add(
        std::move(name), Option::Kind::real, range.text(), std::move(help),
        [&value] { return write(value); },
        [&value, range](std::string const& text) { value = checked<double>(text, range); });
  }

  void operator()(std::string name, std::int64_t& value, Range range, std::string help) {
    add(
        std::move(name), Option::Kind::integer, "integer " + range.text(), std::move(help),
        [&value] { return std::to_string(value); },
        [&value, range](std::string const& text) { value = checked<std::int64_t>(text, range); });
  }

  void operator()(std::string name, std::string& value, std::string help) {
    add(
        std::move(name), Option::Kind::text, "text", std::move(help), [&value] { return value; },
        [&value](std::string const& text) { value = text; });
  }

  void operator()(std::string name, std::vector<double>& value, Range range, std::string help) {
    list(std::move(name), Option::Kind::reals, value, range, std::move(help));
  }

  void operator()(std::string name, std::vector<std::int64_t>& value, Range range,
                  std::string help) {
    list(std::move(name), Option::Kind::integers, value, range, std::move(help));
  }

  /// A named choice: enumerators 0, 1, ... are called `names[0]`, `names[1]`, ...
  template <class Enum>
  requires std::is_enum_v<Enum>
  void operator()(std::string name, Enum& value, std::vector<std::string> names, std::string help) {
    enumeration(
        std::move(name), &value, std::move(names), std::move(help),
        [](void const* v) { return static_cast<std::size_t>(*static_cast<Enum const*>(v)); },
        [](void* v, std::size_t i) { *static_cast<Enum*>(v) = static_cast<Enum>(i); });
  }

  /// A part chosen by name (a memory, say): `get` names the present one, `set` makes another with
  /// its defaults, after which the whole must be described anew. Its own options follow by
  /// `describe`.
  void component(std::string name, std::vector<std::string> names, std::string help,
                 std::function<std::string()> get, std::function<void(std::string const&)> set) {
    choice(std::move(name), Option::Kind::component, std::move(names), std::move(help),
           std::move(get), std::move(set));
  }

  std::vector<Option> const& all() const& { return all_; }
  std::vector<Option> all() && { return std::move(all_); }

 private:
  void add(std::string name, Option::Kind kind, std::string values, std::string help,
           std::function<std::string()> get, std::function<void(std::string const&)> set) {
    Option option{.name = name,
                  .kind = kind,
                  .values = values,
                  .help = std::move(help),
                  .choices = {},
                  .get = std::move(get),
                  .set = {}};
    option.set = [name, values, set = std::move(set)](std::string const& text) {
      try {
        set(text);
      } catch (Error const&) {
        fail("option '", name, "' is '", text, "' but must be ", values);
      }
    };
    all_.push_back(std::move(option));
  }

  void choice(std::string name, Option::Kind kind, std::vector<std::string> names, std::string help,
              std::function<std::string()> get, std::function<void(std::string const&)> set) {
    std::string values;
    for (auto const& n : names) values += (values.empty() ? "" : " | ") + n;
    Option option{.name = name,
                  .kind = kind,
                  .values = values,
                  .help = std::move(help),
                  .choices = names,
                  .get = std::move(get),
                  .set = {}};
    option.set = [name, names, set = std::move(set)](std::string const& text) {
      require(std::find(names.begin(), names.end(), text) != names.end(), "option '", name,
              "' has no value '", text, "'", suggestion(text, names));
      set(text);
    };
    all_.push_back(std::move(option));
  }

  /// One function for all enumerations: closures of their own would cost a user's compiler more
  /// than the rest of this file.
  void enumeration(std::string name, void* value, std::vector<std::string> names, std::string help,
                   std::size_t (*read)(void const*), void (*assign)(void*, std::size_t)) {
    choice(
        std::move(name), Option::Kind::choice, names, std::move(help),
        [value, names, read] { return names.at(read(value)); },
        [value, names, assign](std::string const& text) {
          auto const found = std::find(names.begin(), names.end(), text);
          assign(value, static_cast<std::size_t>(found - names.begin()));
        });
  }

  template <class T>
  void list(std::string name, Option::Kind kind, std::vector<T>& value, Range range,
            std::string help) {
    auto const what = kind == Option::Kind::integers ? "integers " : "numbers ";
    add(
        std::move(name), kind, c10::str("comma-separated ", what, range.text()), std::move(help),
        [&value] {
          std::string text;
          for (auto const v : value) text.append(text.empty() ? "" : ",").append(write(v));
          return text;
        },
        [&value, range](std::string const& text) {
          std::vector<T> parsed;
          std::size_t begin = 0;
          while (begin < text.size()) {
            auto const end = std::min(text.find(',', begin), text.size());
            auto const item = text.substr(begin, end - begin);
            auto const blanks = std::min(item.find_first_not_of(' '), item.size());
            parsed.push_back(checked<T>(item.substr(blanks), range));
            begin = end + 1;
          }
          value = std::move(parsed);
        });
  }

  /// The shortest text that reads back as the same number.
  static std::string write(double value) {
    char buffer[64];
    auto const end = std::to_chars(buffer, buffer + sizeof buffer, value).ptr;
    return {buffer, end};
  }
  static std::string write(std::int64_t value) { return std::to_string(value); }

  template <class T>
  static T checked(std::string const& text, Range range) {
    T value{};
    auto const* end = text.data() + text.size();
    auto const result = std::from_chars(text.data(), end, value);
    require(result.ec == std::errc{} && result.ptr == end, "not a number");
    auto const real = static_cast<double>(value);
    require(std::isfinite(real) && range.contains(real), "out of range");
    return value;
  }

  std::vector<Option> all_;
};

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
  fail("there is no option '", name, "'", suggestion(name, names));
}

/// Throws `Error` when a member holds a value outside its range. For values set in C++.
template <class Component>
void check_options(Component& component, std::string_view owner) {
  for (auto const& option : options_of(component).all()) {
    if (option.kind == Option::Kind::component) continue;
    try {
      option.set(option.get());
    } catch (Error const& error) {
      fail(owner, ": ", std::string_view(error.what()).substr(6));
    }
  }
}

}  // namespace v0
}  // namespace pawl
