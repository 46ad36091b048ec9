#include "pawl/data/digits.hpp"
#include "pawl/stream/gather.hpp"
#include "pawl/stream/joint.hpp"
#include "pawl/stream/make_stream.hpp"
#include "pawl/stream/online.hpp"
#include "pawl/stream/permute_pixels.hpp"
#include "pawl/stream/rotate.hpp"
#include "pawl/stream/split_classes.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include <doctest/doctest.h>

namespace {

namespace fs = std::filesystem;
using doctest::Contains;
using pawl::Tensor;
using Numbers = std::vector<std::int64_t>;

fs::path shipped() { return fs::path(__FILE__).parent_path() / ".." / ".." / "data"; }

/// The folder of real data sets; empty where there is none.
fs::path real_mnist() {
  auto const* const folder = std::getenv("PAWL_TEST_DATA");
  if (folder != nullptr && fs::is_directory(fs::path(folder) / "mnist")) return folder;
  MESSAGE("skipped: no MNIST under '", folder ? folder : "", "' (PAWL_TEST_DATA)");
  return {};
}

Numbers numbers(Tensor const& t) {
  auto const flat = t.to(torch::kInt64).contiguous();
  return {flat.data_ptr<std::int64_t>(), flat.data_ptr<std::int64_t>() + flat.numel()};
}

/// `classes` classes, `each` images of 2x3x3 bytes per class and share; labels go round: 0, 1, 2,
/// ..., 0, 1, ...
pawl::TrainTest toy(std::int64_t classes, std::int64_t each = 4) {
  auto const n = classes * each;
  auto const y = torch::arange(n, torch::kInt64).remainder(classes);
  auto const x =
      torch::arange(n * 18).mul_(7).add_(3).remainder(251).to(torch::kUInt8).view({n, 2, 3, 3});
  auto const z = (x + 1).to(torch::kUInt8);
  return {.name = "toy",
          .train = pawl::resident(x, y, "toy train"),
          .test = pawl::resident(z, y, "toy test"),
          .classes = classes,
          .normalise = {.scale = 1.0 / 255, .mean = {}, .deviation = {}}};
}

Tensor stored(pawl::Dataset const& set) {
  return set.read(torch::arange(set.size(), torch::kInt64)).stored;
}

Tensor random_images(std::vector<std::int64_t> const& shape) {
  auto values = torch::empty(shape, torch::kFloat64);
  pawl::fill_uniform(values, 0, 256, pawl::Generator(5));
  return values;
}

}  // namespace

// ---------------------------------------------------------------------------------- split by class

TEST_CASE("split experiences are disjoint, and their union is the data set") {
  auto const data = toy(10);
  auto const stream = pawl::split_classes(data, {.experiences = 3});
  CHECK(stream.outputs == 10);
  for (auto const part : {&pawl::Experience::train, &pawl::Experience::test}) {
    std::set<std::int64_t> rows;
    std::int64_t total = 0;
    for (auto const& experience : stream) {
      auto const& set = experience.*part;
      for (auto const r : numbers(set.rows)) rows.insert(r);
      total += set.size();
      CHECK(torch::equal(set.labels, set.source->labels.index_select(0, set.rows)));
      for (auto const y : numbers(set.labels)) {
        CHECK(std::count(experience.classes.begin(), experience.classes.end(), y) == 1);
      }
    }
    CHECK(total == 40);
    CHECK(rows.size() == 40);
  }
}

TEST_CASE("where experiences do not divide the classes, the first get one more") {
  auto const stream = pawl::split_classes(toy(10), {.experiences = 4});
  CHECK(stream[0].classes == Numbers{0, 1, 2});
  CHECK(stream[1].classes == Numbers{3, 4, 5});
  CHECK(stream[2].classes == Numbers{6, 7});
  CHECK(stream[3].classes == Numbers{8, 9});
}

TEST_CASE("a larger first experience precedes equal parts") {
  auto const stream = pawl::split_classes(toy(10), {.experiences = 4, .first = 5});
  CHECK(stream[0].classes == Numbers{0, 1, 2, 3, 4});
  CHECK(stream[1].classes == Numbers{5, 6});
  CHECK(stream[2].classes == Numbers{7, 8});
  CHECK(stream[3].classes == Numbers{9});
  CHECK(pawl::split_classes(toy(10), {.experiences = 1, .first = 10}).size() == 1);
}

