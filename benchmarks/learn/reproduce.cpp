#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <string>
#include <vector>

#include <pawl/metrics/statistics.hpp>

#include "commands.hpp"
#include "experiment.hpp"
#include "protocol.hpp"
#include "record.hpp"
#include "report.hpp"

#include <unistd.h>

#include <fmt/format.h>

namespace bench {

namespace {

constexpr char const* usage =
    "usage: pawl-bench reproduce [ID...] [OPTIONS]\n\n"
    "Runs published results with their protocols and says whether ours agree: seeds 1-3; outside "
    "the band of three\n"
    "runs, seeds 4-5 as well; outside that of five, seeds 6-10 alone. One-sided bands and ranges "
    "state their number\n"
    "of seeds. The exit code is 0 when all agree.\n\n"
    "  --list           the targets, without running them\n"
    "  --cost CLASS     all targets of a cost of one run: seconds, minutes, hours or all\n"
    "  --protocol NAME  all targets of one protocol\n"
    "  --method NAME    of these, the results of one method\n"
    "  --protocols DIR  folder of the protocol files (default: the program's own)\n"
    "  --data DIR       folder of the data sets\n"
    "  --threads N      threads that share products, updates and gathers (default 1)\n"
    "  --device NAME    cpu, cuda or cuda:N\n"
    "  --out FILE       all records, one JSON object per line; --force replaces the file\n"
    "  --print-config   the configuration of one target as a file for  run --config,  with its "
    "first seeds\n";

struct Request {
  std::string data, device, threads;
};

Config config_of(Target const& target, Request const& request) {
  auto assignments = target.assignments;
  assignments.push_back({"data", request.data});
  assignments.push_back({"device", request.device});
  assignments.push_back({"threads", request.threads});
  assignments.push_back({"first_seed", "1"});
  assignments.push_back({"seeds", std::to_string(target.seeds)});
  Config config;
  configure(config, assignments);
  return config;
}

struct Outcome {
  Target target;
  pawl::Summary accuracy;  ///< of the runs that were judged, in percent
  pawl::Summary forgetting;
  std::vector<std::int64_t> seeds;
  bool pass = false;
};

std::vector<double> values_of(std::vector<SeedResult> const& results, std::string const& metric,
                              double scale) {
  std::vector<double> values;
  for (auto const& r : results) {
    values.push_back(scale * r.metric(metric).value_or(std::numeric_limits<double>::quiet_NaN()));
  }
  return values;
}

Outcome judged(Target const& target, std::vector<SeedResult> const& results) {
  Outcome outcome{target,
                  pawl::summarise(values_of(results, target.metric, 100)),
                  pawl::summarise(values_of(results, "forgetting", 1)),
                  {},
                  false};
  for (auto const& r : results) outcome.seeds.push_back(r.seed);
  outcome.pass = target.contains(outcome.accuracy.mean, outcome.accuracy.n);
  if (target.forgetting) {
    auto const f = outcome.forgetting.mean;
    outcome.pass = outcome.pass && f >= target.forgetting_low && f <= target.forgetting_high;
  }
  return outcome;
}

/// The decision rule: three seeds, two more, then five fresh ones alone. Counts `finished` seeds.
Outcome reproduce(Target const& target, Request const& request, OutputFile& out,
                  std::size_t& finished) {
  auto config = config_of(target, request);
  auto const header = header_record(config, check(config));
  out.line(header);
  auto const data = load_data(config);
  std::vector<SeedResult> results;
  auto const run_to = [&](std::int64_t first, std::int64_t last) {
    for (auto seed = first; seed <= last; ++seed) {
      if (interrupted()) throw Interrupted{};
      results.push_back(
          run_seed(config, data, seed, fmt::format("{} {} seed {}", target.id, target.method, seed),
                   [&](ExperienceResult const& r) { out.line(experience_record(r)); }));
      out.line(result_record(results.back()));
      ++finished;
    }
    return judged(target, results);
  };
  if (target.band != Target::Band::two_sided) return run_to(1, target.seeds);
  if (auto const three = run_to(1, 3); three.pass) return three;
  if (auto const five = run_to(4, 5); five.pass) return five;
  results.clear();
  return run_to(6, 10);
}

std::string ours_text(Outcome const& o) {
  return fmt::format("{:.2f} +- {:.2f}, std {:.2f}, n={}", o.accuracy.mean, o.accuracy.half_width,
                     o.accuracy.deviation, o.accuracy.n);
}

std::vector<std::string> row_of(Outcome const& o) {
  auto const& t = o.target;
  return {t.id,
          t.method,
          t.scenario,
          t.published_text(),
          ours_text(o),
          t.band_text(o.accuracy.n),
          o.pass ? "pass" : "FAIL"};
}

/// What is worth a look even inside the band.
std::string notes_of(Outcome const& o) {
  std::string text;
  auto const& t = o.target;
  if (o.seeds.front() > 1)
    text += fmt::format("{} {}: judged on the fresh seeds 6-10\n", t.id, t.method);
  if (t.forgetting) {
    text += fmt::format("{} {}: forgetting {:.3f}, published {:.3f}, band {:.2f} .. {:.2f}\n", t.id,
                        t.method, o.forgetting.mean, *t.forgetting, t.forgetting_low,
                        t.forgetting_high);
  }
  auto const s = t.deviation();
  if (s && o.accuracy.n >= 5 && (o.accuracy.deviation > 3 * *s || o.accuracy.deviation < *s / 3)) {
    text += fmt::format("{} {}: our std {:.2f} is far from the published {:.2f}\n", t.id, t.method,
                        o.accuracy.deviation, *s);
  }
  return text;
}

Json outcome_record(Outcome const& o) {
  auto const& t = o.target;
  auto const band = t.band == Target::Band::two_sided;
  auto const half = band ? t.half_width(o.accuracy.n) : 0;
  return {{"record", "reproduction"},
          {"id", t.id},
          {"protocol", t.protocol},
          {"method", t.method},
          {"scenario", t.scenario},
          {"metric", t.metric},
          {"published",
           {{"mean", t.published},
            {"spread", t.spread ? Json(*t.spread) : Json(nullptr)},
            {"spread_kind", t.spread_kind},
            {"n", t.runs}}},
          {"ours",
           {{"mean", o.accuracy.mean},
            {"std", o.accuracy.deviation},
            {"n", o.accuracy.n},
            {"half_width", o.accuracy.half_width},
            {"seeds", o.seeds}}},
          {"band", {band ? t.published - half : t.low, band ? t.published + half : t.high}},
          {"pass", o.pass}};
}

std::string list_text(std::vector<Target> const& targets) {
  std::vector<std::vector<std::string>> rows{
      {"id", "protocol", "method", "scenario", "published %", "band %", "seeds", "cost"}};
  for (auto const& t : targets) {
    rows.push_back({t.id, t.protocol, t.method, t.scenario, t.published_text(),
                    t.band_text(t.seeds), std::to_string(t.seeds), t.cost});
  }
  return aligned(rows, 6);
}

std::vector<Target> chosen(std::vector<Target> const& all, std::vector<std::string> const& ids,
                           std::string const& cost, std::string const& protocol,
                           std::string const& method) {
  std::vector<std::string> names, costs{"seconds", "minutes", "hours", "all"}, protocols, methods;
  auto const note = [](std::vector<std::string>& list, std::string const& name) {
    if (std::find(list.begin(), list.end(), name) == list.end()) list.push_back(name);
  };
  for (auto const& t : all) note(names, t.id), note(protocols, t.protocol), note(methods, t.method);
  auto const known = [](std::string const& name, std::vector<std::string> const& list,
                        char const* what) {
    if (std::find(list.begin(), list.end(), name) != list.end()) return;
    throw UsageError(
        fmt::format("there is no {} '{}'{}", what, name, pawl::suggestion(name, list)));
  };
  for (auto const& id : ids) known(id, names, "target");
  if (!cost.empty()) known(cost, costs, "cost");
  if (!protocol.empty()) known(protocol, protocols, "protocol");
  if (!method.empty()) known(method, methods, "method");
  std::vector<Target> targets;
  for (auto const& t : all) {
    auto const named = std::find(ids.begin(), ids.end(), t.id) != ids.end();
    auto const everything = ids.empty() && cost.empty() && protocol.empty() && !method.empty();
    auto const grouped = (everything || !cost.empty() || !protocol.empty()) &&
                         (cost.empty() || cost == "all" || t.cost == cost) &&
                         (protocol.empty() || t.protocol == protocol);
    if ((named || grouped) && (method.empty() || t.method == method)) targets.push_back(t);
  }
  return targets;
}

int run_all(std::vector<Target> const& targets, Request const& request, OutputFile& out) {
  std::vector<std::vector<std::string>> rows{
      {"id", "method", "scenario", "published %", "ours % (95 % interval)", "band %", "verdict"}};
  std::string notes;
  bool all_pass = true, stopped = false;
  std::size_t finished = 0;  // seeds
  auto const terminal = ::isatty(STDERR_FILENO) != 0;
  for (auto const& target : targets) {
    try {
      auto const outcome = reproduce(target, request, out, finished);
      out.line(outcome_record(outcome));
      rows.push_back(row_of(outcome));
      notes += notes_of(outcome);
      all_pass = all_pass && outcome.pass;
      std::fprintf(stderr, "%s%-4s %s: %s, published %.2f: %s\n", terminal ? "\r\033[K" : "",
                   target.id.c_str(), target.method.c_str(), ours_text(outcome).c_str(),
                   target.published, outcome.pass ? "pass" : "FAIL");
    } catch (Interrupted const&) {
      std::fprintf(stderr, "%spawl-bench: interrupted with %zu seeds finished\n",
                   terminal ? "\r\033[K" : "", finished);
      stopped = true;
      break;
    }
  }
  if (finished > 0) out.finish();
  if (rows.size() > 1) {
    std::printf("%s%s%s", aligned(rows, 7).c_str(), notes.empty() ? "" : "\n", notes.c_str());
  }
  if (stopped) return exit_interrupted;
  return all_pass ? 0 : 1;
}

}  // namespace

int reproduce_command(Arguments const& arguments) {
  auto parsed = parse(arguments, {"help", "list", "force", "print-config"});
  if (parsed.take_switch("help")) {
    std::fputs(usage, stdout);
    return 0;
  }
  auto const list = parsed.take_switch("list"), force = parsed.take_switch("force");
  auto const print_config = parsed.take_switch("print-config");
  auto const cost = parsed.take("cost"), protocol = parsed.take("protocol");
  auto const method = parsed.take("method"), folder = parsed.take("protocols");
  auto const path = parsed.take("out");
  Request request{parsed.take("data"), parsed.take("device", "cpu"), parsed.take("threads", "1")};
  if (!parsed.assignments.empty()) {
    auto const& wrong = parsed.assignments.front().key;
    throw UsageError(
        "reproduce has no option --" + wrong +
        pawl::suggestion(wrong, {"list", "cost", "protocol", "method", "protocols", "data",
                                 "threads", "device", "out", "force", "print-config", "help"}));
  }
  auto const all = read_protocols(folder);
  auto const targets = chosen(all, parsed.names, cost, protocol, method);
  if (targets.empty() && !method.empty()) {
    throw UsageError("none of these targets is of the method '" + method +
                     "'; see reproduce --list");
  }
  if (list) {
    std::fputs(list_text(targets.empty() ? all : targets).c_str(), stdout);
    return 0;
  }
  if (targets.empty()) {
    throw UsageError(
        "name a target (see reproduce --list), or give --cost seconds, --cost minutes, "
        "--protocol NAME or --method NAME");
  }
  auto first = config_of(targets.front(), request);
  if (print_config) {
    if (targets.size() > 1) {
      std::fprintf(
          stderr,
          "pawl-bench: %zu results match; this is the first, %s; choose one with --method\n",
          targets.size(), targets.front().method.c_str());
    }
    std::fputs(to_toml(first).c_str(), stdout);
    return 0;
  }
  catch_interrupts();  // before there is a file that would be left behind
  OutputFile out(path, force);
  set_threads(first.run.threads);
  set_precision(first.run.precision);
  return run_all(targets, request, out);
}

}  // namespace bench
