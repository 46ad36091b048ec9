#pragma once

// The commands of the program: each takes its arguments and returns the exit code.

#include <string>
#include <vector>

#include "config.hpp"

namespace bench {

using Arguments = std::vector<std::string>;

int run_command(Arguments const& arguments);
int profile_command(Arguments const& arguments);
int list_command(Arguments const& arguments);
int help_command(Arguments const& arguments);
int reproduce_command(Arguments const& arguments);
int quickstart_command(Arguments const& arguments);

/// The text of `help` for one component, or for a command; empty when there is no such name.
std::string help_of(std::string const& name);
std::string run_help(Config& config);
/// The options of all components of a configuration, for the help of a command.
std::string config_help(Config& config);

/// Arguments as values for options: --key value, --key=value, --switch.
struct Parsed {
  std::vector<Assignment> assignments;
  std::vector<std::string> names;  ///< arguments that are no flags
  bool has(std::string const& flag) const;
  /// Takes a flag out; `fallback` when it was not given, an error when it has no value.
  std::string take(std::string const& flag, std::string const& fallback = {});
  bool take_switch(std::string const& flag);
};
Parsed parse(Arguments const& arguments, std::vector<std::string> const& switches);

/// The configuration of a command that takes options only: its config file, then its flags.
Config take_config(Parsed& parsed, std::string const& command);

/// "pawl-bench 0.1.0 (revision)".
std::string version_text();

/// Sets the process up for a run: threads once and for all.
void set_threads(std::int64_t threads);
void set_precision(Precision precision);

constexpr int exit_interrupted = 130;

}  // namespace bench