TEST_CASE("labels are raw, by order or within the experience") {
  using Rule = pawl::LabelRule;
  auto const classes = [](pawl::Scenario scenario, Rule rule) {
    return pawl::split_classes(toy(6), {.experiences = 3,
                                        .class_order = {4, 0, 5, 1, 3, 2},
                                        .scenario = scenario,
                                        .labels = rule});
  };
  auto const raw = classes(pawl::Scenario::classes, Rule::automatic);
  CHECK(raw[0].classes == Numbers{0, 4});
  CHECK(numbers(raw[0].train.labels) == Numbers{0, 4, 0, 4, 0, 4, 0, 4});
  CHECK(raw.outputs == 6);
  auto const ordered = classes(pawl::Scenario::classes, Rule::by_order);
  CHECK(ordered[1].classes == Numbers{2, 3});
  CHECK(numbers(ordered[1].train.labels) ==
        Numbers{3, 2, 3, 2, 3, 2, 3, 2});  // files: 1, 5, 1, 5, ...
  CHECK(ordered.outputs == 6);
  auto const within = classes(pawl::Scenario::domain, Rule::automatic);
  CHECK(within[1].classes == Numbers{0, 1});
  CHECK(numbers(within[1].test.labels) == Numbers{1, 0, 1, 0, 1, 0, 1, 0});
  CHECK(within.outputs == 2);
  CHECK_FALSE(within[1].train.tasks.defined());
}

TEST_CASE("rows of every label rule are those of the same classes") {
  auto const raw = pawl::split_classes(toy(6), {.experiences = 3});
  auto const within =
      pawl::split_classes(toy(6), {.experiences = 3, .labels = pawl::LabelRule::within});
  for (std::int64_t e = 0; e < 3; ++e) {
    CHECK(torch::equal(stored(raw[e].train), stored(within[e].train)));
  }
}

TEST_CASE("the task scenario numbers tasks and shares outputs") {
  auto const stream =
      pawl::split_classes(toy(5), {.experiences = 2, .scenario = pawl::Scenario::task});
  CHECK(stream.outputs == 3);
  CHECK(stream[1].task == 1);
  CHECK(numbers(stream[1].train.tasks) == Numbers(8, 1));
  CHECK(numbers(stream[0].test.tasks) == Numbers(12, 0));
  CHECK(stream[1].classes == Numbers{0, 1});
}

TEST_CASE("one seed gives one class order, two seeds give two") {
  auto const order = [](std::uint64_t seed) {
    Numbers all;
    auto const stream = pawl::split_classes(
        toy(10), {.experiences = 10, .order = pawl::ClassOrder::shuffled}, {seed});
    for (auto const& experience : stream) all.push_back(experience.classes.front());
    return all;
  };
  CHECK(order(1) == order(1));
  CHECK(order(1) != order(2));
  auto sorted = order(3);
  std::sort(sorted.begin(), sorted.end());
  CHECK(sorted == Numbers{0, 1, 2, 3, 4, 5, 6, 7, 8, 9});
}

TEST_CASE("building streams leaves the global generator untouched") {
  torch::manual_seed(3);
  auto const expected = torch::rand({4});
  torch::manual_seed(3);
  auto const data = toy(4);
  pawl::split_classes(data, {.experiences = 2, .order = pawl::ClassOrder::shuffled});
  pawl::chunks(pawl::permute_pixels(data), {.size = 2});
  stored(pawl::rotate(data, {.angles = pawl::Angles::uniform})[1].train);
  CHECK(torch::equal(torch::rand({4}), expected));
}

TEST_CASE("a split that cannot be is refused in a sentence") {
  auto const refuse = [](pawl::SplitClasses const& options, char const* reason) {
    CHECK_THROWS_WITH_AS(pawl::split_classes(toy(4), options), Contains(reason), pawl::Error);
  };
  refuse({.experiences = 0}, "experiences is 0");
  refuse({.experiences = 5}, "5 experiences for 4 classes");
  refuse({.experiences = 2, .class_order = {0, 1, 2}}, "each of the classes 0 .. 3 once");
  refuse({.experiences = 2, .class_order = {0, 1, 2, 2}}, "each of the classes");
  refuse({.experiences = 2, .class_order = {0, 1, 2, 4}}, "each of the classes");
  refuse({.experiences = 2, .order = pawl::ClassOrder::shuffled, .class_order = {3, 1, 2, 0}},
         "both an explicit class_order");
  refuse({.experiences = 3, .first = 3}, "at most 2");
  refuse({.experiences = 1, .first = 3}, "takes all 4");
  refuse({.experiences = 2, .first = -1}, "first is -1");
  auto fewer = toy(4);
  fewer.classes = 3;
  CHECK_THROWS_WITH_AS(pawl::split_classes(fewer, {.experiences = 3}), Contains("has the label 3"),
                       pawl::Error);
  fewer.classes = 5;
  CHECK_THROWS_WITH_AS(pawl::split_classes(fewer, {.experiences = 5}),
                       Contains("no training samples"), pawl::Error);
}

