#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../core/data.hpp"
#include "../core/error.hpp"
#include "../products/in_parallel.hpp"

namespace pawl {
inline namespace v0 {

/// A source seen through a table of elements: element j of a row is element table[j] of the stored
/// row, or 0 where table[j] is -1. Rows keep their shape. Applied when rows are read; nothing is
/// copied before.
inline std::shared_ptr<Source const> gathered(std::shared_ptr<Source const> inner,
                                              std::vector<std::int64_t> const& table,
                                              std::string name) {
  std::int64_t width = 1;
  for (auto const n : inner->shape) width *= n;
  require(static_cast<std::int64_t>(table.size()) == width,
          {"gathered: a table of ", table.size(), " elements for rows of '", inner->name, "' with ",
           width, "; give one per element"});
  for (auto const j : table) {
    require(j >= -1 && j < width,
            {"gathered: the table names element ", j, ", but rows of '", inner->name,
             "' have the elements 0 .. ", width - 1, " (-1 is a zero)"});
  }
  auto const wanted = torch::tensor(table, torch::kInt64);
  auto const columns = wanted.clamp_min(0).to(inner->device);
  auto const outside = wanted.lt(0).any().item<bool>() ? wanted.lt(0).to(inner->device) : Tensor{};
  auto const bytes = wanted.masked_fill(wanted.lt(0), width).to(torch::kInt32);

  auto source = std::make_shared<Source>(*inner);
  source->name = std::move(name);
  source->read = [inner, columns, outside, bytes, width](Tensor const& rows, Tensor& out) {
    auto const n = rows.size(0);
    auto const stored = torch::empty(out.sizes(), out.options()).view({n, width});
    auto target = stored.view(out.sizes());
    inner->read(rows, target);
    if (!out.is_cpu() || out.scalar_type() != torch::kUInt8 || !out.is_contiguous()) {
      auto row = stored.index_select(1, columns);
      if (outside.defined()) row.masked_fill_(outside, 0);
      out.copy_(row.view(out.sizes()));
      return;
    }
    auto const* const from = stored.data_ptr<std::uint8_t>();
    auto* const to = out.data_ptr<std::uint8_t>();
    products::in_parallel(n, 256, n, [&](std::int64_t begin, std::int64_t end) {
      std::string row(static_cast<std::size_t>(width) + 1, '\0');  // a zero at its end
      auto const* const index = bytes.data_ptr<std::int32_t>();
      for (auto i = begin; i < end; ++i) {
        std::memcpy(row.data(), from + i * width, static_cast<std::size_t>(width));
        auto const* const in = reinterpret_cast<std::uint8_t const*>(row.data());
        auto* const result = to + i * width;
        for (std::int64_t j = 0; j < width; ++j) result[j] = in[index[j]];
      }
    });
  };
  return source;
}

}  // namespace v0
}  // namespace pawl
