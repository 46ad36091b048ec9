#pragma once

// Listens to the parts of training that pawl marks for LibTorch's profiler (`pawl::Phase`).

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <pawl/torch.hpp>

namespace bench {

/// One part, inside of another or on its own.
struct PhaseRecord {
  static constexpr std::size_t no_parent = static_cast<std::size_t>(-1);

  std::string name = {};
  std::string path = {};           ///< "step/replay.extend/memory.draw"
  std::size_t parent = no_parent;  ///< that it is inside of, in the order of first beginnings
  std::int64_t depth = -1;         ///< 0: inside of no other
  std::int64_t calls = 0;
  double seconds = 0;            ///< the parts inside included
  std::int64_t operations = 0;   ///< calls of LibTorch operations, those inside of others too
  std::int64_t allocations = 0;  ///< on the host
  std::int64_t nodes = 0;        ///< nodes of autograd's graph that ran
  std::int64_t flops = 0;        ///< in products and convolutions, see cost.hpp
};

/// Adds up the parts of this thread's training for as long as it lives; one at a time.
class PhaseListener {
 public:
  enum class Measure { time, operations };  ///< counting operations takes time of its own

  /// With `device` on a GPU every part is waited for.
  PhaseListener(Measure measure, torch::Device device);
  ~PhaseListener();
  PhaseListener(PhaseListener const&) = delete;
  PhaseListener& operator=(PhaseListener const&) = delete;

  /// The parts in the order in which they began first, each followed by those inside of it.
  std::vector<PhaseRecord> records() const;

 private:
  using Clock = std::chrono::steady_clock;
  struct Open {
    std::size_t record;
    Clock::time_point since;
    std::int64_t allocations;  ///< before
  };

  /// A product, until it ends.
  struct Product : at::ObserverContext {};

  static std::unique_ptr<at::ObserverContext> began(at::RecordFunction const& call);
  static void ended(at::RecordFunction const& call, at::ObserverContext* product);
  void open(std::string const& name);
  void close();
  void wait() const;

  torch::Device device_;
  bool counts_;
  std::vector<PhaseRecord> records_;
  std::vector<Open> open_;
  int products_ = 0;  ///< that are open: one may be made by another, and counts once
  at::CallbackHandle handle_ = 0;
};

}  // namespace bench
