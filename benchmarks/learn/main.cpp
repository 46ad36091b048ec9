// pawl-bench: compares continual-learning strategies from the shell.

#include <algorithm>
#include <cstdio>
#include <exception>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "commands.hpp"

#include <unistd.h>

#include <pawl/engine/pages.hpp>

namespace {

constexpr char const* usage =
    "usage: pawl-bench COMMAND [OPTIONS]\n\n"
    "  run         train strategies on a stream over seeds, measure, report\n"
    "  profile     where the time of a training step goes\n"
    "  quickstart  seven strategies on the digits, five seeds each, one table\n"
    "  reproduce   run published results and say whether they agree\n"
    "  list        what there is: streams, strategies, models, memories, optimizers, metrics\n"
    "  help NAME   a command, or a component with its options, defaults and paper\n\n"
    "Every command takes --help.\n";

int dispatch(bench::Arguments arguments) {
  if (arguments.empty())
    throw bench::UsageError(
        "a command is missing: run, profile, quickstart, reproduce, list or help");
  auto const command = arguments.front();
  arguments.erase(arguments.begin());
  if (command == "--help" || command == "-h" || (command == "help" && arguments.empty())) {
    std::fputs(usage, stdout);
    return 0;
  }
  if (command == "--version") {
    std::puts(bench::version_text().c_str());
    return 0;
  }
  if (command == "run") return bench::run_command(arguments);
  if (command == "profile") return bench::profile_command(arguments);
  if (command == "list") return bench::list_command(arguments);
  if (command == "help") return bench::help_command(arguments);
  if (command == "reproduce") return bench::reproduce_command(arguments);
  if (command == "quickstart") return bench::quickstart_command(arguments);
  if (auto const text = bench::help_of(command); !text.empty()) {
    std::fputs(text.c_str(), stdout);
    return 0;
  }
  throw bench::UsageError(
      "there is no command '" + command + "'" +
      pawl::suggestion(command, {"run", "profile", "quickstart", "reproduce", "list", "help"}));
}

/// One sentence on standard error, over a line of progress that may still stand there.
void complain(std::string text) {
  if (text.rfind("pawl: ", 0) == 0) text.erase(0, 6);
  std::fprintf(stderr, "%spawl-bench: %s\n", ::isatty(STDERR_FILENO) ? "\r\033[K" : "",
               text.c_str());
}

/// " for 80000 bytes": the size in LibTorch's message on memory that is not there.
std::string asked_for(std::string const& text) {
  constexpr std::string_view before = "ried to allocate ";
  auto const at = text.find(before);
  if (at == std::string::npos) return {};
  std::istringstream rest(text.substr(at + before.size()));
  std::string number, unit;
  rest >> number >> unit;
  return " for " + number + " " + unit.substr(0, unit.find('.'));
}

/// The same for messages of our own, where only what the user wrote can hold a line break.
void complain_in_one_line(std::string text) {
  std::replace(text.begin(), text.end(), '\n', ' ');
  complain(std::move(text));
}

}  // namespace

int main(int argc, char** argv) {
  pawl::keep_freed_memory();  // that of loading, too
  try {
    return dispatch({argv + 1, argv + argc});
  } catch (bench::UsageError const& error) {
    complain_in_one_line(error.what());
    return 2;
  } catch (pawl::Error const& error) {
    complain_in_one_line(error.what());
    return 1;
  } catch (std::exception const& error) {
    std::string const text = error.what();  // LibTorch's go on with the frames of the call
    auto const says = [&text](char const* words) { return text.find(words) != std::string::npos; };
    auto const full = says("allocate memory") || says("out of memory") || says("bad_alloc") ||
                      says("calculation overflowed");
    complain(full ? "there is not enough memory" + asked_for(text) +
                        "; take a smaller model or memory, smaller batches or less padding"
                  : text.substr(0, text.find('\n')));
    return 1;
  } catch (...) {
    complain("an unknown error ended the run");
    return 1;
  }
}
