#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <locale>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../torch.hpp"

namespace pawl {
inline namespace v0 {

/// Values by name, in the order they came.
template <class Value>
using Named = std::vector<std::pair<std::string, Value>>;

/// A mistake that the user can mend. The text says what is wrong, where, and what to do.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The loss is no longer finite. Nothing of the failed step was applied to the weights, but buffers
/// (BatchNorm statistics) have seen its batch: go back to a snapshot or a checkpoint.
class Diverged : public Error {
 public:
  Diverged(std::string const& text, std::int64_t experience, std::int64_t step, double task_loss,
           Named<double> penalties)
      : Error(text),
        experience(experience),
        step(step),
        task_loss(task_loss),
        penalties(std::move(penalties)) {}

  std::int64_t experience;  ///< index of the experience
  std::int64_t step;        ///< step within the experience, from 0
  double task_loss;         ///< supervised loss of the step
  Named<double> penalties;  ///< strategy and value
};

/// A text or a number in a message. It refers to its text, which somebody else holds.
class MessagePart {
 public:
  // NOLINTBEGIN(google-explicit-constructor): what a message says is written as it is
  constexpr MessagePart() = default;
  constexpr MessagePart(char const* text) : MessagePart(std::string_view(text)) {}
  constexpr MessagePart(std::string_view text)
      : data_(text.data()), number_(static_cast<std::int64_t>(text.size())) {}
  MessagePart(std::string const& text) : MessagePart(std::string_view(text)) {}
  MessagePart(c10::ScalarType type) : MessagePart(c10::toString(type)) {}
  MessagePart(caffe2::TypeMeta type) : MessagePart(type.toScalarType()) {}
  MessagePart(c10::IntArrayRef sizes)
      : data_(sizes.data()), number_(static_cast<std::int64_t>(sizes.size())), kind_(Kind::sizes) {}
  MessagePart(c10::Device device)
      : number_(static_cast<std::int64_t>(device.type())),
        index_(device.index()),
        kind_(Kind::device) {}
  constexpr MessagePart(int number) : MessagePart(static_cast<long long>(number)) {}
  constexpr MessagePart(unsigned number) : MessagePart(static_cast<long long>(number)) {}
  constexpr MessagePart(long number) : MessagePart(static_cast<long long>(number)) {}
  constexpr MessagePart(unsigned long number) : MessagePart(static_cast<long long>(number)) {}
  constexpr MessagePart(long long number) : number_(number), kind_(Kind::integer) {}
  constexpr MessagePart(double number)
      : number_(std::bit_cast<std::int64_t>(number)), kind_(Kind::real) {}
  // NOLINTEND(google-explicit-constructor)

  friend std::ostream& operator<<(std::ostream& out, MessagePart const& part) {
    auto const size = static_cast<std::size_t>(part.number_);
    switch (part.kind_) {
      case Kind::text:
        return out.write(static_cast<char const*>(part.data_), part.number_);
      case Kind::sizes:
        return out << c10::IntArrayRef(static_cast<std::int64_t const*>(part.data_), size);
      case Kind::device:
        return out << c10::Device(static_cast<c10::DeviceType>(part.number_), part.index_);
      case Kind::integer:
        return out << part.number_;
      case Kind::real:
        return out << std::bit_cast<double>(part.number_);
    }
    return out;
  }

 private:
  enum class Kind : char { text, sizes, device, integer, real };

  void const* data_ = nullptr;
  std::int64_t number_ = 0;  // or its bits, or the size of what data_ points to
  c10::DeviceIndex index_ = 0;
  Kind kind_ = Kind::text;
};

/// The parts written one after another.
inline std::string text_of(std::initializer_list<MessagePart> parts) {
  std::ostringstream out;
  out.imbue(std::locale::classic());  // numbers alike in every country: some texts are compared
  for (auto const& part : parts) out << part;
  return out.str();
}

/// Throws `Error` with the parts written one after another. (A list, because a template for every
/// combination of texts and numbers cost a user's compiler more.)
[[noreturn]] inline void fail(std::initializer_list<MessagePart> parts) {
  throw Error("pawl: " + text_of(parts));
}
[[noreturn]] inline void fail(MessagePart const& text) { fail({text}); }

/// Throws `Error` unless `condition` holds.
inline void require(bool condition, std::initializer_list<MessagePart> parts) {
  if (!condition) [[unlikely]]
    fail(parts);
}
inline void require(bool condition, MessagePart const& text) {
  if (!condition) [[unlikely]]
    fail({text});
}

/// The name among `names` that is closest to `wrong` (Levenshtein distance); empty when none is
/// near.
inline std::string nearest_name(std::string_view wrong, std::vector<std::string> const& names) {
  std::string best;
  std::size_t best_distance = wrong.size() / 2 + 2;
  for (auto const& name : names) {
    std::vector<std::size_t> row(name.size() + 1);
    for (std::size_t j = 0; j <= name.size(); ++j) row[j] = j;
    for (std::size_t i = 1; i <= wrong.size(); ++i) {
      std::size_t diagonal = row[0];
      row[0] = i;
      for (std::size_t j = 1; j <= name.size(); ++j) {
        auto const above = row[j];
        row[j] = std::min({row[j] + 1, row[j - 1] + 1, diagonal + (wrong[i - 1] != name[j - 1])});
        diagonal = above;
      }
    }
    if (row.back() < best_distance) {
      best_distance = row.back();
      best = name;
    }
  }
  return best;
}

/// "; did you mean 'x'?" or the list of what there is, for messages about a wrong name.
inline std::string suggestion(std::string_view wrong, std::vector<std::string> const& names) {
  if (auto const near = nearest_name(wrong, names); !near.empty()) {
    return text_of({"; did you mean '", near, "'?"});
  }
  std::string all = "; there is:";
  for (auto const& name : names) all += " " + name;
  return all;
}

}  // namespace v0
}  // namespace pawl
