#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "mlp.hpp"
#include "slim_resnet18.hpp"
#include "small_cnn.hpp"

namespace pawl {
inline namespace v0 {

/// The options of a model that can be built for any stream.
template <class O>
concept ModelOptions = requires(O o, O const& c, Options& options) {
  { O::name } -> std::convertible_to<std::string>;
  { O::about } -> std::convertible_to<std::string>;
  o.describe(options);
  { c.build(std::vector<std::int64_t>{}, 1, 0, Seed{}) } -> std::convertible_to<Model>;
};

/// The options of any model behind one interface, for programs that choose by name.
/// @code
///   auto choice = pawl::make_model_choice("mlp");
///   pawl::set_option(choice, "hidden", "400,400");
///   auto model = choice.build({1, 28, 28}, 10, 0, pawl::Seed{1});
/// @endcode
class AnyModelChoice {
 public:
  AnyModelChoice() : AnyModelChoice(MlpOptions{}) {}

  /// Any model's options are a choice.
  template <ModelOptions O>
  AnyModelChoice(O options)  // NOLINT(google-explicit-constructor)
      : self_(std::make_unique<Held<O>>(std::move(options))) {}

  AnyModelChoice(AnyModelChoice const& other) : self_(other.self_->copy()) {}
  AnyModelChoice(AnyModelChoice&&) = default;
  AnyModelChoice& operator=(AnyModelChoice other) {
    self_ = std::move(other.self_);
    return *this;
  }

  std::string type_name() const { return self_->type_name(); }
  std::string about() const { return self_->about(); }  ///< what it is, and its paper
  void describe(Options& o) { self_->describe(o); }

  /// Builds the model for rows of `input_shape` (without the batch), `outputs` logits (per task
  /// where the head is per task) and `tasks` task ids (0: none are given). The weights depend on
  /// `seed` alone.
  Model build(std::vector<std::int64_t> const& input_shape, std::int64_t outputs,
              std::int64_t tasks, Seed seed) const {
    return self_->build(input_shape, outputs, tasks, seed);
  }

 private:
  struct Interface {
    virtual ~Interface() = default;
    virtual std::unique_ptr<Interface> copy() const = 0;
    virtual std::string type_name() const = 0;
    virtual std::string about() const = 0;
    virtual void describe(Options&) = 0;
    virtual Model build(std::vector<std::int64_t> const&, std::int64_t, std::int64_t,
                        Seed) const = 0;
  };
  template <class O>
  struct Held final : Interface {
    explicit Held(O o) : options(std::move(o)) {}
    std::unique_ptr<Interface> copy() const override { return std::make_unique<Held>(options); }
    std::string type_name() const override { return O::name; }
    std::string about() const override { return O::about; }
    void describe(Options& o) override { options.describe(o); }
    Model build(std::vector<std::int64_t> const& input_shape, std::int64_t outputs,
                std::int64_t tasks, Seed seed) const override {
      return options.build(input_shape, outputs, tasks, seed);
    }
    O options;
  };
  std::unique_ptr<Interface> self_;
};

/// Every model of pawl, with its defaults.
inline std::vector<AnyModelChoice> const& model_catalogue() {
  static std::vector<AnyModelChoice> const all{MlpOptions{}, SmallCnnOptions{},
                                               SlimResNet18Options{}};
  return all;
}

inline std::vector<std::string> model_names() {
  std::vector<std::string> names;
  for (auto const& choice : model_catalogue()) names.push_back(choice.type_name());
  return names;
}

/// The options of the model of that name; throws `Error` with the nearest name when there is none.
inline AnyModelChoice make_model_choice(std::string_view name) {
  for (auto const& choice : model_catalogue()) {
    if (choice.type_name() == name) return choice;
  }
  fail({"there is no model '", name, "'", suggestion(name, model_names())});
}

}  // namespace v0
}  // namespace pawl
