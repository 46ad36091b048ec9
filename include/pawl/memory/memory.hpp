#pragma once

#include <concepts>
#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "../core/archive.hpp"
#include "../core/data.hpp"
#include "../core/error.hpp"
#include "../core/options.hpp"
#include "../core/random.hpp"
#include "../engine/phase.hpp"
#include "storage.hpp"

namespace pawl {
inline namespace v0 {

/// What a replay strategy needs of a memory. `insert` takes rows in stream order with the generator
/// of the whole run; to be independent of batch sizes, the row that is number n of the run uses
/// `generator.fork(n)`. `draw` gives n rows, or all when it holds fewer.
///
/// Optional: `size()`, `state(Archive&)` (to be saved and resumed), `describe(Options&)`, `name`,
/// `about`, and a member `pawl::Slots slots` that holds the rows (then draw policies can choose
/// among them), with `place(labels, generator, tasks)` as in `Reservoir` (then insertions can be
/// planned).
template <class M>
concept Memory = std::is_copy_constructible_v<M> &&
    requires(M memory, M const& held, Rows const& rows, Generator generator, std::int64_t n) {
  memory.insert(rows, generator);
  { memory.draw(n, generator) } -> std::convertible_to<Rows>;
  { held.empty() } -> std::convertible_to<bool>;
};

/// A memory whose rows lie in `Slots`.
template <class M>
concept SlottedMemory = Memory<M> && requires(M memory) {
  { memory.slots } -> std::same_as<Slots&>;
};

/// A memory whose placements depend on counts and labels alone: `insert` is `insert_planned`.
template <class M>
concept PlannedMemory = SlottedMemory<M> &&
    requires(M memory, at::IntArrayRef column, Generator g) {
  { memory.place(column, g, column) } -> std::same_as<std::vector<std::int64_t>>;
};

/// Any memory, as a value: a copy is deep and independent. A memory of yours converts to it when it
/// has what `Memory` asks; its tensors are copied through its `state`, or by its own copy
/// constructor.
class AnyMemory {
 public:
  template <class M>
  requires(!std::same_as<std::remove_cvref_t<M>, AnyMemory>)
      AnyMemory(M memory) {  // NOLINT(google-explicit-constructor): `Replay{Reservoir{...}}`
    static_assert(Memory<M>,
                  "pawl: a replay memory needs  void insert(pawl::Rows const&, pawl::Generator),  "
                  "pawl::Rows draw(std::int64_t n, pawl::Generator)  and  bool empty() const,  and "
                  "must be copyable; add the missing one");
    if constexpr (Memory<M>) self_.reset(new Model<M>(std::move(memory)));
  }
  AnyMemory(AnyMemory const& other) : self_(other.self_->clone()) {}
  AnyMemory(AnyMemory&&) noexcept = default;
  AnyMemory& operator=(AnyMemory other) noexcept {
    self_ = std::move(other.self_);
    return *this;
  }

  void insert(Rows const& rows, Generator generator) {
    Phase const phase("memory.insert");
    self_->insert(rows, generator);
  }
  Rows draw(std::int64_t n, Generator generator) { return self_->draw(n, generator); }
  bool empty() const { return self_->empty(); }
  std::int64_t size() const { return self_->size(); }  ///< rows held; throws where not told
  void state(Archive& a) { self_->state(a); }
  void describe(Options& o) { self_->describe(o); }
  std::string name() const { return self_->name(); }  ///< "memory" where it has none
  std::string about() const { return self_->about(); }

  /// The rows behind the memory; nullptr for a memory that keeps them in its own way.
  Slots const* slots() const { return self_->slots(); }
  /// The rows as stored, and which slots are filled. Throws for a memory without `Slots`.
  Slots const& stored() const {
    require(
        slots() != nullptr,
        {"the memory '", name(),
         "' can only be drawn from uniformly: keep its rows in a member `pawl::Slots slots` for "
         "other draws"});
    return *slots();
  }
  std::vector<std::int64_t> held() const { return stored().held(); }
  Rows take(std::vector<std::int64_t> const& slots) const { return stored().take(slots); }
  Rows contents() const { return stored().contents(); }

  /// Destinations of rows in stream order, from labels and tasks alone; advances the memory as an
  /// insertion would, without storing. Throws for a memory that must see the rows.
  std::vector<std::int64_t> place(at::IntArrayRef labels, Generator generator,
                                  at::IntArrayRef tasks = {}) {
    return self_->place(labels, generator, tasks);
  }

  /// Whether steps that use the memory can be planned ahead.
  bool planned() const { return self_->planned(); }

  /// The memory itself, nullptr when it is of another type.
  template <class M>
  M* get_if() {
    auto* model = dynamic_cast<Model<M>*>(self_.get());
    return model == nullptr ? nullptr : &model->memory;
  }

 private:
  struct Interface {
    virtual ~Interface() = default;
    virtual std::unique_ptr<Interface> clone() const = 0;
    virtual void insert(Rows const&, Generator) = 0;
    virtual Rows draw(std::int64_t, Generator) = 0;
    virtual bool empty() const = 0;
    virtual std::int64_t size() const = 0;
    virtual void state(Archive&) = 0;
    virtual void describe(Options&) = 0;
    virtual std::string name() const = 0;
    virtual std::string about() const = 0;
    virtual Slots const* slots() const = 0;
    virtual bool planned() const = 0;
    virtual std::vector<std::int64_t> place(at::IntArrayRef, Generator, at::IntArrayRef) = 0;
  };

  template <class M>
  struct Model final : Interface {
    explicit Model(M m) : memory(std::move(m)) {}

    std::unique_ptr<Interface> clone() const override {
      std::unique_ptr<Interface> copy(new Model(memory));
      if constexpr (!SlottedMemory<M> && requires(M m, Archive a) { m.state(a); }) {
        Archive from(Archive::Mode::save), to(Archive::Mode::load);
        copy->state(from);  // the copy still shares the tensors; loading clones them
        to.tensors = std::move(from.tensors);
        to.texts = std::move(from.texts);
        copy->state(to);
      }
      return copy;
    }
    void insert(Rows const& rows, Generator generator) override { memory.insert(rows, generator); }
    Rows draw(std::int64_t n, Generator generator) override { return memory.draw(n, generator); }
    bool empty() const override { return memory.empty(); }
    std::int64_t size() const override {
      if constexpr (requires { memory.size(); }) {
        return memory.size();
      } else {
        fail({"the memory '", name(), "' does not tell its size; add  std::int64_t size() const"});
      }
    }
    void state(Archive& a) override {
      if constexpr (requires { memory.state(a); }) memory.state(a);
    }
    void describe(Options& o) override {
      if constexpr (requires { memory.describe(o); }) memory.describe(o);
    }
    std::string name() const override {
      if constexpr (requires { std::string(M::name); }) return M::name;
      return "memory";
    }
    std::string about() const override {
      if constexpr (requires { std::string(M::about); }) return M::about;
      return "";
    }
    Slots const* slots() const override {
      if constexpr (SlottedMemory<M>) return &memory.slots;
      return nullptr;
    }
    bool planned() const override { return PlannedMemory<M>; }
    std::vector<std::int64_t> place(at::IntArrayRef labels, Generator generator,
                                    at::IntArrayRef tasks) override {
      if constexpr (PlannedMemory<M>) {
        return memory.place(labels, generator, tasks);
      } else {
        fail({"the memory '", name(),
              "' cannot be planned: it has no  place(labels, generator, tasks)"});
      }
    }

    M memory;
  };

  std::unique_ptr<Interface> self_;
};

}  // namespace v0
}  // namespace pawl
