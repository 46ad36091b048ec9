#include <algorithm>
#include <string>
#include <vector>

#include "commands.hpp"

#include <ATen/Context.h>
#include <ATen/Parallel.h>

namespace bench {

Parsed parse(Arguments const& arguments, std::vector<std::string> const& switches) {
  Parsed parsed;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    auto const& argument = arguments[i];
    if (argument == "-h") {
      parsed.assignments.push_back({"help", "true", "", false});
    } else if (argument.rfind("--", 0) != 0) {
      parsed.names.push_back(argument);
    } else if (auto const equals = argument.find('='); equals != std::string::npos) {
      parsed.assignments.push_back({argument.substr(2, equals - 2), argument.substr(equals + 1)});
    } else {
      auto key = argument.substr(2);
      auto const same = [&](std::string const& other) {
        return std::equal(key.begin(), key.end(), other.begin(), other.end(), [](char k, char o) {
          return (k == '_' ? '-' : k) == (o == '_' ? '-' : o);
        });
      };
      auto const found = std::find_if(switches.begin(), switches.end(), same);
      auto const is_switch = found != switches.end();
      if (is_switch) key = *found;
      auto const last = i + 1 == arguments.size() || arguments[i + 1].rfind("--", 0) == 0;
      if (is_switch || last) {
        parsed.assignments.push_back({key, "true", "", false});
      } else {
        parsed.assignments.push_back({key, arguments[++i]});
      }
    }
  }
  return parsed;
}

bool Parsed::has(std::string const& flag) const {
  return std::any_of(assignments.begin(), assignments.end(),
                     [&](auto const& a) { return a.key == flag; });
}

std::string Parsed::take(std::string const& flag, std::string const& fallback) {
  auto value = fallback;
  for (auto const& a : assignments) {
    if (a.key != flag) continue;
    if (!a.given) throw UsageError("--" + flag + " needs a value");
    value = a.value;
  }
  std::erase_if(assignments, [&](auto const& a) { return a.key == flag; });
  return value;
}

bool Parsed::take_switch(std::string const& flag) {
  auto const found = has(flag);
  for (auto const& a : assignments) {
    if (a.key == flag && a.given) throw UsageError("--" + flag + " takes no value");
  }
  std::erase_if(assignments, [&](auto const& a) { return a.key == flag; });
  return found;
}

Config take_config(Parsed& parsed, std::string const& command) {
  if (!parsed.names.empty()) {
    throw UsageError(command + " takes options only, but there is '" + parsed.names.front() +
                     "'; a list is written with commas and no spaces");
  }
  std::vector<Assignment> assignments;
  if (auto const file = parsed.take("config"); !file.empty()) assignments = read_config(file);
  assignments.insert(assignments.end(), parsed.assignments.begin(), parsed.assignments.end());
  Config config;
  configure(config, assignments);
  return config;
}

void set_threads(std::int64_t threads) {
  at::set_num_threads(static_cast<int>(threads));
  at::set_num_interop_threads(1);
}

void set_precision(Precision precision) {
  constexpr char const* names[] = {"highest", "high", "medium"};
  auto& context = at::globalContext();
  context.setFloat32MatmulPrecision(names[static_cast<int>(precision)]);
  context.setAllowTF32CuDNN(precision != Precision::highest);  // LibTorch would allow it
}

}  // namespace bench
