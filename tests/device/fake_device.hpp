#pragma once

// A device that lies in the host's memory, for tests of what is done to a device: it counts copies
// and waits, and records and replays like a CUDA graph. Its kernels are those of the CPU.
//
// While it records, kernels are noted and not run: their results are bytes of 0xEE, as a recorded
// value is worth nothing before the replay. A copy from or to the host, a wait and a result whose
// size depends on values are refused, as CUDA refuses them. A replay runs the same kernels on the
// same memory with the same numbers as when they were recorded.
//
// Threads may share it, each with a stream of its own, which is what records; one kernel runs at a
// time. Copies to pinned memory of the host that nobody waits for arrive when the host waits for an
// event after them. Nothing else runs beside the host, so another missing wait does not show.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/GraphImplInterface.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/HPUHooksInterface.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/empty_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>
#include <torch/types.h>

namespace fake {

using at::Tensor;
using torch::jit::Stack;

inline constexpr auto type = c10::DeviceType::HPU;
inline c10::Device device() { return {type, 0}; }

/// A kernel with its operands, seen from the host, and the memory of its results.
struct Kernel {
  c10::OperatorHandle op;
  Stack operands;
  std::vector<Tensor> results;
};

/// What is being recorded, or was. As with CUDA, memory that is made meanwhile belongs to the
/// recording; all other is only known by its address, and must still be there at the replay.
struct Recording {
  std::vector<Kernel> kernels;
  std::vector<c10::Storage> own;
  std::vector<std::pair<std::string, c10::weak_intrusive_ptr<c10::StorageImpl>>> others;
  c10::StreamId first = 0;  ///< the stream that it began on
  /// By stream: kernels that it noted, and those of them that the first stream waits for.
  std::map<c10::StreamId, std::size_t> asked, awaited;
};

/// A point in a stream.
struct Event {
  c10::StreamId stream = 0;
  Recording* recording = nullptr;
  std::size_t asked = 0;
  std::size_t copies = 0;  ///< to pinned memory that were asked for before
};

/// Held by whoever asks something of the device.
inline std::unique_lock<std::recursive_mutex> alone() {
  static std::recursive_mutex mutex;
  return std::unique_lock(mutex);
}

/// A copy to pinned memory that has not arrived.
struct Copy {
  Tensor from, to;
};
inline std::vector<Copy> copies;  ///< of all streams; those that arrived are undefined

/// Memory of the host that copies may arrive in later, as the only one.
struct Pinned final : c10::Allocator {
  static std::vector<void const*>& all() {
    static std::vector<void const*> blocks;
    return blocks;
  }
  static bool has(void const* data) {
    auto const lock = alone();
    return std::find(all().begin(), all().end(), data) != all().end();
  }
  static void release(void* data) {
    auto const lock = alone();
    std::erase(all(), data);
    std::free(data);
  }
  c10::DataPtr allocate(std::size_t bytes) override {
    auto const lock = alone();
    void* data = std::malloc(std::max<std::size_t>(bytes, 1));
    all().push_back(data);
    return {data, data, &release, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, void const* from, std::size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }
};

/// What was asked of the device since the counts were last cleared.
struct Counts {
  std::int64_t to_device = 0, to_host = 0;  ///< copies
  std::int64_t waits = 0;                   ///< of the host, for a value
  std::int64_t kernels = 0;                 ///< asked for one by one
  std::int64_t recorded = 0, replays = 0;   ///< graphs
  std::int64_t stacked = 0;                 ///< recorded products of many matrices at once
};
inline Counts counts;

/// The stream of this thread.
inline c10::StreamId& stream() {
  static thread_local c10::StreamId id = 0;
  return id;
}

/// What is being recorded, by stream.
inline std::map<c10::StreamId, Recording*> recordings;
inline Recording* recording() {
  auto const lock = alone();
  auto const found = recordings.find(stream());
  return found == recordings.end() ? nullptr : found->second;
}

inline void refuse_while_recording(std::string const& what) {
  if (recording() != nullptr) {
    throw std::runtime_error(what + " is not permitted when a stream is capturing");
  }
}

/// The same memory, seen as a tensor of the host. An empty one may be a result to be sized.
inline Tensor on_host(Tensor const& tensor) {
  if (!tensor.defined() || tensor.device().type() != type) return tensor;
  if (tensor.numel() == 0) return at::empty(tensor.sizes(), tensor.options().device(c10::kCPU));
  return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(),
                       tensor.options().device(c10::kCPU));
}

/// Zeros of the same shape: to learn the shape of a result without its value.
inline Tensor stand_in(Tensor const& tensor) {
  if (!tensor.defined()) return tensor;
  return at::zeros_like(tensor, tensor.options().device(c10::kCPU), at::MemoryFormat::Contiguous);
}

template <class F>
void change_tensors(Stack& values, F&& f) {
  for (auto& value : values) {
    if (value.isTensor()) {
      value = f(value.toTensor());
    } else if (value.isTensorList()) {
      auto list = value.toTensorVector();
      for (auto& each : list) each = f(each);
      value = c10::List<Tensor>(list);
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> list;
      for (std::optional<Tensor> each : value.toOptionalTensorList()) {
        list.push_back(each ? std::optional<Tensor>(f(*each)) : each);
      }
      value = list;
    }
  }
}

/// New memory of the device in the form of a tensor of the host.
inline Tensor like(Tensor const& result) {
  return at::empty_strided(result.sizes(), result.strides(), result.options().device(device()));
}

/// Gives an operand that was empty the size of the result that was written to it.
inline c10::IValue sized(c10::IValue const& operand, c10::IValue const& result) {
  if (!operand.isTensor() || !result.isTensor()) return operand;
  auto const& to = operand.toTensor();
  auto const& from = result.toTensor();
  if (to.numel() > 0 || from.numel() == 0) return operand;
  auto const made = like(from);
  to.unsafeGetTensorImpl()->set_storage_keep_dtype(made.storage());
  to.unsafeGetTensorImpl()->set_sizes_and_strides(made.sizes(), made.strides());
  if (recording() == nullptr) on_host(to).copy_(from);
  return operand;
}

/// The operand that a result is: `add_` returns what it changed.
inline int operand_of_result(c10::FunctionSchema const& schema, std::size_t which) {
  auto const* alias = schema.returns()[which].alias_info();
  if (alias == nullptr) return -1;
  for (std::size_t i = 0; i < schema.arguments().size(); ++i) {
    auto const* own = schema.arguments()[i].alias_info();
    if (own != nullptr && *own == *alias) return static_cast<int>(i);
  }
  return -1;
}

inline bool size_depends_on_values(std::string const& name) {
  return name.find("nonzero") != std::string::npos || name.find("unique") != std::string::npos ||
         name.find("masked_select") != std::string::npos;
}

/// Runs a kernel of the CPU on the memory of the device; `keep(i, value)` takes what is new memory.
template <class F>
Stack run(c10::OperatorHandle const& op, Stack const& operands, F&& keep) {
  auto values = operands;
  change_tensors(values, on_host);
  op.callBoxed(&values);
  for (std::size_t i = 0; i < values.size(); ++i) {
    auto const same = operand_of_result(op.schema(), i);
    if (same >= 0) {
      values[i] = sized(operands[static_cast<std::size_t>(same)], values[i]);
    } else if (values[i].isTensor() && values[i].toTensor().defined()) {
      values[i] = keep(i, values[i].toTensor());
    }
  }
  return values;
}

/// Notes a kernel and where its operands lie now: a parameter may lie elsewhere at the replay.
inline void note(c10::OperatorHandle const& op, Stack operands, std::vector<Tensor> results) {
  auto& into = *recording();
  change_tensors(operands, [&](Tensor const& tensor) {
    if (!tensor.defined() || tensor.device().type() != type) return tensor;
    auto const storage = tensor.storage();
    auto const own = std::any_of(into.own.begin(), into.own.end(),
                                 [&](auto const& other) { return other.is_alias_of(storage); });
    if (!own) {
      into.others.emplace_back(op.schema().name(), storage.getWeakStorageImpl());
    }
    return on_host(tensor);
  });
  ++into.asked[stream()];
  counts.stacked += op.schema().name().find("bmm") != std::string::npos;
  into.kernels.push_back({op, std::move(operands), std::move(results)});
}

/// Notes a kernel. What it would give is asked of the CPU with zeros for all operands.
inline Stack record(c10::OperatorHandle const& op, Stack const& operands) {
  if (size_depends_on_values(op.schema().name())) refuse_while_recording(op.schema().name());
  auto values = operands;
  change_tensors(values, stand_in);
  op.callBoxed(&values);
  std::vector<Tensor> results(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (!values[i].isTensor()) refuse_while_recording(op.schema().name());
    auto const same = operand_of_result(op.schema(), i);
    if (same >= 0) {
      values[i] = sized(operands[static_cast<std::size_t>(same)], values[i]);
    } else if (values[i].toTensor().defined()) {
      results[i] = like(values[i].toTensor());
      if (results[i].numel() > 0) std::memset(results[i].data_ptr(), 0xEE, results[i].nbytes());
      values[i] = results[i];
    }
  }
  note(op, operands, results);
  return values;
}

inline void kernel(c10::OperatorHandle const& op, Stack* stack) {
  auto const first = stack->end() - static_cast<std::ptrdiff_t>(op.schema().arguments().size());
  Stack const operands(first, stack->end());
  stack->erase(first, stack->end());
  Stack answer;
  auto const lock = alone();
  if (recording() != nullptr) {
    answer = record(op, operands);
  } else {
    answer = run(op, operands, [](std::size_t, Tensor const& value) {
      auto const result = like(value);
      on_host(result).copy_(value);
      return result;
    });
    ++counts.kernels;
    counts.waits += size_depends_on_values(op.schema().name());
    for (auto const& value : answer) counts.waits += !value.isTensor();
  }
  stack->insert(stack->end(), answer.begin(), answer.end());
}

inline Tensor copy_from(Tensor const& from, Tensor const& to, bool non_blocking) {
  auto const lock = alone();
  auto const there = to.device().type() == type, here = from.device().type() == type;
  if (there && here && recording() != nullptr) {
    static auto const copy = c10::Dispatcher::singleton().findSchemaOrThrow("aten::copy_", "");
    note(copy, {to, from, false}, {});
    return to;
  }
  if (!there || !here) refuse_while_recording("a copy between host and device");
  if (here && !there && non_blocking && Pinned::has(to.storage().data())) {
    copies.push_back({on_host(from).clone(), to});
    ++counts.to_host;
    return to;
  }
  on_host(to).copy_(on_host(from));
  counts.to_device += there && !here;
  counts.to_host += here && !there;
  counts.waits += here && !there;
  counts.kernels += there && here;
  return to;
}

inline at::Scalar value_of(Tensor const& tensor) {
  auto const lock = alone();
  refuse_while_recording("a look at a value");
  ++counts.waits;
  return on_host(tensor).item();
}

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(std::size_t bytes) override {
    void* data = bytes == 0 ? nullptr : std::malloc(bytes);
    return {data, data, &std::free, device()};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, void const* from, std::size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }
};