TEST_CASE("Split-MNIST in natural order has its known sizes") {
  auto const root = real_mnist();
  if (root.empty()) return;
  auto const stream = pawl::split_classes(pawl::load_mnist(root), {.experiences = 5});
  Numbers train, test;
  for (auto const& experience : stream) {
    train.push_back(experience.train.size());
    test.push_back(experience.test.size());
  }
  CHECK(train == Numbers{12665, 12089, 11263, 12183, 11800});
  CHECK(test == Numbers{2115, 2042, 1874, 1986, 1983});
}

// ------------------------------------------------------------------------------- permuted pixels

TEST_CASE("the inverse permutation restores every image bit for bit") {
  auto const data = toy(3);
  auto const stream = pawl::permute_pixels(data, {.experiences = 3}, {7});
  for (auto const& experience : stream) {
    auto const pi = pawl::pixel_permutation(18, experience.index, {7});
    Numbers inverse(18);
    for (std::size_t j = 0; j < 18; ++j)
      inverse[static_cast<std::size_t>(pi[j])] = static_cast<std::int64_t>(j);
    auto const back = pawl::gathered(experience.test.source, inverse, "back");
    CHECK(torch::equal(pawl::read_all(*back), pawl::read_all(*data.test)));
    auto const seen = stored(experience.train).view({-1, 18});
    auto const original = pawl::read_all(*data.train).view({-1, 18});
    CHECK_FALSE(torch::equal(seen, original));
    CHECK(torch::equal(seen, original.index_select(1, torch::tensor(pi))));
    CHECK(torch::equal(std::get<0>(seen.sort(1)), std::get<0>(original.sort(1))));
  }
}

TEST_CASE("earlier permutations do not depend on the number of experiences") {
  auto const few = pawl::permute_pixels(toy(2), {.experiences = 2}, {4});
  auto const many = pawl::permute_pixels(toy(2), {.experiences = 9, .identity_first = true}, {4});
  CHECK(torch::equal(stored(few[1].train), stored(many[1].train)));
  CHECK_FALSE(torch::equal(stored(few[0].train), stored(few[1].train)));
  CHECK(torch::equal(stored(many[0].train), pawl::read_all(*toy(2).train)));
  auto const other = pawl::permute_pixels(toy(2), {.experiences = 2}, {5});
  CHECK_FALSE(torch::equal(stored(few[1].train), stored(other[1].train)));
}

TEST_CASE("permuted labels are shared, shifted by class or numbered by task") {
  auto const domain = pawl::permute_pixels(toy(3), {.experiences = 2});
  CHECK(domain.outputs == 3);
  CHECK(domain[1].classes == Numbers{0, 1, 2});
  CHECK_FALSE(domain[1].train.tasks.defined());
  auto const classes =
      pawl::permute_pixels(toy(3), {.experiences = 2, .scenario = pawl::Scenario::classes});
  CHECK(classes.outputs == 6);
  CHECK(classes[1].classes == Numbers{3, 4, 5});
  CHECK(torch::equal(classes[1].test.labels, domain[1].test.labels + 3));
  auto const task =
      pawl::permute_pixels(toy(3), {.experiences = 2, .scenario = pawl::Scenario::task});
  CHECK(task.outputs == 3);
  CHECK(task[1].task == 1);
  CHECK(numbers(task[1].train.tasks) == Numbers(12, 1));
  CHECK(torch::equal(task[1].train.labels, domain[1].train.labels));
}

TEST_CASE("a permutation across channels with means of their own is refused") {
  auto const one = pawl::normalised(toy(3), {.5}, {.25});
  CHECK(pawl::permute_pixels(one, {.experiences = 2}).size() == 2);
  auto const two = pawl::normalised(toy(3), {.5, .4}, {.25, .2});
  CHECK_THROWS_WITH_AS(pawl::permute_pixels(two, {.experiences = 2}),
                       Contains("normalise with one mean and deviation"), pawl::Error);
}

