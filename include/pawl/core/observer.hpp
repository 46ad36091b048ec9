#pragma once

#include <tuple>

#include "context.hpp"

namespace pawl {
inline namespace v0 {

/// Watches training; never changes it. Each member is optional:
///   void begin(Context const&)    before the first step of an experience
///   void step(Context const&)     after every step: losses, penalties, logits, gradient, weights
///   void end(Context const&)      after the last step of an experience
/// One that says `static constexpr bool wants_penalties = true` also sees the values of closed-form
/// penalties.
template <class O>
concept Observer = requires(O o, Context const& c) {
  o.begin(c);
}
|| requires(O o, Context const& c) { o.step(c); }
|| requires(O o, Context const& c) { o.end(c); };

template <class O>
concept WantsPenalties = requires {
  requires O::wants_penalties;
};

/// The observers of one call of `fit`, told of what happens in the order in which they were given.
template <class... O>
class Watch {
 public:
  static_assert((Observer<O> && ...),
                "pawl: an observer needs at least one of  begin, step, end (Context const&)");
  static constexpr bool wants_penalties = (WantsPenalties<O> || ...);

  explicit Watch(O&... observers) : observers_(observers...) {}

  void begin(Context const& c) {
    each([&](auto& o) {
      if constexpr (requires { o.begin(c); }) o.begin(c);
    });
  }
  void step(Context const& c) {
    each([&](auto& o) {
      if constexpr (requires { o.step(c); }) o.step(c);
    });
  }
  void end(Context const& c) {
    each([&](auto& o) {
      if constexpr (requires { o.end(c); }) o.end(c);
    });
  }

 private:
  template <class F>
  void each(F&& f) {
    std::apply([&](O&... o) { (f(o), ...); }, observers_);
  }
  std::tuple<O&...> observers_;
};

}  // namespace v0
}  // namespace pawl
