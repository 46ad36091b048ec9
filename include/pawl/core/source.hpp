#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../device/step_table.hpp"
#include "error.hpp"

namespace pawl {
inline namespace v0 {

/// A data set at rest: labels on the host, and rows that are read in the order asked. What lies
/// behind `read` (resident bytes, a mapped file, another source seen through a permutation) is its
/// own affair.
struct Source {
  std::string name;                    ///< for messages
  Tensor labels{};                     ///< [N] int64 on the host, as in the files
  std::vector<std::int64_t> shape;     ///< of one row
  torch::Dtype dtype = torch::kUInt8;  ///< of the stored rows
  torch::Device device = torch::kCPU;  ///< where `read` puts rows
  bool reads_on_device = false;        ///< `read` takes row numbers that lie on `device`, and asks
                                       ///< nothing of the host

  /// Fills `out` [n, shape...] with the rows [n] int64 in the order asked. Their numbers lie on the
  /// host, or on `device` where it reads there.
  std::function<void(Tensor const& rows, Tensor& out)> read;

  std::int64_t size() const { return labels.numel(); }
};

/// Copies rows [n] int64 of `from` [N, ...] into `to` [n, ...], both contiguous on the host. One
/// thread: waking others costs more than the few hundred kilobytes of a batch.
inline void copy_rows(Tensor const& from, Tensor const& rows, Tensor const& to) {
  auto const held = from.size(0);
  auto const bytes = held == 0 ? 0 : from.nbytes() / static_cast<std::size_t>(held);
  auto const* source = static_cast<char const*>(from.data_ptr());
  auto* target = static_cast<char*>(to.data_ptr());
  auto const wanted = rows.contiguous();
  auto const* row = wanted.data_ptr<std::int64_t>();
  for (std::int64_t i = 0; i < wanted.numel(); ++i, target += bytes) {
    require(row[i] >= 0 && row[i] < held, {"row ", row[i], " of a data set of ", held, " rows"});
    std::memcpy(target, source + static_cast<std::size_t>(row[i]) * bytes, bytes);
  }
}

/// A source that is held in memory: x [N, ...] of any type on any device, y [N] int64.
inline std::shared_ptr<Source const> resident(Tensor x, Tensor y, std::string name = "tensors") {
  require(x.dim() >= 1 && y.dim() == 1 && x.size(0) == y.size(0),
          {name, ": ", x.sizes(), " inputs and ", y.sizes(),
           " labels do not pair up; give x [N, ...] and y [N]"});
  require(!y.is_floating_point(), {name, ": labels must be integers, but are ", y.dtype()});
  x = x.detach().contiguous();
  auto source = std::make_shared<Source>();
  source->name = std::move(name);
  source->labels = y.detach().to(torch::kCPU, torch::kInt64).contiguous();
  source->shape = x.sizes().slice(1).vec();
  source->dtype = x.scalar_type();
  source->device = x.device();
  source->reads_on_device = !x.is_cpu();
  source->read = [x](Tensor const& rows, Tensor& out) {
    if (x.is_cpu() && out.is_cpu() && out.is_contiguous() && out.scalar_type() == x.scalar_type()) {
      copy_rows(x, rows, out);
    } else {
      at::index_select_out(out, x, 0, rows.to(x.device()));
    }
  };
  return source;
}

/// How stored rows become inputs of a network: (row * scale - mean) / deviation, per channel
/// (dimension 1) where more than one value is given.
struct Normalise {
  double scale = 1;                 ///< 1/255 for bytes
  std::vector<double> mean{};       ///< empty: no shift
  std::vector<double> deviation{};  ///< empty: no division

  Tensor operator()(Tensor const& stored, torch::Dtype dtype) const {
    auto x = stored.to(dtype);
    if (scale != 1) x = x.data_ptr() == stored.data_ptr() ? x * scale : x.mul_(scale);
    if (mean.size() == 1 && deviation.size() == 1) return (x - mean[0]) / deviation[0];
    if (!mean.empty()) x = x - per_channel(mean, x, "means");
    return deviation.empty() ? x : x / per_channel(deviation, x, "deviations");
  }

 private:
  static Tensor per_channel(std::vector<double> const& values, Tensor const& x,
                            std::string_view what) {
    std::vector<std::int64_t> shape(static_cast<std::size_t>(x.dim()), 1);
    if (values.size() > 1) {
      require(x.dim() >= 2 && x.size(1) == static_cast<std::int64_t>(values.size()),
              {"normalise: ", values.size(), " ", what, " for inputs ", x.sizes(),
               "; give one per channel"});
      shape[1] = x.size(1);
    }
    auto const options = x.options().dtype(torch::kFloat64).device(torch::kCPU);
    return constant(torch::tensor(values, options).view(shape).to(x.scalar_type()), x.device());
  }
};

/// A labelled collection, as loaders return it.
struct TrainTest {
  std::string name;
  std::shared_ptr<Source const> train;
  std::shared_ptr<Source const> test;
  std::int64_t classes = 0;  ///< labels are 0 .. classes-1
  Normalise normalise;       ///< from stored rows to [0, 1]
};

}  // namespace v0
}  // namespace pawl
