#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <utility>
#include <vector>

#include "../core/archive.hpp"
#include "../core/data.hpp"
#include "../core/error.hpp"
#include "../core/random.hpp"
#include "../device/step_table.hpp"

namespace pawl {
inline namespace v0 {

/// Where a memory keeps its rows: columns with M+1 slots each, allocated at the first insertion on
/// the device of the rows, and the host's account of which slots are filled. Slot M is never
/// read: rejected rows are written there, so an insertion is one index copy per column, of a shape
/// that does not depend on what was accepted. Copies are deep.
///
/// Columns may appear late: rows stored before have task and id -1 and logits NaN. Logits may have
/// more columns later (a growing head): the storage widens, and NaN means "this row was stored
/// without that logit". Compare stored logits where they are not NaN.
class Slots {
 public:
  Slots() = default;
  Slots(Slots const& other) { *this = other; }
  Slots& operator=(Slots const& other);
  Slots(Slots&&) = default;
  Slots& operator=(Slots&&) = default;

  std::int64_t capacity() const { return capacity_; }  ///< M, and the number of the trash slot
  std::int64_t size() const { return next_ - static_cast<std::int64_t>(free_.size()); }
  bool empty() const { return size() == 0; }
  std::int64_t seen() const { return seen_; }  ///< rows that were ever offered

  /// Slots that hold a row, ascending.
  std::vector<std::int64_t> held() const;
  /// The rows in the given slots, in that order.
  Rows take(std::vector<std::int64_t> const& slots) const;
  /// n rows, uniformly without replacement; all, in the order of the slots, when no more are held.
  Rows draw(std::int64_t n, Generator generator) const;
  /// All rows held, in the order of the slots.
  Rows contents() const { return take(held()); }
  /// The columns as stored [M+1, ...]; `labels`, `task` and `id` lie on the host.
  Rows const& columns() const { return columns_; }

  /// Fixes the capacity, at the first insertion. Throws when it is negative or was changed since.
  void open(char const* owner, std::int64_t capacity);
  /// Adds slots at the end.
  void grow(std::int64_t more) { capacity_ += more; }
  /// The lowest slot that is not filled; there must be one.
  std::int64_t acquire();
  /// Empties a slot.
  void release(std::int64_t slot);

  /// Decides slot after slot for rows in stream order: `place(label, task, generator)` returns a
  /// slot or -1; the generator is that of the row. Returns destinations in [0, M]; where two rows
  /// got the same slot, the later one keeps it.
  std::vector<std::int64_t> plan(
      at::IntArrayRef labels, at::IntArrayRef tasks, Generator generator,
      c10::function_ref<std::int64_t(std::int64_t, std::int64_t, Generator)> place);

  /// Throws unless the rows are complete and of the kind that is stored.
  void check(char const* owner, Rows const& rows) const;
  /// Copies rows into the slots that were planned for them.
  void write(Rows const& rows, std::vector<std::int64_t> const& slots);

  void state(Archive& a);

 private:
  /// What a row has in a column that it came without.
  static double absent(Tensor Rows::*column) {
    return column == &Rows::logits ? std::numeric_limits<double>::quiet_NaN() : -1;
  }
  void reserve(Tensor Rows::*column, Tensor const& like);
  void place(Tensor const& values, std::vector<std::int64_t> const& slots,
             Tensor const& stored) const;
  Tensor values_for(Tensor Rows::*column, Rows const& rows);
  void share_labels();
  bool on_device(Tensor Rows::*column) const {
    return (columns_.*column).defined() && !(columns_.*column).is_cpu();
  }
  /// Rows of a column; while a step is planned, of a column on a device, any rows as many.
  static Tensor select(Tensor const& column, Tensor const& index) {
    if (!planning() || column.is_cpu()) return column.index_select(0, index);
    depends_on_place(column.data_ptr());
    return column.narrow(0, 0, index.numel());
  }

  Rows columns_;
  std::int64_t capacity_ = -1;
  std::int64_t next_ = 0;           // slots below were handed out at some time
  std::vector<std::int64_t> free_;  // handed back, descending
  std::int64_t seen_ = 0;
};

/// `insert` of every memory of ours: plan on the host, then one copy per column.
template <class M>
void insert_planned(M& memory, Rows const& rows, Generator generator) {
  if (!rows.stored.defined() && !rows.y.defined() && !rows.labels.defined()) return;
  // Checked before the plan, so that a refused insertion changes nothing.
  memory.slots.check(M::name, rows);
  if (rows.size() == 0) return;
  auto const labels = rows.labels.contiguous();
  auto const tasks = rows.task.defined() ? rows.task.contiguous() : Tensor();
  memory.slots.write(rows, memory.place(host_column(labels), generator, host_column(tasks)));
}

inline void Slots::check(char const* owner, Rows const& rows) const {
  auto const n = rows.size();
  require(
      rows.stored.defined() && rows.y.defined() && rows.labels.defined(),
      {owner, ": rows to insert need `stored` [n, ...], `y` [n], and `labels` [n] on the host"});
  for (auto const column : Rows::columns()) {
    auto const& values = rows.*column;
    require(!values.defined() || values.size(0) == n,
            {owner, ": a column of the rows to insert has ", values.defined() ? values.size(0) : 0,
             " rows, the others have ", n, "; give all columns the same length"});
    if (column != &Rows::labels && column != &Rows::task && column != &Rows::id) continue;
    require(
        !values.defined() || (values.device().is_cpu() && values.scalar_type() == torch::kInt64),
        {owner, ": labels, task and id of rows must be int64 on the host"});
  }
  require(!rows.logits.defined() || rows.logits.dim() == 2,
          {owner, ": logits are ", rows.logits.defined() ? rows.logits.sizes() : rows.y.sizes(),
           " but must be [n, C]"});
  auto const& before = columns_.stored;
  if (!before.defined()) return;
  require(before.sizes().slice(1) == rows.stored.sizes().slice(1) &&
              before.scalar_type() == rows.stored.scalar_type(),
          {owner, ": holds rows ", before.sizes().slice(1), " ", before.scalar_type(),
           " and was given ", rows.stored.sizes().slice(1), " ", rows.stored.scalar_type(),
           "; keep one memory per kind of rows"});
}

inline Slots& Slots::operator=(Slots const& other) {
  if (this == &other) return *this;
  capacity_ = other.capacity_;
  next_ = other.next_;
  free_ = other.free_;
  seen_ = other.seen_;
  columns_ = {};
  for (auto const column : Rows::columns()) {
    if ((other.columns_.*column).defined()) columns_.*column = (other.columns_.*column).clone();
  }
  share_labels();
  return *this;
}

/// On the CPU `y` and `labels` are one tensor.
inline void Slots::share_labels() {
  if (!columns_.labels.defined()) return;
  auto const device = columns_.stored.device();
  columns_.y = device.is_cpu() ? columns_.labels : columns_.labels.to(device);
}

inline std::vector<std::int64_t> Slots::held() const {
  std::vector<std::int64_t> slots;
  slots.reserve(static_cast<std::size_t>(size()));
  auto free = free_.size();  // from its end on: ascending
  for (std::int64_t slot = 0; slot < next_; ++slot) {
    if (free > 0 && free_[free - 1] == slot) {
      --free;
    } else {
      slots.push_back(slot);
    }
  }
  return slots;
}

inline Rows Slots::take(std::vector<std::int64_t> const& slots) const {
  Rows rows;
  if (!columns_.stored.defined()) return rows;
  auto const index = torch::tensor(slots, torch::kInt64);
  auto const there = upload(index, columns_.stored.device());
  for (auto const column : Rows::columns()) {
    auto const& from = columns_.*column;
    if (!from.defined() || column == &Rows::y) continue;
    rows.*column = select(from, from.device().is_cpu() ? index : there);
  }
  rows.y = there.is_cpu() ? rows.labels : select(columns_.y, there);
  return rows;
}

inline Rows Slots::draw(std::int64_t n, Generator generator) const {
  require(n >= 0, {"a memory was asked for ", n, " rows; ask for 0 or more"});
  if (n >= size()) return contents();
  auto chosen = generator.sample(n, size());
  if (free_.empty()) return take(chosen);  // slot number = position
  auto const slots = held();
  for (auto& position : chosen) position = slots[static_cast<std::size_t>(position)];
  return take(chosen);
}

inline void Slots::open(char const* owner, std::int64_t capacity) {
  require(capacity >= 0, {owner, ": capacity is ", capacity, " but must be >= 0"});
  if (capacity_ < 0) capacity_ = capacity;
  require(capacity == capacity_, {owner, ": capacity was changed from ", capacity_, " to ",
                                  capacity, " after rows were stored; make a new memory"});
}

inline std::int64_t Slots::acquire() {
  if (free_.empty()) return next_++;
  auto const slot = free_.back();
  free_.pop_back();
  return slot;
}

inline void Slots::release(std::int64_t slot) {
  free_.insert(std::upper_bound(free_.begin(), free_.end(), slot, std::greater<>()), slot);
}

inline std::vector<std::int64_t> Slots::plan(
    at::IntArrayRef labels, at::IntArrayRef tasks, Generator generator,
    c10::function_ref<std::int64_t(std::int64_t, std::int64_t, Generator)> place) {
  require(tasks.empty() || tasks.size() == labels.size(),
          {"a memory was given ", labels.size(), " labels but ", tasks.size(), " task ids"});
  for (auto const label : labels) {
    require(label >= 0, {"a memory was given the label ", label,
                         "; labels are numbers of network outputs, from 0"});
  }
  std::vector<std::int64_t> slots(labels.size());
  for (std::size_t i = 0; i < labels.size(); ++i) {
    slots[i] = place(labels[i], tasks.empty() ? -1 : tasks[i], generator.fork(seen_++));
  }
  std::vector<bool> taken(static_cast<std::size_t>(capacity_), false);
  for (auto i = slots.size(); i-- > 0;) {
    auto const at = static_cast<std::size_t>(slots[i]);
    if (slots[i] < 0 || taken[at]) {
      slots[i] = capacity_;
    } else {
      taken[at] = true;
    }
  }
  return slots;
}

/// Makes room in a column for rows like these: at first, after growth, for wider logits, on a new
/// device.
inline void Slots::reserve(Tensor Rows::*column, Tensor const& like) {
  auto& stored = columns_.*column;
  auto shape = like.sizes().vec();
  shape[0] = capacity_ + 1;
  if (column == &Rows::logits && stored.defined()) shape[1] = std::max(shape[1], stored.size(1));
  if (stored.defined() && stored.sizes().vec() == shape && stored.device() == like.device()) return;
  require(!planning(), "a memory changed its columns in a step that was planned");
  auto const old = stored;
  auto const options = old.defined() ? old.options().device(like.device()) : like.options();
  stored = column == &Rows::stored ? torch::zeros(shape, options)
                                   : torch::full(shape, absent(column), options);
  if (!old.defined()) return;
  auto const kept = std::min(old.size(0), capacity_ + 1) - 1;  // without the old trash slot
  auto part = stored.narrow(0, 0, kept);
  if (column == &Rows::logits) part = part.narrow(1, 0, old.size(1));
  part.copy_(old.narrow(0, 0, kept));
}

/// The rows' values for a column, filled up where they have none. Undefined where nothing is
/// stored.
inline Tensor Slots::values_for(Tensor Rows::*column, Rows const& rows) {
  auto const& stored = columns_.*column;
  auto values = rows.*column;
  if (values.defined()) {
    if (column == &Rows::logits) values = values.detach().to(rows.stored.device());
    reserve(column, values);
  }
  if (!stored.defined()) return {};
  auto shape = stored.sizes().vec();
  shape[0] = rows.size();
  if (!values.defined()) {
    reserve(column, stored.new_empty(shape));
    return stored.new_full(shape, absent(column));
  }
  if (column != &Rows::logits || values.size(1) == stored.size(1)) return values;
  auto wide = stored.new_full(shape, absent(column));
  wide.narrow(1, 0, values.size(1)).copy_(values);
  return wide;
}

inline void Slots::write(Rows const& rows, std::vector<std::int64_t> const& slots) {
  if (capacity_ == 0) return;
  torch::NoGradGuard no_grad;
  auto const device = rows.stored.device();
  Tensor there;
  if (!device.is_cpu()) there = upload(torch::tensor(slots, torch::kInt64), device);
  for (auto const column : Rows::columns()) {
    if (column == &Rows::y || (planning() && on_device(column))) continue;
    auto const values = values_for(column, rows);
    auto const& stored = columns_.*column;
    if (!values.defined()) continue;
    if (stored.is_cpu()) {
      place(values.to(stored.scalar_type()).contiguous(), slots, stored);
    } else {
      stored.index_copy_(0, there, values.to(stored.scalar_type()));
    }
  }
  auto const& y = columns_.y;
  if (device.is_cpu() || !y.defined() || y.size(0) != capacity_ + 1 || y.device() != device) {
    share_labels();
  } else if (!planning()) {
    y.index_copy_(0, there, rows.y);
  }
}

/// Copies row i of `values` to row slots[i] of `stored`, both contiguous on the host, but for those
/// that have no slot. For a few rows `index_copy_` would take many times as long.
inline void Slots::place(Tensor const& values, std::vector<std::int64_t> const& slots,
                         Tensor const& stored) const {
  if (slots.empty()) return;
  auto const bytes = values.nbytes() / slots.size();
  auto const* source = static_cast<char const*>(values.data_ptr());
  auto* target = static_cast<char*>(stored.data_ptr());
  for (auto const slot : slots) {
    if (slot < capacity_)
      std::memcpy(target + static_cast<std::size_t>(slot) * bytes, source, bytes);
    source += bytes;
  }
}

inline void Slots::state(Archive& a) {
  a("capacity", capacity_);
  a("next", next_);
  a("free", free_);
  a("seen", seen_);
  a("stored", columns_.stored);
  a("labels", columns_.labels);
  a("task", columns_.task);
  a("logits", columns_.logits);
  a("id", columns_.id);
  if (a.mode == Archive::Mode::count && columns_.stored.defined() &&
      !columns_.stored.device().is_cpu()) {
    a("y", columns_.y);  // a copy of the labels on the device
  }
  if (!a.loading()) return;
  columns_.y = Tensor();
  if (!columns_.stored.defined()) return;
  columns_.stored = columns_.stored.to(a.device);
  if (columns_.logits.defined()) columns_.logits = columns_.logits.to(a.device);
  for (auto const column : {&Rows::labels, &Rows::task, &Rows::id}) {
    if ((columns_.*column).defined()) columns_.*column = (columns_.*column).cpu();
  }
  share_labels();
}

}  // namespace v0
}  // namespace pawl
