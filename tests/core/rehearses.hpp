#pragma once

// A strategy with a memory, for tests that need some and do not care which.

#include <utility>

#include <pawl/core/context.hpp>
#include <pawl/memory/rehearsal.hpp>
#include <pawl/memory/reservoir.hpp>

/// Replay as short as it gets: every step has as many rows of the memory as fresh ones.
struct Rehearses {
  pawl::AnyMemory memory = pawl::Reservoir{.capacity = 30};

  static constexpr char const* name = "rehearses";
  static constexpr bool plans_ahead = true;

  bool capturable() const { return memory.planned(); }

  pawl::Batch extend(pawl::Context& c, pawl::Batch batch) {
    if (c.shard == 0) drawn = pawl::draw_rows(c, memory, 0, "draw.rehearses");
    if (drawn.size() > 0) pawl::append_share(c, batch, this, drawn);
    return batch;
  }
  void after_step(pawl::Context& c) { pawl::remember(c, memory, c.fresh, "memory.rehearses"); }
  void state(pawl::Archive& a) { a.part("memory", memory); }

  pawl::Rows drawn{};  ///< for the present step
};
