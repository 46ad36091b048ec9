#pragma once

#include <cstdint>
#include <cstdio>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "error.hpp"

namespace pawl {
inline namespace v0 {

namespace detail {

// The safetensors layout: 8 bytes little-endian length of a JSON header, the header, the raw
// tensors. The header maps the name of each tensor to its dtype, shape and place; "__metadata__"
// maps texts to texts.

struct DtypeName {
  torch::Dtype dtype;
  char const* name;
};
inline constexpr DtypeName dtype_names[] = {{torch::kFloat32, "F32"}, {torch::kFloat64, "F64"},
                                            {torch::kInt64, "I64"},   {torch::kUInt8, "U8"},
                                            {torch::kBool, "BOOL"},   {torch::kInt32, "I32"},
                                            {torch::kFloat16, "F16"}, {torch::kBFloat16, "BF16"},
                                            {torch::kInt16, "I16"},   {torch::kInt8, "I8"}};

inline std::string json_string(std::string_view text) {
  std::string quoted = "\"";
  for (auto const c : text) {
    if (c == '"' || c == '\\') {
      quoted += '\\';
      quoted += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char buffer[8];
      std::snprintf(buffer, sizeof buffer, "\\u%04x", static_cast<unsigned>(c));
      quoted += buffer;
    } else {
      quoted += c;
    }
  }
  return quoted + "\"";
}

/// Reads the JSON that safetensors headers consist of: objects of strings, and of objects with
/// strings and arrays of whole numbers. Anything else is refused, by throwing.
class HeaderReader {
 public:
  explicit HeaderReader(std::string_view text) : text_(text) {}

  bool take(char c) {
    skip();
    if (at_ < text_.size() && text_[at_] == c) return ++at_, true;
    return false;
  }
  void expect(char c) { require(take(c), "bad header"); }
  bool finished() {
    skip();
    return at_ == text_.size();
  }

  std::string string() {
    expect('"');
    std::string value;
    for (; at_ < text_.size() && text_[at_] != '"'; ++at_) {
      if (text_[at_] != '\\') {
        value += text_[at_];
        continue;
      }
      require(++at_ < text_.size(), "bad header");
      if (text_[at_] == 'u') {
        require(at_ + 4 < text_.size(), "bad header");
        value += static_cast<char>(std::stoi(std::string(text_.substr(at_ + 1, 4)), nullptr, 16));
        at_ += 4;
      } else {
        value += text_[at_];
      }
    }
    expect('"');
    return value;
  }

  std::vector<std::int64_t> numbers() {
    std::vector<std::int64_t> values;
    expect('[');
    if (take(']')) return values;
    do {
      skip();
      std::int64_t value = 0;
      auto const begin = at_;
      for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
        require(value < std::numeric_limits<std::int64_t>::max() / 16, "bad header");
        value = value * 10 + (text_[at_] - '0');
      }
      require(at_ > begin, "bad header");
      values.push_back(value);
    } while (take(','));
    expect(']');
    return values;
  }

  /// Calls `visit(key)` for each member of an object; `visit` reads the value.
  template <class F>
  void object(F&& visit) {
    expect('{');
    if (take('}')) return;
    do {
      skip();
      auto const key = string();
      expect(':');
      skip();
      visit(key);
    } while (take(','));
    expect('}');
  }

 private:
  void skip() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n')) ++at_;
  }
  std::string_view text_;
  std::size_t at_ = 0;
};

}  // namespace detail

}  // namespace v0
}  // namespace pawl
