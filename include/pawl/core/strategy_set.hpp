#pragma once

#include <cstdint>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "../engine/phase.hpp"
#include "hooks.hpp"

namespace pawl {
inline namespace v0 {

/// What is known of one strategy of a learner.
struct StrategyRecord {
  std::string name;
  std::vector<std::string> hooks;
};

namespace detail {

template <class... S>
struct Types {};
template <class S, bool owns>
using Owners = std::conditional_t<owns, Types<S>, Types<>>;

template <class... A, class... B>
Types<A..., B...> operator+(Types<A...>, Types<B...>);
template <class... Lists>
using Joined = decltype((Types<>{} + ... + Lists{}));

}  // namespace detail

// Functions of the owners alone, so that the compiler's message names them.

template <class... Owners>
constexpr void check_loss_owners(detail::Types<Owners...>) {
  static_assert(sizeof...(Owners) <= 1,
                "pawl: two strategies of this learner both own  loss(Context&); keep one of them");
}
template <class... Owners>
constexpr void check_scores_owners(detail::Types<Owners...>) {
  static_assert(sizeof...(Owners) <= 1,
                "pawl: two strategies of this learner both own  scores(Context&, Tensor); keep one "
                "of them");
}

/// The strategies of a learner, called in listing order.
template <class... S>
struct StrategySet {
  std::tuple<S...> strategies;

  static constexpr bool has_loss = (HasLoss<S> || ...);
  static constexpr bool has_scores = (HasScores<S> || ...);
  static constexpr bool wants_task_gradient = (NeedsTaskGradient<S> || ...);
  static constexpr bool plans_ahead = (PlansAhead<S> || ...);
  static constexpr bool reads_gradient = (may_read_gradient<S> || ...);
  static constexpr bool elementwise = ((Elementwise<S> || !may_read_gradient<S>)&&...);
  static constexpr bool only_adds = ((OnlyAdds<S> || !may_read_gradient<S>)&&...);

  static constexpr void check() {
    (check_strategy<S>(), ...);
    check_loss_owners(detail::Joined<detail::Owners<S, HasLoss<S>>...>{});
    check_scores_owners(detail::Joined<detail::Owners<S, HasScores<S>>...>{});
  }

  template <class F>
  void each(F&& f) {
    std::apply([&](S&... s) { (f(s), ...); }, strategies);
  }

  void describe(Options& o) {
    each([&](auto& s) {
      if constexpr (requires { s.describe(o); }) s.describe(o);
    });
  }
  void check_values() {
    each([](auto& s) { check_options(s, strategy_name<std::remove_cvref_t<decltype(s)>>()); });
  }
  void begin(Context& c, Experience const& e) {
    each([&](auto& s) {
      using T = std::remove_cvref_t<decltype(s)>;
      if constexpr (HasBegin<T>) {
        Phase const phase(strategy_name<T>, "begin");
        s.begin(c, e);
      }
    });
  }
  Dataset enlarge(Context& c, Dataset d) {
    each([&](auto& s) {
      if constexpr (HasEnlarge<std::remove_cvref_t<decltype(s)>>) d = s.enlarge(c, std::move(d));
    });
    return d;
  }
  Batch extend(Context& c, Batch b) {
    each([&](auto& s) {
      using T = std::remove_cvref_t<decltype(s)>;
      if constexpr (HasExtend<T>) {
        Phase const phase(strategy_name<T>, "extend");
        b = s.extend(c, std::move(b));
      }
    });
    return b;
  }
  /// Of a step that is planned: the batch as far as the host decides it.
  Batch plan_batch(Context& c, Batch b) {
    each([&](auto& s) {
      using T = std::remove_cvref_t<decltype(s)>;
      if constexpr (HasExtend<T> && PlansAhead<T>) b = s.extend(c, std::move(b));
    });
    return b;
  }
  /// What the host decides after a step that is planned.
  void plan_end_of_step(Context& c) {
    each([&](auto& s) {
      using T = std::remove_cvref_t<decltype(s)>;
      if constexpr (HasAfterStep<T> && PlansAhead<T>) s.after_step(c);
    });
  }
  /// The strategies whose steps cannot be recorded, as they are set up now.
  std::vector<std::string> not_capturable() const {
    std::vector<std::string> names;
    auto const ask = [&](auto const& s) {
      using T = std::remove_cvref_t<decltype(s)>;
      if constexpr (SaysCapturable<T>) {
        if (s.capturable()) return;
      }
      names.push_back(strategy_name<T>());
    };
    std::apply([&](S const&... s) { (ask(s), ...); }, strategies);
    return names;
  }
  Tensor loss(Context& c) {
    Tensor value;
    each([&](auto& s) {
      using T = std::remove_cvref_t<decltype(s)>;
      if constexpr (HasLoss<T>) {
        Phase const phase(strategy_name<T>, "loss");
        value = s.loss(c);
      }
    });
    return value;
  }
  /// Values of the penalties that autograd differentiates; undefined ones are left out.
  Named<Tensor> penalties(Context& c) {
    Named<Tensor> values;
    each([&](auto& s) {
      using T = std::remove_cvref_t<decltype(s)>;
      if constexpr (HasPenalty<T>) {
        Phase const phase(strategy_name<T>, "penalty");
        if (auto value = s.penalty(c); value.defined()) {
          values.emplace_back(strategy_name<T>(), value);
        }
      }
    });
    return values;
  }
  void closed_form_values(Context& c) {
    each([&](auto& s) {
      using T = std::remove_cvref_t<decltype(s)>;
      if constexpr (HasPenaltyValue<T>) {
        if (auto value = s.penalty_value(c); value.defined()) {
          c.penalties.emplace_back(strategy_name<T>(), value);
        }
      }
    });
  }
  void wake(Context& c) {
    each([&](auto& s) {
      if constexpr (HasWake<std::remove_cvref_t<decltype(s)>>) s.wake(c);
    });
  }
  void edit_gradient(Context& c) {
    each([&](auto& s) {
      using T = std::remove_cvref_t<decltype(s)>;
      if constexpr (HasEditGradient<T>) {
        Phase const phase(strategy_name<T>, "edit_gradient");
        s.edit_gradient(c);
      }
    });
  }
  void after_step(Context& c, Of which = Of::all) {
    each([&](auto& s) {
      using T = std::remove_cvref_t<decltype(s)>;
      if constexpr (HasAfterStep<T>) {
        if (which != Of::all && (which == Of::elementwise) != Elementwise<T>) return;
        Phase const phase(strategy_name<T>, "after_step");
        s.after_step(c);
      }
    });
  }
  void end(Context& c, Experience const& e) {
    each([&](auto& s) {
      using T = std::remove_cvref_t<decltype(s)>;
      if constexpr (HasEnd<T>) {
        Phase const phase(strategy_name<T>, "end");
        s.end(c, e);
      }
    });
  }
  Tensor scores(Context& c, Tensor const& x) {
    Tensor value;
    each([&](auto& s) {
      if constexpr (HasScores<std::remove_cvref_t<decltype(s)>>) value = s.scores(c, x);
    });
    return value;
  }
  void state(Archive& a, std::int64_t position = 0) {
    each([&](auto& s) {
      using T = std::remove_cvref_t<decltype(s)>;
      if constexpr (HasState<T>) {
        a.part(std::to_string(position) + "." + strategy_name<T>(), s);
      }
      ++position;
    });
  }
  std::vector<StrategyRecord> records() const {
    return {StrategyRecord{strategy_name<S>(), hooks_of<S>()}...};
  }
};

}  // namespace v0
}  // namespace pawl
