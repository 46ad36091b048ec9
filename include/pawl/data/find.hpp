#pragma once

#include <cstdlib>
#include <string>
#include <vector>

#include "../core/error.hpp"
#include "../core/files.hpp"

namespace pawl {
inline namespace v0 {

/// The folder that holds data sets: the one given, else the environment variable PAWL_DATA, else
/// the folder `data` where the program runs. Throws `Error` when there is no such folder.
inline std::string data_root(std::string given = {}) {
  auto const* const set = std::getenv("PAWL_DATA");
  std::string const why = !given.empty() ? "as given" : set ? "from PAWL_DATA" : "the default";
  if (given.empty()) given = set ? set : "data";
  require(is_folder(given), {"there is no data folder '", given, "' (", why,
                             "); give the folder, or set the environment variable PAWL_DATA"});
  return given;
}

/// The first of `names` (paths relative to `root`) that is a file. Throws `Error` that lists what
/// was looked for when there is none.
inline std::string find_file(std::string const& root, std::vector<std::string> const& names,
                             std::string const& data_set) {
  std::string tried;
  for (auto const& name : names) {
    if (auto path = in_folder(root, name); is_file(path)) return path;
    tried += (tried.empty() ? "" : ", ") + name;
  }
  fail({data_set, ": not found under '", root, "' (looked for ", tried,
        "); run  scripts/fetch_data ", data_set,
        " FOLDER  or set PAWL_DATA to the folder that has it"});
}

}  // namespace v0
}  // namespace pawl
