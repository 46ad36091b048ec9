#pragma once

#include <cstdint>
#include <limits>
#include <tuple>

#include "context.hpp"

namespace pawl {
inline namespace v0 {

/// Watches training; never changes it. Each member is optional:
///   void begin(Context const&)    before the first step of an experience
///   void step(Context const&)     after every step: losses, penalties, logits, gradient, weights
///   void end(Context const&)      after the last step of an experience
/// One that says `static constexpr bool wants_penalties = true` also sees the values of closed-form
/// penalties. One whose `step` reads losses and penalties alone says `static constexpr bool
/// only_losses = true`: pawl may then run ahead on a device, where others see each step before the
/// next is planned, and leave gradients unformed that plain SGD only adds to the weights. Such an
/// observer must not call `save`.
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

template <class O>
concept LooksAtMore = requires(O o, Context const& c) {
  o.step(c);
}
&&!requires { requires O::only_losses; };

/// The observers of one call of `fit`, told of what happens in the order in which they were given.
template <class... O>
class Watch {
 public:
  static_assert((Observer<O> && ...),
                "pawl: an observer needs at least one of  begin, step, end (Context const&)");
  static constexpr bool wants_penalties = (WantsPenalties<O> || ...);
  static constexpr bool only_losses = !(LooksAtMore<O> || ...);
  /// How many steps may be planned before the first of them is made and shown.
  static constexpr std::int64_t steps_at_once =
      only_losses ? std::numeric_limits<std::int64_t>::max() : 1;

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
