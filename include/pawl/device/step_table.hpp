#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "../core/error.hpp"

namespace pawl {
inline namespace v0 {

/// What the host decides about the steps ahead of a device: one row of numbers per step (which
/// rows, drawn from which slots, written to which), which lies on the device before the steps run.
/// A recorded step reads its row and moves on to the next.
///
/// Steps do not see the table. They call `upload`, `constant` and `depends_on`, which mean
/// something else while a step is watched, planned or recorded.
class StepTable {
 public:
  enum class Mode {
    watch,  ///< the step runs as written; its numbers are counted
    plan,   ///< what the host decides is noted, work for the device is left out
    record  ///< the step becomes a graph, which finds its numbers in the table
  };

  /// Makes a table that of this thread for a scope, for the numbers of one step.
  class Scope {
   public:
    Scope(StepTable& table, Mode mode) : before_(std::exchange(current(), &table)) {
      table.mode_ = mode;
      table.start_row();
    }
    ~Scope() { current() = before_; }
    Scope(Scope const&) = delete;
    Scope& operator=(Scope const&) = delete;

   private:
    StepTable* before_;
  };

  /// The table of this thread; nullptr outside of every scope.
  static StepTable*& current() {
    static thread_local StepTable* table = nullptr;
    return table;
  }
  static bool in(Mode mode) { return current() != nullptr && current()->mode_ == mode; }

  explicit StepTable(torch::Device device) : device_(device) {}

  /// Makes room on the device. Returns whether there was enough: if not, graphs that read the
  /// former table are void.
  bool reserve(std::int64_t rows, std::int64_t width) {
    if (table_.defined() && table_.size(0) >= rows && table_.size(1) >= width) return true;
    auto const options = torch::TensorOptions(torch::kInt64).device(device_);
    table_ = torch::zeros({rows, width}, options);
    at_ = torch::zeros({1}, options);
    return false;
  }

  // ---- the numbers of one step ----

  void start_row() {
    row_.clear(), signature_.clear(), places_.clear();
    now_.reset();
  }
  std::int64_t width() const { return static_cast<std::int64_t>(row_.size()); }
  /// What the planned step depends on apart from the numbers in its row.
  std::vector<std::int64_t> const& signature() const { return signature_; }
  /// Memory that the planned step reads or writes, and may be elsewhere in another step.
  std::vector<void const*> const& places() const { return places_; }

  /// The planned (or recorded) step is to run.
  void keep_row() {
    rows_.insert(rows_.end(), row_.begin(), row_.end());
    rows_.resize(static_cast<std::size_t>(++kept_ * table_.size(1)), 0);
  }

  /// Copies the kept rows to the device, in one go, and goes back to the first.
  void send() {
    auto const host = at::from_blob(rows_.data(), {kept_, table_.size(1)}, torch::kInt64);
    // Nobody waits: LibTorch keeps pinned memory until it is there.
    table_.narrow(0, 0, kept_).copy_(host.pin_memory(), /*non_blocking=*/true);
    at_.zero_();
    kept_ = 0, rows_.clear();
  }

  /// First and last work of a recorded step.
  void start_recording() { now_ = table_.index_select(0, at_).flatten(); }
  void end_recording() { at_.add_(1); }

  // ---- behind the functions below ----

  Tensor put(Tensor const& numbers) {
    auto const flat = numbers.contiguous();
    require(flat.element_size() == 8, {"upload: give int64 or float64, not ", flat.dtype()});
    auto const begin = width(), n = flat.numel();
    row_.resize(static_cast<std::size_t>(begin + n));
    if (n > 0) std::memcpy(row_.data() + begin, flat.data_ptr(), flat.nbytes());
    if (mode_ == Mode::plan) {
      signature_.push_back(n);
      return torch::empty(numbers.sizes(), numbers.options().device(device_));
    }
    if (mode_ == Mode::watch) return numbers.to(device_);
    require(begin + n <= now_.numel(), "a step to record uploads more numbers than before");
    auto const here = now_.narrow(0, begin, n);
    return (numbers.is_floating_point() ? here.view(torch::kFloat64) : here).view(numbers.sizes());
  }

  void depends_on(std::int64_t number) {
    if (mode_ == Mode::plan) signature_.push_back(number);
  }

  void depends_on_place(void const* place) {
    if (mode_ == Mode::plan) places_.push_back(place);
  }

  Tensor constant(Tensor const& host) {
    for (std::size_t i = 0; i < constants_.size(); ++i) {
      auto const& known = constants_[i];
      if (known.scalar_type() == host.scalar_type() && known.equal(host)) return copies_[i];
    }
    require(mode_ != Mode::record, "it makes numbers on the host that differ from step to step");
    auto const copy = host.to(device_);
    if (constants_.size() < 64) {  // more cannot be constants
      constants_.push_back(host.clone());
      copies_.push_back(copy);
    }
    return copy;
  }

 private:
  torch::Device device_;
  Mode mode_ = Mode::watch;
  std::vector<std::int64_t> row_, signature_;  // of the present step
  std::vector<void const*> places_;
  std::vector<std::int64_t> rows_;  // kept, padded to the width of the table
  std::int64_t kept_ = 0;
  Tensor table_;  // [rows, width] int64 on the device
  Tensor at_;     // [1] int64 on the device: the row of the next recorded step
  Tensor now_;    // [width] the row of the step that is being recorded
  std::vector<Tensor> constants_, copies_;  // on the host; the same on the device
};

/// Numbers (int64 or float64, host) that the host decides anew in every step, on the device.
inline Tensor upload(Tensor const& numbers, torch::Device device) {
  auto* table = StepTable::current();
  return table == nullptr || device.is_cpu() ? numbers.to(device) : table->put(numbers);
}

/// The same of one number, [] float64.
inline Tensor upload(double number, torch::Device device) {
  if (StepTable::current() == nullptr) {  // nobody waits
    return torch::full({}, number, torch::TensorOptions(torch::kFloat64).device(device));
  }
  return upload(torch::tensor(number, torch::kFloat64), device);
}

/// Values (host) that are the same in all steps of an experience that are alike, on the device.
inline Tensor constant(Tensor const& values, torch::Device device) {
  auto* table = StepTable::current();
  return table == nullptr || device.is_cpu() ? values.to(device) : table->constant(values);
}

/// Says that the work of the present step depends on a number of the host that is not uploaded.
inline void depends_on(std::int64_t number) {
  if (auto* table = StepTable::current()) table->depends_on(number);
}
inline void depends_on(double number) {
  std::int64_t bits = 0;
  std::memcpy(&bits, &number, sizeof bits);
  depends_on(bits);
}

/// The same of memory.
inline void depends_on_place(void const* place) {
  if (auto* table = StepTable::current()) table->depends_on_place(place);
}

/// Whether a step is being planned: the host decides, and work for the device is left out.
inline bool planning() { return StepTable::in(StepTable::Mode::plan); }
/// Whether a step is being recorded: nothing may wait for the device or copy to it.
inline bool recording() { return StepTable::in(StepTable::Mode::record); }

}  // namespace v0
}  // namespace pawl