TEST_CASE("floating rows are permuted and zero-filled like bytes") {
  auto const bytes = toy(3);
  auto const x = pawl::read_all(*bytes.train);
  auto const floats = pawl::resident(x.to(torch::kFloat32), bytes.train->labels);
  Numbers table(18);
  for (std::size_t j = 0; j < 18; ++j)
    table[j] = j % 5 == 0 ? -1 : static_cast<std::int64_t>(17 - j);
  auto const a = pawl::read_all(*pawl::gathered(bytes.train, table, "bytes"));
  auto const b = pawl::read_all(*pawl::gathered(floats, table, "floats"));
  CHECK(torch::equal(a.to(torch::kFloat32), b));
  CHECK(a.view({-1, 18}).select(1, 5).max().item<int>() == 0);
  CHECK(torch::equal(a.view({-1, 18}).select(1, 1), x.view({-1, 18}).select(1, 16)));
  table[0] = 18;
  CHECK_THROWS_WITH_AS(pawl::gathered(floats, table, "bad"), Contains("element 18"), pawl::Error);
}

// --------------------------------------------------------------------------------------- rotation

TEST_CASE("turns of 0 and 360 degrees are the identity") {
  for (auto const method : {pawl::Interpolation::nearest, pawl::Interpolation::bilinear}) {
    for (auto const type : {torch::kUInt8, torch::kFloat32, torch::kFloat64, torch::kInt32}) {
      auto const x = random_images({2, 3, 5, 8}).to(type);
      for (auto const degrees : {0.0, 360.0, -720.0}) {
        CHECK(torch::equal(pawl::rotate(x, degrees, method), x));
      }
    }
  }
}

TEST_CASE("a quarter turn is the exact transpose-flip, counter-clockwise") {
  for (auto const side : {5, 8}) {
    auto const x = random_images({2, 3, side, side});
    for (std::int64_t k = -3; k <= 5; ++k) {
      auto const expected = x.rot90(k, {2, 3});
      auto const degrees = 90.0 * static_cast<double>(k);
      CHECK(torch::equal(pawl::rotate(x, degrees, pawl::Interpolation::nearest), expected));
      CHECK(torch::allclose(pawl::rotate(x, degrees), expected, 0, 1e-6));
      auto const bytes = x.to(torch::kUInt8);
      CHECK(torch::equal(pawl::rotate(bytes, degrees), bytes.rot90(k, {2, 3})));
    }
  }
  auto corner = torch::zeros({1, 1, 3, 3});
  corner[0][0][0][2] = 1;  // top right goes to top left
  CHECK(pawl::rotate(corner, 90)[0][0][0][0].item<float>() == 1);
}

TEST_CASE("four quarter turns are the identity") {
  for (auto const method : {pawl::Interpolation::nearest, pawl::Interpolation::bilinear}) {
    auto const x = random_images({1, 1, 28, 28}).to(torch::kUInt8);
    auto turned = x;
    for (int i = 0; i < 4; ++i) turned = pawl::rotate(turned, 90, method);
    CHECK(torch::equal(turned, x));
  }
}

TEST_CASE("bilinear rotation follows its formula at every pixel") {
  auto const x = random_images({1, 1, 6, 9});
  auto const degrees = 37.5, a = degrees * M_PI / 180;
  auto const turned = pawl::rotate(x, degrees);
  auto const pixel = [&](double i, double j) {
    if (i < 0 || j < 0 || i > 5 || j > 8) return 0.0;
    return x[0][0][static_cast<std::int64_t>(i)][static_cast<std::int64_t>(j)].item<double>();
  };
  for (std::int64_t i = 0; i < 6; ++i) {
    for (std::int64_t j = 0; j < 9; ++j) {
      auto const u = static_cast<double>(j) - 4, v = static_cast<double>(i) - 2.5;
      auto const column = u * std::cos(a) - v * std::sin(a) + 4;
      auto const row = u * std::sin(a) + v * std::cos(a) + 2.5;
      auto const c = std::floor(column), r = std::floor(row), s = column - c, t = row - r;
      auto const expected = (1 - t) * ((1 - s) * pixel(r, c) + s * pixel(r, c + 1)) +
                            t * ((1 - s) * pixel(r + 1, c) + s * pixel(r + 1, c + 1));
      CHECK(turned[0][0][i][j].item<double>() == doctest::Approx(expected).epsilon(1e-9));
    }
  }
  auto const bytes = x.to(torch::kUInt8);
  auto const exact = pawl::rotate(bytes.to(torch::kFloat64), degrees);
  CHECK(torch::equal(pawl::rotate(bytes, degrees), (exact + .5).floor().to(torch::kUInt8)));
}

