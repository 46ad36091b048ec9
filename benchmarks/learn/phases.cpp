#include "phases.hpp"

#include <algorithm>
#include <string>
#include <vector>

#include <pawl/engine/phase.hpp>

#include "cost.hpp"

#include <c10/core/CPUAllocator.h>

namespace bench {

namespace {

/// LibTorch's allocator on the host, which counts. Tensors keep a pointer to it, so it outlives
/// all.
class CountingAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(std::size_t bytes) override {
    ++count_;
    return real_->allocate(bytes);
  }
  c10::DeleterFnPtr raw_deleter() const override { return real_->raw_deleter(); }
  void copy_data(void* to, void const* from, std::size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
  c10::Allocator* real() const { return real_; }
  std::int64_t count() const { return count_; }

 private:
  c10::Allocator* real_ = c10::GetCPUAllocator();
  std::int64_t count_ = 0;
};

CountingAllocator& counting_allocator() {
  static CountingAllocator allocator;
  return allocator;
}

PhaseListener* listener = nullptr;

/// The parts inside of one, each followed by those inside of it.
void append_inner(std::vector<PhaseRecord> const& all, std::size_t parent,
                  std::vector<PhaseRecord>& ordered) {
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (all[i].parent != parent) continue;
    ordered.push_back(all[i]);
    append_inner(all, i, ordered);
  }
}

}  // namespace

PhaseListener::PhaseListener(Measure measure, torch::Device device)
    : device_(device), counts_(measure == Measure::operations) {
  if (counts_) c10::SetCPUAllocator(&counting_allocator(), 1);
  listener = this;
  auto callback = at::RecordFunctionCallback(began, ended);
  if (measure == Measure::time) {
    callback.scopes({at::RecordScope::USER_SCOPE});
  } else {
    callback.scopes({at::RecordScope::USER_SCOPE, at::RecordScope::FUNCTION,
                     at::RecordScope::BACKWARD_FUNCTION});
    callback.needsInputs(true);
  }
  handle_ = at::addThreadLocalCallback(callback);
}

PhaseListener::~PhaseListener() {
  if (counts_) c10::SetCPUAllocator(counting_allocator().real(), 1);
  at::removeCallback(handle_);
  listener = nullptr;
}

std::unique_ptr<at::ObserverContext> PhaseListener::began(at::RecordFunction const& call) {
  auto& self = *listener;
  if (call.scope() == at::RecordScope::USER_SCOPE) {
    self.open(call.name());
  } else if (!self.open_.empty()) {
    auto& record = self.records_[self.open_.back().record];
    ++(call.scope() == at::RecordScope::FUNCTION ? record.operations : record.nodes);
    auto const flops = flops_of(call);
    if (flops == 0) return nullptr;
    if (self.products_++ == 0) record.flops += flops;
    return std::make_unique<Product>();
  }
  return nullptr;
}

void PhaseListener::ended(at::RecordFunction const& call, at::ObserverContext* product) {
  if (product != nullptr) --listener->products_;
  if (call.scope() == at::RecordScope::USER_SCOPE) listener->close();
}

void PhaseListener::open(std::string const& name) {
  std::string const prefix = pawl::Phase::prefix;
  auto const own = name.rfind(prefix, 0) == 0 ? name.substr(prefix.size()) : name;
  auto const parent = open_.empty() ? PhaseRecord::no_parent : open_.back().record;
  auto const known = std::find_if(records_.begin(), records_.end(), [&](auto const& r) {
    return r.parent == parent && r.name == own;
  });
  auto const at = static_cast<std::size_t>(known - records_.begin());
  if (known == records_.end()) {
    auto const outer = parent == PhaseRecord::no_parent ? PhaseRecord{} : records_[parent];
    records_.push_back({.name = own,
                        .path = (outer.path.empty() ? "" : outer.path + "/") + own,
                        .parent = parent,
                        .depth = outer.depth + 1});
  }
  wait();
  open_.push_back({at, Clock::now(), counting_allocator().count()});
}

void PhaseListener::close() {
  wait();
  auto const done = open_.back();
  open_.pop_back();
  auto& record = records_[done.record];
  ++record.calls;
  record.allocations += counting_allocator().count() - done.allocations;
  record.seconds += std::chrono::duration<double>(Clock::now() - done.since).count();
}

void PhaseListener::wait() const { wait_for(device_); }

std::vector<PhaseRecord> PhaseListener::records() const {
  auto all = records_;
  for (auto i = all.size(); i-- > 0;) {  // a part stands behind the one that it is inside of
    if (all[i].parent == PhaseRecord::no_parent) continue;
    all[all[i].parent].operations += all[i].operations;
    all[all[i].parent].nodes += all[i].nodes;
    all[all[i].parent].flops += all[i].flops;
  }
  std::vector<PhaseRecord> ordered;
  append_inner(all, PhaseRecord::no_parent, ordered);
  return ordered;
}

}  // namespace bench
