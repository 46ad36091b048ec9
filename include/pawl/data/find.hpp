#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>
#include <system_error>
#include <vector>

#include "../core/error.hpp"

namespace pawl {
inline namespace v0 {

/// The folder that holds data sets: the one given, else the environment variable PAWL_DATA, else
/// the folder `data` where the program runs. Throws `Error` when there is no such folder.
inline std::filesystem::path data_root(std::filesystem::path given = {}) {
  auto const* const set = std::getenv("PAWL_DATA");
  std::string const why = !given.empty() ? "as given" : set ? "from PAWL_DATA" : "the default";
  if (given.empty()) given = set ? set : "data";
  std::error_code ignored;
  require(std::filesystem::is_directory(given, ignored), "there is no data folder '",
          given.string(), "' (", why,
          "); give the folder, or set the environment variable PAWL_DATA");
  return given;
}

/// The first of `names` (paths relative to `root`) that is a file. Throws `Error` that lists what
/// was looked for when there is none.
inline std::filesystem::path find_file(std::filesystem::path const& root,
                                       std::vector<std::string> const& names,
                                       std::string const& data_set) {
  std::error_code ignored;
  std::string tried;
  for (auto const& name : names) {
    if (std::filesystem::is_regular_file(root / name, ignored)) return root / name;
    tried += (tried.empty() ? "" : ", ") + name;
  }
  fail(data_set, ": not found under '", root.string(), "' (looked for ", tried,
       "); run  scripts/fetch_data ", data_set,
       " FOLDER  or set PAWL_DATA to the folder that has it");
}

}  // namespace v0
}  // namespace pawl