TEST_CASE("nearest rotation takes the pixel whose square holds the point") {
  auto const x = random_images({1, 1, 4, 4}).to(torch::kUInt8);
  auto const turned = pawl::rotate(x, 45, pawl::Interpolation::nearest);
  // (x, y) = (-1/2, -1/2) reads column 3/2, row 3/2 - sqrt(1/2) = .79: pixel (1, 2), halves going
  // up
  CHECK(turned[0][0][1][1].item<int>() == x[0][0][1][2].item<int>());
  CHECK(turned[0][0][0][0].item<int>() == 0);  // column 3/2, row -.62
}

TEST_CASE("a symmetric disc does not change under rotation in its interior") {
  auto const side = 41;
  auto const line = torch::arange(side, torch::kFloat64) - 20;
  auto const radius = (line.view({-1, 1}).square() + line.view({1, -1}).square()).sqrt();
  auto const disc = radius.lt(15).to(torch::kFloat64).view({1, 1, side, side});
  auto const inside = radius.lt(13).view({1, 1, side, side});
  for (auto const degrees : {10.0, 33.3, 45.0, 171.0}) {
    auto const turned = pawl::rotate(disc, degrees);
    CHECK((turned - disc).masked_select(inside).abs().max().item<double>() < 1e-6);
  }
}

TEST_CASE("rotation refuses what has no height and width or no angle") {
  CHECK_THROWS_WITH_AS(pawl::rotate(torch::zeros({3, 4}), 10), Contains("[N, C, H, W]"),
                       pawl::Error);
  CHECK_THROWS_WITH_AS(pawl::rotate(torch::zeros({1, 1, 3, 3}), std::nan("")),
                       Contains("the angle is nan"), pawl::Error);
}

TEST_CASE("angles are linear, uniform from the seed, or listed") {
  CHECK(pawl::rotation_angles({.experiences = 4}, {}) == std::vector<double>{0, 45, 90, 135});
  auto const drawn = pawl::rotation_angles(
      {.experiences = 50, .angles = pawl::Angles::uniform, .low = 10, .high = 20}, {3});
  CHECK(*std::min_element(drawn.begin(), drawn.end()) >= 10);
  CHECK(*std::max_element(drawn.begin(), drawn.end()) < 20);
  auto const fewer = pawl::rotation_angles(
      {.experiences = 7, .angles = pawl::Angles::uniform, .low = 10, .high = 20}, {3});
  CHECK(std::equal(fewer.begin(), fewer.end(), drawn.begin()));
  auto const sliced =
      pawl::rotation_angles({.experiences = 50, .angles = pawl::Angles::sliced, .high = 100}, {3});
  auto between = true, even = true;
  for (std::size_t e = 0; e < 50; ++e) {
    auto const begin = 2 * static_cast<double>(e);
    between = between && sliced[e] >= begin && sliced[e] < begin + 2;
    even = even && std::abs(sliced[e] - begin - 1) < 0.5;
  }
  CHECK(between);
  CHECK_FALSE(even);
  CHECK(pawl::rotate(toy(2), {.angle_list = {5, 10}}).size() == 2);
  CHECK_THROWS_WITH_AS(pawl::rotation_angles({.low = 20, .high = 10}, {}), Contains("above high"),
                       pawl::Error);
}

TEST_CASE("a rotated stream shows the same as rotating the images") {
  auto const data = toy(3);
  for (auto const method : {pawl::Interpolation::nearest, pawl::Interpolation::bilinear}) {
    auto const stream = pawl::rotate(data, {.experiences = 4, .interpolation = method});
    auto const train = pawl::read_all(*data.train), test = pawl::read_all(*data.test);
    for (auto const& experience : stream) {
      auto const degrees = 45.0 * static_cast<double>(experience.index);
      CHECK(torch::equal(stored(experience.train), pawl::rotate(train, degrees, method)));
      CHECK(torch::equal(stored(experience.test), pawl::rotate(test, degrees, method)));
    }
  }
}

TEST_CASE("nothing is rotated before an experience is read") {
  auto data = toy(2);
  auto counted = std::make_shared<pawl::Source>(*data.train);
  auto const reads = std::make_shared<int>(0);
  counted->read = [reads, inner = data.train](Tensor const& rows, Tensor& out) {
    ++*reads;
    inner->read(rows, out);
  };
  data.train = counted;
  auto const stream = pawl::rotate(data, {.experiences = 20});
  CHECK(*reads == 0);
  stored(stream[3].train);
  stored(stream[3].train);
  CHECK(*reads == 1);
}