inline Tensor noted(Tensor made) {
  auto const lock = alone();
  if (auto* into = recording()) into->own.push_back(made.storage());
  return made;
}

inline Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride,
                            std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                            std::optional<at::Device>, std::optional<bool>) {
  static Memory memory;
  return noted(at::detail::empty_strided_generic(size, stride, &memory,
                                                 c10::DispatchKeySet(c10::DispatchKey::HPU),
                                                 c10::dtype_or_default(dtype)));
}
inline Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> dtype,
                    std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>,
                    std::optional<at::MemoryFormat> format) {
  static Memory memory;
  return noted(at::detail::empty_generic(size, &memory, c10::DispatchKeySet(c10::DispatchKey::HPU),
                                         c10::dtype_or_default(dtype), format));
}

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static constexpr auto static_type = c10::DeviceType::HPU;
  Guard() = default;
  explicit Guard(c10::DeviceType) {}
  c10::DeviceType type() const override { return fake::type; }
  c10::Device exchangeDevice(c10::Device) const override { return device(); }
  c10::Device getDevice() const override { return device(); }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device d) const noexcept override {
    return c10::Stream(c10::Stream::UNSAFE, d, stream());
  }
  c10::Stream getDefaultStream(c10::Device d) const override {
    return c10::Stream(c10::Stream::DEFAULT, d);
  }
  c10::Stream getStreamFromGlobalPool(c10::Device d, bool) const override {
    static std::atomic<c10::StreamId> made = 0;
    return c10::Stream(c10::Stream::UNSAFE, d, ++made);
  }
  c10::Stream exchangeStream(c10::Stream s) const noexcept override {
    return c10::Stream(c10::Stream::UNSAFE, s.device(), std::exchange(stream(), s.id()));
  }
  void record(void** event, c10::Stream const& on, c10::DeviceIndex,
              c10::EventFlag) const override {
    auto const lock = alone();
    if (*event == nullptr) *event = new Event;
    auto const found = recordings.find(on.id());
    auto* into = found == recordings.end() ? nullptr : found->second;
    *static_cast<Event*>(*event) = {on.id(), into, into == nullptr ? 0 : into->asked[on.id()],
                                    copies.size()};
  }
  void synchronizeEvent(void* event) const override {
    auto const lock = alone();
    refuse_while_recording("a wait for an event");
    ++counts.waits;
    for (std::size_t i = 0; i < static_cast<Event*>(event)->copies; ++i) {
      auto const copy = std::exchange(copies[i], {});
      if (copy.to.defined()) copy.to.copy_(copy.from);
    }
  }
  /// A stream that waits for one that records joins its recording.
  void block(void* event, c10::Stream const& waits) const override {
    auto const lock = alone();
    auto const& point = *static_cast<Event*>(event);
    auto const is_active = [&](auto const& each) { return each.second == point.recording; };
    if (std::none_of(recordings.begin(), recordings.end(), is_active)) return;
    recordings[waits.id()] = point.recording;
    if (waits.id() == point.recording->first) point.recording->awaited[point.stream] = point.asked;
  }
  void destroyEvent(void* event, c10::DeviceIndex) const noexcept override {
    delete static_cast<Event*>(event);
  }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
};

