#pragma once

// How tests look at what a user is told.

#include <functional>
#include <string>

#include <pawl/core/error.hpp>

/// The text of the Error that an action ends in; empty when it does not. Other exceptions pass.
inline std::string message_of(std::function<void()> const& action) {
  try {
    action();
  } catch (pawl::Error const& error) {
    return error.what();
  }
  return "";
}

inline bool contains(std::string const& text, std::string const& part) {
  return text.find(part) != std::string::npos;
}
