#pragma once

#include <concepts>
#include <cstdint>
#include <string>
#include <tuple>
#include <type_traits>
#include <typeinfo>
#include <utility>
#include <vector>

#include "context.hpp"

namespace pawl {
inline namespace v0 {

// The hooks that a strategy may implement. Each is optional; a member of the right name and the
// wrong signature is refused by `check_strategy`.

template <class S>
concept HasBegin = requires(S s, Context& c, Experience const& e) {
  { s.begin(c, e) } -> std::same_as<void>;
};
/// What the experience trains on: the data set given, or a larger one. A function of the strategy's
/// state, so that a resumed run comes to the same.
template <class S>
concept HasEnlarge = requires(S s, Context& c, Dataset d) {
  { s.enlarge(c, std::move(d)) } -> std::same_as<Dataset>;
};
template <class S>
concept HasExtend = requires(S s, Context& c, Batch b) {
  { s.extend(c, std::move(b)) } -> std::same_as<Batch>;
};
template <class S>
concept HasLoss = requires(S s, Context& c) {
  { s.loss(c) } -> std::same_as<Tensor>;
};
template <class S>
concept HasPenalty = requires(S s, Context& c) {
  { s.penalty(c) } -> std::same_as<Tensor>;
};
template <class S>
concept HasEditGradient = requires(S s, Context& c) {
  { s.edit_gradient(c) } -> std::same_as<void>;
};
template <class S>
concept HasAfterStep = requires(S s, Context& c) {
  { s.after_step(c) } -> std::same_as<void>;
};
template <class S>
concept HasEnd = requires(S s, Context& c, Experience const& e) {
  { s.end(c, e) } -> std::same_as<void>;
};
template <class S>
concept HasScores = requires(S s, Context& c, Tensor x) {
  { s.scores(c, x) } -> std::same_as<Tensor>;
};
/// The value [] of a penalty whose gradient `edit_gradient` adds in closed form; asked for by
/// observers.
template <class S>
concept HasPenaltyValue = requires(S s, Context& c) {
  { s.penalty_value(c) } -> std::same_as<Tensor>;
};
template <class S>
concept HasState = requires(S s, Archive& a) {
  s.state(a);
};

/// Strategies that read `context.task_gradient` say `static constexpr bool needs_task_gradient =
/// true`.
template <class S>
concept NeedsTaskGradient = requires {
  requires S::needs_task_gradient;
};

namespace detail {

// A member of this name exists, whatever its signature.
template <class S>
concept NamesBegin = requires {
  &S::begin;
};
template <class S>
concept NamesEnlarge = requires {
  &S::enlarge;
};
template <class S>
concept NamesExtend = requires {
  &S::extend;
};
template <class S>
concept NamesLoss = requires {
  &S::loss;
};
template <class S>
concept NamesPenalty = requires {
  &S::penalty;
};
template <class S>
concept NamesEditGradient = requires {
  &S::edit_gradient;
};
template <class S>
concept NamesAfterStep = requires {
  &S::after_step;
};
template <class S>
concept NamesEnd = requires {
  &S::end;
};
template <class S>
concept NamesScores = requires {
  &S::scores;
};

}  // namespace detail

template <class S>
constexpr bool has_any_hook =
    HasBegin<S> || HasEnlarge<S> || HasExtend<S> || HasLoss<S> || HasPenalty<S> ||
    HasEditGradient<S> || HasAfterStep<S> || HasEnd<S> || HasScores<S>;

/// Refuses, in a sentence each, types that cannot be strategies.
template <class S>
constexpr void check_strategy() {
  static_assert(HasBegin<S> || !detail::NamesBegin<S>,
                "pawl: the hook must be  void begin(Context&, Experience const&)");
  static_assert(HasEnlarge<S> || !detail::NamesEnlarge<S>,
                "pawl: the hook must be  Dataset enlarge(Context&, Dataset)");
  static_assert(HasExtend<S> || !detail::NamesExtend<S>,
                "pawl: the hook must be  Batch extend(Context&, Batch)");
  static_assert(HasLoss<S> || !detail::NamesLoss<S>,
                "pawl: the hook must be  Tensor loss(Context&)");
  static_assert(HasPenalty<S> || !detail::NamesPenalty<S>,
                "pawl: the hook must be  Tensor penalty(Context&)");
  static_assert(HasEditGradient<S> || !detail::NamesEditGradient<S>,
                "pawl: the hook must be  void edit_gradient(Context&)");
  static_assert(HasAfterStep<S> || !detail::NamesAfterStep<S>,
                "pawl: the hook must be  void after_step(Context&)");
  static_assert(HasEnd<S> || !detail::NamesEnd<S>,
                "pawl: the hook must be  void end(Context&, Experience const&)");
  static_assert(HasScores<S> || !detail::NamesScores<S>,
                "pawl: the hook must be  Tensor scores(Context&, Tensor)");
  static_assert(has_any_hook<S>,
                "pawl: a strategy needs at least one hook: begin, enlarge, extend, loss, penalty, "
                "edit_gradient, after_step, end or scores; check the spelling");
}

/// The name of a strategy in messages and records: `S::name`, else the name of its type.
template <class S>
std::string strategy_name() {
  if constexpr (requires { S::name; }) {
    return S::name;
  } else {
    return c10::demangle(typeid(S).name());
  }
}

/// The hooks a strategy was found to have, so that a misspelt one shows by its absence.
template <class S>
std::vector<std::string> hooks_of() {
  std::vector<std::string> found;
  if (HasBegin<S>) found.emplace_back("begin");
  if (HasEnlarge<S>) found.emplace_back("enlarge");
  if (HasExtend<S>) found.emplace_back("extend");
  if (HasLoss<S>) found.emplace_back("loss");
  if (HasPenalty<S>) found.emplace_back("penalty");
  if (HasEditGradient<S>) found.emplace_back("edit_gradient");
  if (HasAfterStep<S>) found.emplace_back("after_step");
  if (HasEnd<S>) found.emplace_back("end");
  if (HasScores<S>) found.emplace_back("scores");
  return found;
}

/// What is known of one strategy of a learner.
struct StrategyRecord {
  std::string name;
  std::vector<std::string> hooks;
};

/// The strategies of a learner, called in listing order.
template <class... S>
struct StrategySet {
  std::tuple<S...> strategies;

  static constexpr bool has_loss = (HasLoss<S> || ...);
  static constexpr bool has_scores = (HasScores<S> || ...);
  static constexpr bool edits_gradient = (HasEditGradient<S> || ...);
  static constexpr bool has_penalty = (HasPenalty<S> || ...);
  static constexpr bool wants_task_gradient = (NeedsTaskGradient<S> || ...);

  static constexpr void check() {
    (check_strategy<S>(), ...);
    static_assert(
        (0 + ... + int(HasLoss<S>)) <= 1,
        "pawl: two strategies of this learner both own  loss(Context&); keep one of them");
    static_assert(
        (0 + ... + int(HasScores<S>)) <= 1,
        "pawl: two strategies of this learner both own  scores(Context&, Tensor); keep one of "
        "them");
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
      if constexpr (HasBegin<std::remove_cvref_t<decltype(s)>>) s.begin(c, e);
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
      if constexpr (HasExtend<std::remove_cvref_t<decltype(s)>>) b = s.extend(c, std::move(b));
    });
    return b;
  }
  Tensor loss(Context& c) {
    Tensor value;
    each([&](auto& s) {
      if constexpr (HasLoss<std::remove_cvref_t<decltype(s)>>) value = s.loss(c);
    });
    return value;
  }
  /// Values of the penalties that autograd differentiates; undefined ones are left out.
  std::vector<std::pair<std::string, Tensor>> penalties(Context& c) {
    std::vector<std::pair<std::string, Tensor>> values;
    each([&](auto& s) {
      using T = std::remove_cvref_t<decltype(s)>;
      if constexpr (HasPenalty<T>) {
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
  void edit_gradient(Context& c) {
    each([&](auto& s) {
      if constexpr (HasEditGradient<std::remove_cvref_t<decltype(s)>>) s.edit_gradient(c);
    });
  }
  void after_step(Context& c) {
    each([&](auto& s) {
      if constexpr (HasAfterStep<std::remove_cvref_t<decltype(s)>>) s.after_step(c);
    });
  }
  void end(Context& c, Experience const& e) {
    each([&](auto& s) {
      if constexpr (HasEnd<std::remove_cvref_t<decltype(s)>>) s.end(c, e);
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
