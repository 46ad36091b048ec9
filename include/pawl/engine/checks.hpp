#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <exception>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../core/context.hpp"
#include "../core/scopes.hpp"
#include "plan.hpp"

namespace pawl {
inline namespace v0 {

/// Refuses an experience that cannot be trained on.
inline void check_experience(Experience const& experience) {
  auto const& train = experience.train;
  auto const e = experience.index;
  require(train.size() > 0, {"experience ", e, " has no training rows; give it some"});
  auto const pairs = [&](Tensor const& column) {
    return column.defined() && column.is_cpu() && column.scalar_type() == torch::kInt64 &&
           column.sizes() == train.rows.sizes();
  };
  require(train.source && pairs(train.rows) && pairs(train.labels) &&
              (!train.tasks.defined() || pairs(train.tasks)),
          {"experience ", e, " needs a source, and int64 rows, labels and tasks (if any) of one ",
           "length on the host; make it with make_experience or a stream"});
  auto lowest = train.labels.min().item<std::int64_t>();
  for (auto const label : experience.classes) lowest = std::min(lowest, label);
  require(lowest >= 0, {"experience ", e, " has label ", lowest,
                        "; labels must be outputs of the network, 0 or above"});
  if (!c10::isFloatingType(train.source->dtype)) return;
  auto constexpr chunk = 4096;
  for (std::int64_t begin = 0; begin < train.size(); begin += chunk) {
    auto const end = std::min<std::int64_t>(begin + chunk, train.size());
    auto const rows = train.read(torch::arange(begin, end, torch::kInt64)).stored;
    require(rows.isfinite().all().item<bool>(),
            {"'", train.source->name, "' holds NaN or infinity in rows ", begin, " to ", end - 1,
             " of experience ", e, "; clean the data"});
  }
}

/// Refuses options that ask for what the data, or other options, do not have.
inline void check_training(Training const& training, Dataset const& data) {
  require(training.lr_schedule == Schedule::milestones || training.iterations == 0,
          {"lr_schedule = cosine runs over the epochs of an experience, but iterations is ",
           training.iterations, "; give epochs instead, or set lr_schedule = milestones"});
  auto const& source = *data.source;
  require(!training.augment.any() || source.shape.size() == 3,
          {"augment: the rows of '", source.name, "' have ", source.shape.size(),
           " dimensions, but only images [C, H, W] can be cropped and flipped; leave augment_crop "
           "and augment_flip out"});
}

/// Whether a batch of one row gives BatchNorm of the model but one value per channel, which has no
/// variance. LibTorch says so: the forward runs once, and leaves buffers and generators as found.
inline bool lacks_variance(Context const& c, Dataset const& train) {
  auto& module = *c.model.module;
  bool estimates = false;
  for (auto const& part : module.modules()) {
    estimates = estimates || part->name().find("BatchNorm") != std::string::npos;
  }
  if (!estimates) return false;
  torch::NoGradGuard no_grad;
  BufferScope const buffers(module);
  NoiseScope const noise(Seed{}.generator("one_row"), c.arena.device());
  try {
    auto const row = train.read(torch::zeros({1}, torch::kInt64), c.arena.device());
    c.model.route(row.task);
    c.model.forward(train.normalise(row.stored, c.arena.dtype()));
  } catch (std::exception const& error) {
    return std::string_view(error.what()).find("more than 1 value per channel") !=
           std::string_view::npos;
  }
  return false;
}

/// Refuses batches of `train` that are too small for the shards or for BatchNorm.
inline void check_batches(Context const& c, Dataset const& train, Plan const& plan,
                          std::int64_t shards, std::int64_t experience) {
  auto const rows = plan.smallest_batch();
  require(shards <= rows,
          {"shards is ", shards, " but the smallest batch of experience ", experience, " has ",
           rows, " rows; choose fewer shards or set drop_last"});
  require(rows / shards > 1 || !lacks_variance(c, train),
          {"experience ", experience,
           " has a batch (or shard) of one row, in which BatchNorm sees one value per channel and "
           "cannot estimate a variance; set drop_last or another batch_size"});
}

/// Refuses logits of the wrong shape.
inline void check_logits(Context const& c) {
  require(c.logits.dim() == 2 && c.logits.size(0) == c.batch.size(),
          {"the model returned ", c.logits.sizes(), " for ", c.batch.size(),
           " rows; it must return logits [N, C]"});
}

/// Refuses a loss or penalty of `owner` that is not one number.
inline void check_number(Tensor const& value, std::string_view owner) {
  require(value.defined() && value.numel() == 1,
          {"the loss or penalty of '", owner, "' has shape ",
           value.defined() ? value.sizes() : c10::IntArrayRef{}, "; it must be one number, []"});
}

/// Whether a row of the step has a label that active = current gives no chance.
inline bool has_label_of_no_class(Context const& c) {
  if (c.training.active != Active::current || c.experience == nullptr) return false;
  auto const& classes = c.experience->classes;
  for (auto const& part : c.batch.parts) {
    if (part.weight == 0) continue;
    for (auto const label : host_column(part.rows.labels)) {
      if (std::find(classes.begin(), classes.end(), label) == classes.end()) return true;
    }
  }
  return false;
}

/// Throws Diverged when the loss or a penalty of step `step` is not finite. `no_class`: whether a
/// row of it has a label of no class, where that is not the present step.
inline void look_at_losses(Context const& c, Tensor const& loss, Named<Tensor> const& penalties,
                           std::int64_t step, std::optional<bool> no_class = {}) {
  auto const task_loss = loss.item<double>();
  bool finite = std::isfinite(task_loss);
  for (auto const& penalty : penalties) {
    finite = finite && std::isfinite(penalty.second.item<double>());
  }
  if (finite) return;
  Named<double> values;
  auto const shown = [](double x) { return std::isnan(x) ? std::abs(x) : x; };  // no "-nan"
  auto text = text_of({"pawl: the loss is ", shown(task_loss)});
  for (auto const& [name, value] : penalties) {
    values.emplace_back(name, value.item<double>());
    text += text_of({", the penalty of ", name, " is ", shown(value.item<double>())});
  }
  text += text_of({" in experience ", c.index, ", step ", step});
  text +=
      no_class.value_or(false) || (!no_class && has_label_of_no_class(c))
          ? "; a row has a label that is not among the classes of the experience: list it there, "
            "or use active = seen"
          : "; lower the learning rate or the strength, and look for outliers in the data";
  throw Diverged(text, c.index, step, task_loss, values);
}

/// The same for the present step; Error when one is no number. On the
/// host this costs nothing; on a device only every 100th step is looked at, because the look waits
/// for the device.
inline void check_finite_loss(Context const& c, Tensor const& loss,
                              Named<Tensor> const& penalties) {
  check_number(loss, "the learner");
  for (auto const& [name, value] : penalties) check_number(value, name);
  if (recording() || (!c.arena.device().is_cpu() && c.step % 100 != 0)) return;
  look_at_losses(c, loss, penalties, c.step);
}

}  // namespace v0
}  // namespace pawl
