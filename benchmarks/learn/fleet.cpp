#include "fleet.hpp"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <exception>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <unistd.h>

namespace bench {

namespace {

/// As `run_seed`, with the seed named in what is said of a loss that is not finite.
SeedResult run_named(Config const& config, pawl::TrainTest const& data, std::int64_t seed,
                     std::string const& label, OnExperience const& done) {
  try {
    return run_seed(config, data, seed, label, done);
  } catch (pawl::Diverged const& error) {
    throw pawl::Error(error.what() + std::string(" (seed ") + std::to_string(seed) + ")");
  }
}

void run_in_turn(Config const& config, pawl::TrainTest const& data, Receiver const& receiver) {
  for (std::int64_t k = 0; k < config.run.seeds; ++k) {
    if (interrupted()) throw Interrupted{};
    auto const seed = config.run.first_seed + k;
    auto const label = "seed " + std::to_string(seed) + " (" + std::to_string(k + 1) + "/" +
                       std::to_string(config.run.seeds) + ")";
    receiver.result(run_named(config, data, seed, label, receiver.experience));
  }
}

/// Seeds in threads: each takes the next one that nobody has begun.
class Threads {
 public:
  Threads(Config const& config, pawl::TrainTest const& data)
      : config_(config),
        data_(data),
        slots_(static_cast<std::size_t>(config.run.seeds)),
        learners_(static_cast<std::size_t>(std::min(config.run.jobs, config.run.seeds))) {
    for (std::size_t i = 0; i < learners_.size(); ++i) {
      threads_.emplace_back([this, i] { work(i); });
    }
  }
  Threads(Threads const&) = delete;
  Threads& operator=(Threads const&) = delete;
  ~Threads() {
    for (auto& thread : threads_) thread.join();
  }

  /// Hands over seed after seed as they are done, then what went wrong.
  void deliver(Receiver const& receiver) {
    std::exception_ptr error;
    for (auto& slot : slots_) {
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return slot.done; });
      }
      try {
        for (auto const& experience : slot.experiences) receiver.experience(experience);
        if (slot.result) receiver.result(*slot.result);
      } catch (...) {
        interrupt();
        throw;
      }
      if (slot.error && (!error || is_interrupt(error))) error = slot.error;
    }
    if (error) std::rethrow_exception(error);
  }

 private:
  struct Slot {
    std::vector<ExperienceResult> experiences;
    std::optional<SeedResult> result;
    std::exception_ptr error;
    bool done = false;
  };

  void work(std::size_t number) {
    at::set_num_threads(static_cast<int>(config_.run.threads));  // of this thread's products
    std::optional<pawl::Fleet::Member> member;
    if (config_.run.fleet) member.emplace(learners_, number);
    for (;;) {
      std::size_t k = 0;
      {
        std::lock_guard lock(mutex_);
        if (next_ == slots_.size()) return;
        k = next_++;
      }
      auto& slot = slots_[k];
      try {
        if (interrupted()) throw Interrupted{};
        if (!failed_) {
          slot.result =
              run_named(config_, data_, config_.run.first_seed + static_cast<std::int64_t>(k), "",
                        [&](ExperienceResult const& r) { slot.experiences.push_back(r); });
        }
      } catch (...) {
        slot.error = std::current_exception();
        failed_ = true;  // those that are running finish, others do not begin
      }
      std::lock_guard lock(mutex_);
      slot.done = true;
      ++finished_;
      if (terminal_) {
        std::fprintf(stderr, "\r\033[K%zu of %zu seeds", finished_, slots_.size());
        if (finished_ == slots_.size()) std::fputs("\r\033[K", stderr);
      }
      changed_.notify_all();
    }
  }

  static bool is_interrupt(std::exception_ptr const& error) {
    try {
      std::rethrow_exception(error);
    } catch (Interrupted const&) {
      return true;
    } catch (...) {
      return false;
    }
  }

  Config const& config_;
  pawl::TrainTest const& data_;
  std::vector<Slot> slots_;
  pawl::Fleet learners_;
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::size_t next_ = 0, finished_ = 0;
  std::atomic<bool> failed_ = false;
  bool terminal_ = ::isatty(STDERR_FILENO) != 0;
};

}  // namespace

void run_seeds(Config const& config, pawl::TrainTest const& data, Receiver const& receiver) {
  if (config.run.jobs == 1 || config.run.seeds == 1) return run_in_turn(config, data, receiver);
  Threads(config, data).deliver(receiver);
}

}  // namespace bench
