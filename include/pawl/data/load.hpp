#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "../core/data.hpp"
#include "../core/error.hpp"
#include "cifar.hpp"
#include "digits.hpp"
#include "find.hpp"
#include "idx.hpp"

namespace pawl {
inline namespace v0 {

/// The data sets that `load` knows by name.
inline std::vector<std::string> data_set_names() {
  return {"mnist", "fashion_mnist", "cifar10", "cifar100", "digits"};
}

/// Loads a data set by name from the folder given, else from PAWL_DATA, else from `data`.
inline TrainTest load(std::string const& name, std::string const& root = {}) {
  auto const names = data_set_names();
  if (std::find(names.begin(), names.end(), name) == names.end()) {
    fail({"there is no data set '", name, "'", suggestion(name, names)});
  }
  auto const folder = data_root(root);
  if (name == "mnist") return load_mnist(folder);
  if (name == "fashion_mnist") return load_fashion_mnist(folder);
  if (name == "cifar10") return load_cifar10(folder);
  if (name == "cifar100") return load_cifar100(folder);
  return load_digits(folder);
}

}  // namespace v0
}  // namespace pawl