TEST_CASE("digits keep their brightness within 5 % at any angle") {
  auto const root = real_mnist();
  if (root.empty()) return;
  auto const data = pawl::load_mnist(root);
  auto const x = stored(pawl::whole(data.test).select(torch::arange(500, torch::kInt64)));
  auto const before = x.to(torch::kFloat64).sum().item<double>();
  for (auto const method : {pawl::Interpolation::nearest, pawl::Interpolation::bilinear}) {
    for (double degrees = 0; degrees < 360; degrees += 15) {
      auto const after = pawl::rotate(x, degrees, method).to(torch::kFloat64).sum().item<double>();
      CHECK(after / before == doctest::Approx(1).epsilon(.05));
    }
  }
}

// -------------------------------------------------------------------- joint, cumulative, online

TEST_CASE("joint holds every training and test sample once, experience by experience") {
  auto const stream = pawl::split_classes(toy(6), {.experiences = 3});
  auto const all = pawl::joint(stream);
  CHECK(all.size() == 1);
  CHECK(all.outputs == 6);
  CHECK(all[0].classes == Numbers{0, 1, 2, 3, 4, 5});
  Tensor expected = torch::cat({stream[0].train.rows, stream[1].train.rows, stream[2].train.rows});
  CHECK(torch::equal(all[0].train.rows, expected));
  CHECK(all[0].train.source == stream[0].train.source);
  CHECK(all[0].test.size() == 24);
}

TEST_CASE("joint reads each domain through its own transformation") {
  auto const stream =
      pawl::permute_pixels(toy(3), {.experiences = 3, .scenario = pawl::Scenario::task});
  auto const all = pawl::joint(stream)[0];
  CHECK(torch::equal(
      stored(all.train),
      torch::cat({stored(stream[0].train), stored(stream[1].train), stored(stream[2].train)})));
  CHECK(torch::equal(stored(all.test), torch::cat({stored(stream[0].test), stored(stream[1].test),
                                                   stored(stream[2].test)})));
  CHECK(numbers(all.train.tasks.slice(0, 11, 13)) == Numbers{0, 1});
  CHECK(all.task == -1);
}

TEST_CASE("cumulative trains on all that came before, and tests as before") {
  auto const stream =
      pawl::split_classes(toy(6), {.experiences = 3, .scenario = pawl::Scenario::task});
  auto const grown = pawl::cumulative(stream);
  CHECK(grown.size() == 3);
  CHECK(torch::equal(grown[0].train.rows, stream[0].train.rows));
  CHECK(torch::equal(grown[2].train.rows, pawl::joint(stream)[0].train.rows));
  CHECK(
      torch::equal(grown[1].train.rows, torch::cat({stream[0].train.rows, stream[1].train.rows})));
  CHECK(torch::equal(grown[1].train.tasks, torch::tensor({0, 1}).repeat_interleave(8)));
  CHECK(grown[1].test.rows.is_same(stream[1].test.rows));
  CHECK(grown[1].task == 1);
}

TEST_CASE("chunks cut every experience into ceil or floor of N / n parts") {
  auto const stream = pawl::split_classes(toy(5), {.experiences = 2});  // 12 and 8 samples
  auto const parts = pawl::chunks(stream, {.size = 5});
  CHECK(parts.size() == 3 + 2);
  CHECK(parts[2].train.size() == 2);
  CHECK(pawl::chunks(stream, {.size = 5, .drop_last = true}).size() == 2 + 1);
  CHECK(pawl::chunks(stream, {.size = 100}).size() == 2);
  for (std::int64_t e = 0; e < parts.size(); ++e) CHECK(parts[e].index == e);
}

TEST_CASE("parts hold each sample of their experience once, in one seeded order") {
  auto const stream = pawl::split_classes(toy(4), {.experiences = 2});
  auto const parts = pawl::chunks(stream, {.size = 3}, {1});
  auto const rows = torch::cat({parts[0].train.rows, parts[1].train.rows, parts[2].train.rows});
  auto const labels =
      torch::cat({parts[0].train.labels, parts[1].train.labels, parts[2].train.labels});
  CHECK_FALSE(torch::equal(rows, stream[0].train.rows));
  CHECK(torch::equal(std::get<0>(rows.sort()), stream[0].train.rows));
  CHECK(torch::equal(labels, stream[0].train.source->labels.index_select(0, rows)));
  auto const other_size =
      pawl::chunks(stream, {.size = 4}, {1});  // the order does not depend on the size
  CHECK(torch::equal(torch::cat({other_size[0].train.rows, other_size[1].train.rows}), rows));
  auto const other_seed = pawl::chunks(stream, {.size = 8}, {2});
  CHECK_FALSE(torch::equal(other_seed[0].train.rows, rows));
}

