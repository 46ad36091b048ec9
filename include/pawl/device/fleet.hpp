#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "../core/error.hpp"

namespace pawl {
inline namespace v0 {

/// Learners that are alike but for their seeds, and learn at the same time on one device, each in a
/// thread of its own. One small model keeps a few percent of a device busy; a fleet's steps become
/// one graph, in which products of all members are one, and what is a member's own runs beside the
/// others' (see `CapturedSteps`).
/// @code
///   Fleet fleet(seeds);
///   // in thread number i:
///   Fleet::Member member(fleet, i);
///   Learner learner{...};
///   for (auto const& experience : stream) learner.fit(experience, training);
/// @endcode
/// All wait at the start of an experience until each has come to one, or is a member no longer; so
/// every number has to become one. While members learn different things (an experience of another
/// length, another composition) each goes on by itself.
class Fleet {
 public:
  /// `size` threads become members, with numbers from 0.
  explicit Fleet(std::size_t size) : at_work_(size, true), requests_(size, nullptr) {}
  Fleet(Fleet const&) = delete;
  Fleet& operator=(Fleet const&) = delete;
  std::size_t size() const { return at_work_.size(); }

  class Member;
  /// The membership of this thread, or nullptr.
  static Member* here() { return current(); }
  /// The same while the members record their steps together.
  static Member* recording();

 private:
  /// What a member brings to a meeting. All of a meeting bring the same kind.
  struct Request {
    void const* kind = nullptr;
    void* brought = nullptr;
    std::optional<c10::Event> asked{};  ///< what the device was asked for before
  };
  using Requests = c10::SmallVector<Request*, 16>;

  /// A tensor whose rows belong to the members.
  struct Shared {
    Tensor rows{};  ///< [size, n]
    std::vector<bool> taken{};
    std::optional<c10::Event> made{};
  };

  static Member*& current() {
    static thread_local Member* member = nullptr;
    return member;
  }

  std::size_t members() const {
    return static_cast<std::size_t>(std::count(at_work_.begin(), at_work_.end(), true));
  }

  /// Who does the work of a meeting.
  std::size_t leader() const {
    return static_cast<std::size_t>(std::find(at_work_.begin(), at_work_.end(), true) -
                                    at_work_.begin());
  }

  /// Under the lock: all members have come to the start of an experience, or ended.
  void open_when_complete() {
    if (entered_.empty() || entered_.size() < members()) return;
    whole_ = entered_.size() > 1;
    for (auto const& like : entered_) whole_ = whole_ && !like.empty() && like == entered_.front();
    entered_.clear();
    arrived_ = 0;
    ++openings_;
    changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<bool> at_work_;         // by number
  std::vector<std::string> entered_;  // what those are that wait for the start of an experience
  std::int64_t openings_ = 0;
  bool whole_ = false;  // all members are in the same experience, and nobody has left it
  std::vector<Request*> requests_;  // by number
  std::size_t arrived_ = 0;
  std::int64_t meetings_ = 0;
  std::optional<c10::Event> done_;  // what the last meeting asked the device for
  std::vector<Shared> shared_;
};

/// The membership of a thread, for a scope.
class Fleet::Member {
 public:
  Member(Fleet& fleet, std::size_t number) : fleet_(fleet), number_(number) {
    require(number < fleet.at_work_.size(),
            {"Fleet: number ", number, " is to be a member, but the fleet is of ",
             fleet.at_work_.size(), "; give a number below ", fleet.at_work_.size()});
    require(current() == nullptr, "Fleet: a thread is one member at a time, and this one is one");
    current() = this;
  }
  ~Member() {
    current() = nullptr;
    std::lock_guard const lock(fleet_.mutex_);
    fleet_.at_work_[number_] = false;
    fleet_.whole_ = false;
    fleet_.changed_.notify_all();
    fleet_.open_when_complete();
  }
  Member(Member const&) = delete;
  Member& operator=(Member const&) = delete;

  /// Waits until every member has come to the start of an experience. `like` says what this one is
  /// about to do; the fleet is whole, until somebody leaves, if that is the same for all. Empty: it
  /// goes on by itself.
  void enter(std::string const& like) {
    std::unique_lock lock(fleet_.mutex_);
    fleet_.entered_.push_back(like);
    auto const opening = fleet_.openings_;
    fleet_.open_when_complete();
    fleet_.changed_.wait(lock, [&] { return fleet_.openings_ != opening; });
  }
  /// This member goes on by itself until it enters the next experience, and so do the others.
  void leave() {
    std::lock_guard const lock(fleet_.mutex_);
    fleet_.whole_ = false;
    fleet_.changed_.notify_all();
  }

  /// Waits for all members; then one of them, the same in every meeting, does `work(all)` for
  /// everybody, where `all` points to what each brought, in their order. Returns false, and nothing
  /// was done, when the fleet is not whole. Throws where the work did, and the fleet is whole no
  /// longer.
  template <class Mine, class Work>
  bool agree(Mine& mine, Work&& work) {
    return meet(std::nullopt, mine, work);
  }
  /// The same with work for a device: it comes after what members have asked for before, and what
  /// they ask for later comes after it.
  template <class Mine, class Work>
  bool meet(std::optional<torch::Device> device, Mine& mine, Work&& work) {
    static char const kind = 0;  // one for every type of work
    Request request{&kind, &mine, {}};
    return meet_with(request, device, [&](Requests const& requests) {
      c10::SmallVector<Mine*, 16> all{&mine};  // who does the work comes first
      for (std::size_t i = 1; i < requests.size(); ++i) {
        all.push_back(static_cast<Mine*>(requests[i]->brought));
      }
      work(all);
    });
  }

  /// Zeros [n] on a device, which are a row of a tensor that all members have a row of, if they ask
  /// for the same; for the k-th time, of the k-th such tensor.
  Tensor room(std::int64_t n, at::TensorOptions const& options);

  /// Whether the members record their steps together at present.
  bool recording() const { return recording_; }
  void recording(bool now) { recording_ = now; }

 private:
  bool meet_with(Request& mine, std::optional<torch::Device> device,
                 c10::function_ref<void(Requests const&)> work);

  Fleet& fleet_;
  std::size_t number_;
  bool recording_ = false;
};

inline Fleet::Member* Fleet::recording() {
  return here() != nullptr && here()->recording() ? here() : nullptr;
}

inline bool Fleet::Member::meet_with(Request& mine, std::optional<torch::Device> device,
                                     c10::function_ref<void(Requests const&)> work) {
  auto& f = fleet_;
  auto const stream = [&] {
    return c10::impl::VirtualGuardImpl(device->type()).getStream(*device);
  };
  if (device) mine.asked.emplace(device->type()), mine.asked->record(stream());
  std::unique_lock lock(f.mutex_);
  if (!f.whole_) return false;
  f.requests_[number_] = &mine;
  ++f.arrived_;
  f.changed_.notify_all();
  auto const meeting = f.meetings_;
  if (number_ == f.leader()) {
    f.changed_.wait(lock, [&] { return f.arrived_ == f.members() || !f.whole_; });
    if (!f.whole_) return false;
    Requests all;
    for (std::size_t i = 0; i < f.requests_.size(); ++i) {
      if (f.at_work_[i]) all.push_back(f.requests_[i]);
    }
    try {
      for (auto* each : all) {
        require(each->kind == mine.kind, "members of a fleet do different things");
        if (device) each->asked->block(stream());
      }
      work(all);
      if (device) f.done_.emplace(device->type()), f.done_->record(stream());
    } catch (...) {
      f.whole_ = false;
      f.changed_.notify_all();
      throw;
    }
    f.arrived_ = 0;
    ++f.meetings_;
    f.changed_.notify_all();
    return true;
  }
  f.changed_.wait(lock, [&] { return f.meetings_ != meeting || !f.whole_; });
  if (f.meetings_ == meeting) return false;
  if (device) f.done_->block(stream());
  return true;
}

inline Tensor Fleet::Member::room(std::int64_t n, at::TensorOptions const& options) {
  auto& f = fleet_;
  std::lock_guard const lock(f.mutex_);
  c10::Stream const stream =
      c10::impl::VirtualGuardImpl(options.device().type()).getStream(options.device());
  auto const is_for_me = [&](Shared const& shared) {
    return !shared.taken[number_] && shared.rows.size(1) == n &&
           shared.rows.options().type_equal(options) && shared.rows.device() == options.device();
  };
  auto found = std::find_if(f.shared_.begin(), f.shared_.end(), is_for_me);
  if (found == f.shared_.end()) {
    auto const size = static_cast<std::int64_t>(f.at_work_.size());
    f.shared_.push_back({torch::zeros({size, n}, options), std::vector<bool>(f.at_work_.size())});
    found = f.shared_.end() - 1;
    found->made.emplace(options.device().type());
    found->made->record(stream);
  } else {
    found->made->block(stream);
  }
  found->taken[number_] = true;
  // A row with a version of its own: that others write to theirs is no change to it.
  auto row = found->rows.select(0, static_cast<std::int64_t>(number_)).variable_data();
  if (std::count(found->taken.begin(), found->taken.end(), false) == 0) f.shared_.erase(found);
  return row;
}

}  // namespace v0
}  // namespace pawl
