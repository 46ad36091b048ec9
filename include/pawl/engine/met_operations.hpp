#pragma once

#include <optional>
#include <utility>

#include "../torch.hpp"

namespace pawl {
inline namespace v0 {

/// Operations of LibTorch that are met in its dispatcher, above autograd, while a thread runs the
/// forward of a module: that runs as it is, and what it asks for may be computed in another way.
///
/// Of several libraries in one process that carry pawl without showing it, one has this.
class MetOperations {
 public:
  /// What LibTorch's dispatcher leaves to others. Operations pass it by, but for those that are
  /// registered.
  static constexpr auto key = c10::DispatchKey::DeferredInit;

  /// While it lives, they are not, for whoever has met one.
  struct Below {
    c10::impl::ExcludeDispatchKeyGuard here{key};
  };

  /// Tells the dispatcher, the first time, which operations a class meets: `Meets::meet(aten)`
  /// registers them. Returns whether they are met: not where somebody else in this process uses the
  /// key.
  template <class Meets>
  static bool told_of() {
    static bool const told = [] {
      if (!available()) return false;
      static torch::Library aten(torch::Library::IMPL, "aten", key, __FILE__, __LINE__);
      Meets::meet(aten);
      return true;
    }();
    return told;
  }

  /// Whether autograd has yet to see what this thread does.
  static bool above_autograd() {
    return !c10::impl::tls_is_dispatch_key_excluded(c10::DispatchKey::AutogradCPU);
  }

  /// Whether float32 numbers of a tensor lie in the host's memory, and nothing is special about it.
  static bool is_plain(Tensor const& m) {
    constexpr c10::DispatchKeySet usual{c10::DispatchKey::CPU, c10::DispatchKey::AutogradCPU,
                                        c10::DispatchKey::ADInplaceOrView,
                                        c10::DispatchKey::AutocastCPU};
    return m.scalar_type() == torch::kFloat32 && m.is_cpu() && m.layout() == at::kStrided &&
           (m.key_set().raw_repr() & ~usual.raw_repr()) == 0 && !m._fw_grad(0).defined();
  }

 private:
  /// Whether the key is ours. Operations that nobody registers pass it by.
  static bool available() {
    static bool const ours = [] {
      if (c10::Dispatcher::singleton().hasBackendFallbackForDispatchKey(key)) return false;
      static torch::Library others(torch::Library::IMPL, "_", key, __FILE__, __LINE__);
      others.fallback(torch::CppFunction::makeFallthrough());
      return true;
    }();
    return ours;
  }
};

/// Layers that a thread meets within scopes: `Layers` derives from it, registers operations with
/// `meet`, and looks at `wanted()` in them. A thread whose layers cannot go another way says so by
/// a `possible()` of the class's own.
template <class Layers>
class MetLayers {
 public:
  /// While it lives, this thread's layers of that kind go another way, if `wanted`.
  class Scope {
   public:
    explicit Scope(bool wanted) {
      auto const here = wanted && Layers::possible() && available();
      outer_ = std::exchange(MetLayers::wanted(), here);
      if (here) met_.emplace(MetOperations::key);
    }
    ~Scope() { MetLayers::wanted() = outer_; }
    Scope(Scope const&) = delete;
    Scope& operator=(Scope const&) = delete;

   private:
    bool outer_;
    std::optional<c10::impl::IncludeDispatchKeyGuard> met_;
  };

  /// Whether the dispatcher knows about them; tells it, the first time.
  static bool available() { return MetOperations::told_of<Layers>(); }

 protected:
  static bool possible() { return true; }
  static bool& wanted() {
    thread_local bool here = false;
    return here;
  }
};

}  // namespace v0
}  // namespace pawl