struct HPUHooks final : at::HPUHooksInterface {
  explicit HPUHooks(at::HPUHooksArgs const&) {}
  void init() const override {}
  bool hasHPU() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  bool isPinnedPtr(void const* data) const override { return Pinned::has(data); }
  at::Allocator* getPinnedMemoryAllocator() const override {
    static Pinned allocator;
    return &allocator;
  }
  at::Generator const& getDefaultGenerator(c10::DeviceIndex) const override {
    static auto const generator = at::detail::createCPUGenerator();
    return generator;
  }
};

/// A recording behind LibTorch's interface to graphs.
struct Graph final : at::GraphImplInterface {
  explicit Graph(at::GraphImplArgs const&) {}
  ~Graph() override {
    auto const lock = alone();
    std::erase_if(recordings, [this](auto const& each) { return each.second == &recorded; });
  }
  void capture_begin(at::MempoolId_t, at::GraphCaptureMode) override {
    auto const lock = alone();
    refuse_while_recording("a second recording");
    recordings[stream()] = &recorded;
    recorded.first = stream();
  }
  void capture_end() override {
    auto const lock = alone();
    std::erase_if(recordings, [this](auto const& each) { return each.second == &recorded; });
    for (auto const& [other, kernels] : recorded.asked) {
      if (other != recorded.first && recorded.awaited[other] != kernels) {
        throw std::runtime_error("a recording ends while another stream is at work in it");
      }
    }
    ++counts.recorded;
  }
  void instantiate() override {}
  void replay() override {
    auto const lock = alone();
    refuse_while_recording("a replay");
    for (auto const& [kernel, memory] : recorded.others) {
      if (memory.expired()) {
        throw std::runtime_error("a replay of " + kernel + " uses memory that was given back");
      }
    }
    for (auto const& each : recorded.kernels) {
      run(each.op, each.operands, [&](std::size_t i, Tensor const& value) {
        on_host(each.results[i]).copy_(value);
        return each.results[i];
      });
    }
    ++counts.replays;
  }
  void reset() override { recorded = {}; }
  at::MempoolId_t pool() const override { return {0, 0}; }
  void enable_debug_mode() override {}
  void debug_dump(std::string const&) override {}

  Recording recorded;
};

C10_REGISTER_GUARD_IMPL(HPU, Guard)

TORCH_LIBRARY_IMPL(_, HPU, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&kernel>()); }

TORCH_LIBRARY_IMPL(aten, HPU, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("_local_scalar_dense", &value_of);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("view", &at::native::view);
  m.impl("set_.source_Storage_storage_offset", &at::native::set_storage_cpu_);
}

}  // namespace fake

namespace at {
REGISTER_GRAPH_IMPL(HPU, fake::Graph)
using fake::HPUHooks;
REGISTER_HPU_HOOKS(HPUHooks)
}  // namespace at