TEST_CASE("hidden boundaries leave no trace of the experience") {
  auto const stream = pawl::split_classes(toy(6), {.experiences = 2});
  auto const shown = pawl::chunks(stream, {.size = 2});
  auto const hidden = pawl::chunks(stream, {.size = 2, .boundaries = pawl::Boundaries::hidden});
  CHECK(shown[1].classes == Numbers{0, 1, 2});
  for (auto const& part : hidden) {
    auto present = numbers(part.train.labels);
    std::sort(present.begin(), present.end());
    present.erase(std::unique(present.begin(), present.end()), present.end());
    CHECK(part.classes == present);
  }
  auto const task =
      pawl::split_classes(toy(6), {.experiences = 2, .scenario = pawl::Scenario::task});
  CHECK(pawl::chunks(task, {.size = 2})[7].task == 1);
  CHECK(numbers(pawl::chunks(task, {.size = 2})[7].train.tasks) == Numbers{1, 1});
  CHECK_THROWS_WITH_AS(pawl::chunks(task, {.size = 2, .boundaries = pawl::Boundaries::hidden}),
                       Contains("task ids tell the boundaries"), pawl::Error);
}

TEST_CASE("parts know which experience they are of, unless boundaries are hidden") {
  auto const stream = pawl::split_classes(toy(6), {.experiences = 2});
  CHECK(stream[1].part_of == -1);
  auto const shown = pawl::chunks(stream, {.size = 2});
  CHECK(shown[0].part_of == 0);
  CHECK(shown[shown.size() - 1].index == shown.size() - 1);
  CHECK(shown[shown.size() - 1].part_of == 1);
  auto const hidden = pawl::chunks(stream, {.size = 2, .boundaries = pawl::Boundaries::hidden});
  for (auto const& part : hidden) CHECK(part.part_of == -1);
}

TEST_CASE("chunks of no size, or that are all dropped, are refused") {
  auto const stream = pawl::split_classes(toy(4), {.experiences = 2});
  CHECK_THROWS_WITH_AS(pawl::chunks(stream, {.size = 0}), Contains("size is 0"), pawl::Error);
  CHECK_THROWS_WITH_AS(pawl::chunks(stream, {.size = 9, .drop_last = true}),
                       Contains("all parts were dropped"), pawl::Error);
}

TEST_CASE("evaluation points of an online stream are the ends of its experiences") {
  auto const stream = pawl::split_classes(toy(5), {.experiences = 2});
  CHECK(pawl::evaluation_points(stream) == Numbers{0, 1});
  CHECK(pawl::evaluation_points(pawl::chunks(stream, {.size = 5})) == Numbers{2, 4});
  CHECK(pawl::joint(pawl::chunks(stream, {.size = 5}))[0].test.size() == 20);
}

TEST_CASE("a subsample draws different samples of each experience without repeats") {
  auto const stream = pawl::split_classes(toy(4, 50), {.experiences = 2});
  auto const thin = pawl::subsample(stream, 20, {1});
  CHECK(thin[0].train.size() == 20);
  auto const rows = numbers(thin[1].train.rows);
  CHECK(std::set<std::int64_t>(rows.begin(), rows.end()).size() == 20);
  for (auto const y : numbers(thin[1].train.labels)) CHECK(y >= 2);
  CHECK(thin[0].test.size() == 100);
  CHECK(torch::equal(pawl::subsample(stream, 0)[0].train.rows, stream[0].train.rows));
  CHECK_FALSE(torch::equal(pawl::subsample(stream, 20, {2})[0].train.rows, thin[0].train.rows));
}

// ------------------------------------------------------------------------------- streams by name

TEST_CASE("every named stream describes options that read back as they are") {
  for (auto const& name : pawl::stream_names()) {
    auto stream = pawl::make_stream_choice(name);
    CHECK(stream.name == name);
    CHECK(stream.about.size() > 20);
    CHECK_NOTHROW(pawl::check_options(stream, name));
    std::set<std::string> seen;
    for (auto const& option : pawl::options_of(stream).all()) {
      CHECK(seen.insert(option.name).second);
      CHECK(option.help.size() > 5);
    }
    for (auto const* const option : {"experiences", "scenario", "labels", "pad", "train_limit",
                                     "normalize", "mean", "deviation", "kind", "chunk"}) {
      CHECK(seen.count(option) == 1);
    }
  }
}

