#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "commands.hpp"
#include "fleet.hpp"
#include "record.hpp"
#include "report.hpp"

#include <unistd.h>

namespace bench {

namespace {

void print(Format format, Config& config, Json const& header,
           std::vector<SeedResult> const& results, Joules const& joules, bool stopped) {
  std::string text;
  if (format == Format::table) text = result_table(config, results, joules);
  if (format == Format::csv) text = result_csv(results);
  if (format == Format::json) {
    auto list = Json::array();
    for (auto const& r : results) list.push_back(result_record(r));
    auto const summary = summary_record(results, joules, stopped);
    text = Json{{"header", header}, {"results", list}, {"summary", summary}}.dump(2);
    text += "\n";
  }
  std::fputs(text.c_str(), stdout);
  pawl::require(std::fflush(stdout) == 0, "the results could not be written to standard output");
}

/// Throws unless learners can be saved where `--save` says.
void check_checkpoints(Config const& config, bool force) {
  auto const& folder = config.run.save;
  if (folder.empty()) return;
  pawl::require(std::filesystem::is_directory(folder),
                {"--save ", folder, " is not a folder; give one that exists"});
  auto const writable = ::access(folder.c_str(), W_OK) == 0;
  pawl::require(writable, {"--save ", folder, " cannot be written: ", std::strerror(errno)});
  for (std::int64_t i = 0; i < config.run.seeds; ++i) {
    auto const file = checkpoint_of(config, config.run.first_seed + i);
    pawl::require(force || !std::filesystem::exists(file),
                  {"--save: ", file.string(),
                   " exists already; give another folder, or --force to replace it"});
  }
}

/// Throws what ended the run early, when what was finished by then is written and shown.
void run(Config& config, bool force, std::size_t& finished) {
  auto const strategies = check(config);
  check_checkpoints(config, force);
  catch_interrupts();  // before there is a file that would be left behind
  OutputFile out(config.run.out, force);
  set_threads(config.run.threads);
  set_precision(config.run.precision);
  auto const header = header_record(config, strategies);
  out.line(header);
  std::vector<SeedResult> results;
  std::exception_ptr failure;  // what is finished by then is kept
  bool anything = false;
  std::optional<EnergyMeter> energy;
  auto const joules = [&] { return energy ? energy->read() : Joules{}; };
  try {
    auto const data = load_data(config);
    energy.emplace(gpu_of(config));
    auto const on_experience = [&](ExperienceResult const& r) {
      out.line(experience_record(r));
      anything = true;
      joules();  // so that no counter comes round unseen
    };
    auto const on_result = [&](SeedResult const& r) {
      out.line(result_record(r));
      results.push_back(r);
      ++finished;
    };
    run_seeds(config, data, {on_experience, on_result});
  } catch (Interrupted const&) {
    failure = std::current_exception();
  } catch (...) {
    if (results.empty()) throw;
    failure = std::current_exception();
  }
  if (failure && !anything) std::rethrow_exception(failure);
  auto const used = joules();
  out.line(summary_record(results, used, failure != nullptr));
  out.finish();
  if (!results.empty() || !failure) {
    print(config.run.format, config, header, results, used, failure != nullptr);
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace

int run_command(Arguments const& arguments) {
  auto parsed = parse(arguments, {"help", "force", "print-config"});
  auto const help = parsed.take_switch("help");
  auto const force = parsed.take_switch("force");
  auto const print_config = parsed.take_switch("print-config");
  auto config = take_config(parsed, "run");
  if (help || print_config) {
    std::fputs((help ? run_help(config) : to_toml(config)).c_str(), stdout);
    return 0;
  }
  check_flags_are_read(config, parsed.assignments);
  std::size_t finished = 0;
  try {
    run(config, force, finished);
    return 0;
  } catch (Interrupted const&) {
    if (::isatty(STDERR_FILENO)) std::fputs("\r\033[K", stderr);
    std::fprintf(stderr, "pawl-bench: interrupted with %zu of %lld seeds finished\n", finished,
                 static_cast<long long>(config.run.seeds));
    return exit_interrupted;
  }
}

}  // namespace bench
