#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "../core/data.hpp"
#include "../core/error.hpp"
#include "../core/options.hpp"
#include "../core/random.hpp"
#include "../data/load.hpp"
#include "../data/pad.hpp"
#include "joint.hpp"
#include "online.hpp"
#include "permute_pixels.hpp"
#include "rotate.hpp"
#include "split_classes.hpp"

namespace pawl {
inline namespace v0 {

/// Shift and divisor of the inputs, after scaling to [0, 1].
enum class Normalisation {
  none,          ///< [0, 1] as it is
  mnist,         ///< (x - .1307) / .3081
  mnist_padded,  ///< (x - .1000) / .2752, of MNIST padded to 32x32
  cifar10,       ///< per channel: mean .4914 .4822 .4465, deviation .2470 .2435 .2616
  cifar100,      ///< per channel: mean .5071 .4865 .4409, deviation .2673 .2564 .2762
  custom         ///< `mean` and `deviation`
};

/// Which training sets an experience gets.
enum class StreamKind {
  sequential,  ///< its own
  joint,       ///< one experience with all of them: the upper reference
  cumulative   ///< its own and all before
};

/// A stream chosen by name, with all its options: for programs that read names and options at run
/// time. In C++ code `split_classes(load_mnist("data"), {...})` says the same in one line.
struct AnyStream {
  std::string name;      ///< as in `stream_names`
  std::string about;     ///< what it is, and where it comes from
  std::string data_set;  ///< as in `data_set_names`
  std::variant<SplitClasses, PermutePixels, Rotate> transform;  ///< what makes experiences of it

  bool superclasses = false;     ///< CIFAR-100 only: the 20 superclasses instead of the 100 classes
  std::int64_t train_limit = 0;  ///< only the first rows of the training set; 0: all
  std::int64_t pad = 0;          ///< zeros around images, pixels on each side
  Normalisation normalize = Normalisation::none;  ///< shift and divisor after scaling to [0, 1]
  std::vector<double> mean{};                ///< of normalize = custom: one, or one per channel
  std::vector<double> deviation{};           ///< of normalize = custom: one, or one per channel
  std::int64_t rows_per_experience = 0;      ///< random training samples of each experience; 0: all
  std::int64_t take = 0;                     ///< only the first experiences; 0: all
  StreamKind kind = StreamKind::sequential;  ///< sequential | joint | cumulative
  std::int64_t chunk = 0;                    ///< online: samples per part; 0: whole experiences
  bool drop_last = false;                    ///< online: drop a shorter last part
  Boundaries boundaries = Boundaries::shown;  ///< online: whether parts tell their experience

  void describe(Options& o) {
    std::visit([&](auto& options) { options.describe(o); }, transform);
    if (data_set == "cifar100") o("superclasses", superclasses, "learn the 20 superclasses");
    o("train_limit", train_limit, at_least(0), "only the first rows of the training set; 0: all");
    o("rows_per_experience", rows_per_experience, at_least(0),
      "random training samples of each experience; 0: all");
    o("pad", pad, between(0, 100), "zeros around images before normalising, pixels on each side");
    o("normalize", normalize, {"none", "mnist", "mnist_padded", "cifar10", "cifar100", "custom"},
      "shift and divisor of the inputs after scaling to [0, 1]");
    auto const custom = normalize == Normalisation::custom;
    o("mean", mean, {}, "of normalize = custom: one number, or one per channel");
    o.only_if(custom, "normalize = custom");
    o("deviation", deviation, above(0), "of normalize = custom: one number, or one per channel");
    o.only_if(custom, "normalize = custom");
    o("take", take, at_least(0), "only the first experiences of the stream; 0: all");
    o("kind", kind, {"sequential", "joint", "cumulative"},
      "train on each experience's own data, once on all, or on its own and all before");
    o("chunk", chunk, at_least(0), "online: samples per part; 0: whole experiences");
    o("drop_last", drop_last, "online: drop a shorter last part of an experience");
    o.only_if(chunk > 0, "chunk > 0");
    o("boundaries", boundaries, {"shown", "hidden"},
      "online: whether parts carry the classes and the task id of their experience");
    o.only_if(chunk > 0, "chunk > 0");
  }

  /// The data set, limited, padded and with its normalisation. Can be shared by streams of many
  /// seeds.
  TrainTest load(std::string const& root) const {
    auto data = data_set == "cifar100" && superclasses
                    ? load_cifar100(data_root(root), CifarLabels::coarse)
                    : pawl::load(data_set, root);
    require(train_limit <= data.train->size(),
            {name, ": train_limit is ", train_limit, " but there are only ", data.train->size(),
             " training rows; give 0 for all of them"});
    data = pawl::pad(first(std::move(data), train_limit), pad);
    require(normalize == Normalisation::custom || (mean.empty() && deviation.empty()),
            {name,
             ": mean or deviation is given, but normalize is not custom; set normalize = custom"});
    switch (normalize) {
      case Normalisation::none:
        return data;
      case Normalisation::mnist:
        return normalised(std::move(data), {.1307}, {.3081});
      case Normalisation::mnist_padded:
        return normalised(std::move(data), {.1000}, {.2752});
      case Normalisation::cifar10:
        return normalised(std::move(data), {.4914, .4822, .4465}, {.2470, .2435, .2616});
      case Normalisation::cifar100:
        return normalised(std::move(data), {.5071, .4865, .4409}, {.2673, .2564, .2762});
      case Normalisation::custom:
        return normalised(std::move(data), mean, deviation);
    }
    fail({name, ": unknown normalisation; use one of the enumerators"});
  }

  Stream build(TrainTest const& data, Seed seed) const {
    auto stream = subsample(first_of(sequential(data, seed)), rows_per_experience, seed);
    if (kind == StreamKind::joint) stream = joint(stream);
    if (kind == StreamKind::cumulative) stream = cumulative(stream);
    if (chunk == 0) return stream;
    Chunks const parts{.size = chunk, .drop_last = drop_last, .boundaries = boundaries};
    return chunks(stream, parts, seed);
  }

  /// Loads the data from `root` (empty: PAWL_DATA, else `data`) and makes the stream.
  Stream build(std::string const& root, Seed seed) const { return build(load(root), seed); }

 private:
  Stream first_of(Stream stream) const {
    require(take <= stream.size(), {name, ": take is ", take, " but there are only ", stream.size(),
                                    " experiences; give 0 for all of them"});
    if (take > 0) stream.experiences.resize(static_cast<std::size_t>(take));
    return stream;
  }

  Stream sequential(TrainTest const& data, Seed seed) const {
    if (auto const* split = std::get_if<SplitClasses>(&transform)) {
      return split_classes(data, *split, seed);
    }
    if (auto const* permute = std::get_if<PermutePixels>(&transform)) {
      return permute_pixels(data, *permute, seed);
    }
    return rotate(data, std::get<Rotate>(transform), seed);
  }
};

namespace detail {

inline AnyStream any_stream(std::string name, std::string about, std::string data_set,
                            std::variant<SplitClasses, PermutePixels, Rotate> transform) {
  AnyStream stream;
  stream.name = std::move(name);
  stream.about = std::move(about);
  stream.data_set = std::move(data_set);
  stream.transform = std::move(transform);
  return stream;
}

}  // namespace detail

/// All streams that have a name, with their default options.
inline std::vector<AnyStream> stream_catalogue() {
  using detail::any_stream;
  std::string const split = " split by class (Zenke, Poole, Ganguli, ICML 2017)";
  std::string const permuted = " under random pixel permutations (Kirkpatrick et al., PNAS 2017)";
  std::string const rotated = " under rotations (Lopez-Paz, Ranzato, NeurIPS 2017)";
  return {
      any_stream("split_mnist", "MNIST" + split, "mnist", SplitClasses{}),
      any_stream("split_fashion_mnist", "Fashion-MNIST" + split, "fashion_mnist", SplitClasses{}),
      any_stream("split_cifar10", "CIFAR-10" + split, "cifar10", SplitClasses{}),
      any_stream("split_cifar100", "CIFAR-100" + split, "cifar100",
                 SplitClasses{.experiences = 10}),
      any_stream("split_digits", "8x8 digits (shipped)" + split, "digits", SplitClasses{}),
      any_stream("permuted_mnist", "MNIST" + permuted, "mnist", PermutePixels{}),
      any_stream("permuted_digits", "8x8 digits (shipped)" + permuted, "digits", PermutePixels{}),
      any_stream("rotated_mnist", "MNIST" + rotated, "mnist", Rotate{}),
      any_stream("rotated_digits", "8x8 digits (shipped)" + rotated, "digits", Rotate{}),
  };
}

/// The names that `make_stream_choice` knows.
inline std::vector<std::string> stream_names() {
  std::vector<std::string> names;
  for (auto const& stream : stream_catalogue()) names.push_back(stream.name);
  return names;
}

/// The stream of that name with its default options. Throws `Error` naming the nearest one when
/// there is none.
inline AnyStream make_stream_choice(std::string const& name) {
  for (auto& stream : stream_catalogue()) {
    if (stream.name == name) return stream;
  }
  fail({"there is no stream '", name, "'", suggestion(name, stream_names())});
}

}  // namespace v0
}  // namespace pawl