TEST_CASE("a wrong stream name or option names the nearest one") {
  CHECK_THROWS_WITH_AS(pawl::make_stream_choice("split_mnsit"),
                       Contains("did you mean 'split_mnist'?"), pawl::Error);
  auto stream = pawl::make_stream_choice("split_digits");
  CHECK_THROWS_WITH_AS(pawl::set_option(stream, "experience", "2"), Contains("'experiences'"),
                       pawl::Error);
  CHECK_THROWS_WITH_AS(pawl::set_option(stream, "scenario", "clas"), Contains("'class'"),
                       pawl::Error);
}

TEST_CASE("options set as text give the same stream as options set in C++") {
  auto named = pawl::make_stream_choice("split_digits");
  pawl::set_option(named, "experiences", "3");
  pawl::set_option(named, "class_order", "9,8,7,6,5,4,3,2,1,0");
  pawl::set_option(named, "scenario", "domain");
  auto const copy = named;  // options follow the object they were described from
  auto const a = copy.build(shipped(), {1});
  auto const b = pawl::split_classes(pawl::load_digits(shipped()),
                                     {.experiences = 3,
                                      .class_order = {9, 8, 7, 6, 5, 4, 3, 2, 1, 0},
                                      .scenario = pawl::Scenario::domain},
                                     {1});
  CHECK(a.outputs == 4);
  REQUIRE(a.size() == b.size());
  for (std::int64_t e = 0; e < 3; ++e) {
    CHECK(torch::equal(a[e].train.labels, b[e].train.labels));
    CHECK(torch::equal(stored(a[e].test), stored(b[e].test)));
  }
}

TEST_CASE("a named stream limits, pads, normalises, joins and cuts") {
  auto named = pawl::make_stream_choice("permuted_digits");
  for (auto const& [option, value] :
       std::vector<std::pair<std::string, std::string>>{{"experiences", "2"},
                                                        {"train_limit", "1000"},
                                                        {"pad", "1"},
                                                        {"normalize", "custom"},
                                                        {"mean", "0.5"},
                                                        {"deviation", "0.25"},
                                                        {"rows_per_experience", "300"}}) {
    pawl::set_option(named, option, value);
  }
  auto const stream = named.build(shipped(), {1});
  CHECK(stream[1].train.size() == 300);
  CHECK(stream[1].test.size() == 355);
  CHECK(stream[1].train.source->shape == Numbers{1, 10, 10});
  auto const zero =
      stream[0].train.normalise(torch::zeros({1, 1, 1, 1}, torch::kUInt8), torch::kFloat32);
  CHECK(zero.item<float>() == -2);
  pawl::set_option(named, "kind", "joint");
  CHECK(named.build(shipped(), {1})[0].train.size() == 600);
  pawl::set_option(named, "chunk", "10");
  CHECK(named.build(shipped(), {1}).size() == 60);
  pawl::set_option(named, "normalize", "none");
  CHECK_THROWS_WITH_AS(named.build(shipped(), {1}), Contains("set normalize = custom"),
                       pawl::Error);
  pawl::set_option(named, "train_limit", "1443");
  CHECK_THROWS_WITH_AS(named.build(shipped(), {1}),
                       Contains("train_limit is 1443 but there are only 1442"), pawl::Error);
}

TEST_CASE("a named stream may end early, with the outputs of the whole") {
  auto named = pawl::make_stream_choice("split_digits");
  pawl::set_option(named, "experiences", "3");
  auto const data = toy(6);
  auto const whole = named.build(data, pawl::Seed{1});
  pawl::set_option(named, "take", "2");
  auto const some = named.build(data, pawl::Seed{1});
  CHECK(some.size() == 2);
  CHECK(some.outputs == whole.outputs);
  CHECK(torch::equal(some[1].train.rows, whole[1].train.rows));
  pawl::set_option(named, "take", "99");
  CHECK_THROWS_WITH_AS(named.build(data, pawl::Seed{1}), Contains("take is 99 but there are only"),
                       pawl::Error);
}

TEST_CASE("a rotated named stream takes angles as text") {
  auto named = pawl::make_stream_choice("rotated_digits");
  pawl::set_option(named, "angle_list", "0,90");
  pawl::set_option(named, "interpolation", "nearest");
  auto const stream = named.build(shipped(), {});
  CHECK(stream.size() == 2);
  CHECK(torch::equal(stored(stream[1].test), stored(stream[0].test).rot90(1, {2, 3})));
}
