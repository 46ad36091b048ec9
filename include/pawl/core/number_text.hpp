#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <locale>
#include <sstream>
#include <string>
#include <vector>

#include "error.hpp"

namespace pawl {
inline namespace v0 {

// Numbers as users write them.

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
    if (std::isinf(high)) return text_of({open_low ? "> " : ">= ", low});
    return text_of({open_low ? "(" : "[", low, ", ", high, open_high ? ")" : "]"});
  }
};
inline Range at_least(double low) { return {.low = low}; }
inline Range above(double low) { return {.low = low, .open_low = true}; }
inline Range between(double low, double high) { return {.low = low, .high = high}; }

/// A text as a number, whatever the program's locale; false when it is something else.
template <class T>
bool read_number(std::string const& text, T& value) {
  std::istringstream in(text);
  in.imbue(std::locale::classic());
  return !text.starts_with('+') && in >> std::noskipws >> value && in.get() == EOF;
}

/// A text with few digits that reads back as the same number.
inline std::string number_text(double value) {
  for (auto digits = std::numeric_limits<double>::digits10;; ++digits) {
    std::ostringstream out;
    out.imbue(std::locale::classic());
    out.precision(digits);
    out << value;
    double same = 0;
    auto const enough = digits == std::numeric_limits<double>::max_digits10;
    if (enough || (read_number(out.str(), same) && same == value)) return out.str();
  }
}
inline std::string number_text(std::int64_t value) { return std::to_string(value); }

/// The largest number that an option can be: models may be of float32.
constexpr double largest_number = std::numeric_limits<float>::max();

/// A number within a range; throws `Error` on anything else.
template <class T>
T parsed_number(std::string const& text, Range range) {
  T value{};
  require(read_number(text, value), "not a number");
  auto const real = static_cast<double>(value);
  require(std::abs(real) <= largest_number && range.contains(real), "out of range");
  return value;
}

template <class T>
std::string list_text(std::vector<T> const& values) {
  std::string text;
  for (auto const v : values) text.append(text.empty() ? "" : ",").append(number_text(v));
  return text;
}

template <class T>
std::vector<T> parsed_list(std::string const& text, Range range) {
  std::vector<T> parsed;
  std::size_t begin = 0;
  while (begin < text.size()) {
    auto const end = std::min(text.find(',', begin), text.size());
    auto const item = text.substr(begin, end - begin);
    auto const blanks = std::min(item.find_first_not_of(' '), item.size());
    parsed.push_back(parsed_number<T>(item.substr(blanks), range));
    begin = end + 1;
  }
  return parsed;
}

}  // namespace v0
}  // namespace pawl
