#include "pawl/data/cifar.hpp"
#include "pawl/data/digits.hpp"
#include "pawl/data/find.hpp"
#include "pawl/data/idx.hpp"
#include "pawl/data/load.hpp"
#include "pawl/data/pad.hpp"

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <unistd.h>
#include <zlib.h>

namespace {

namespace fs = std::filesystem;
using doctest::Contains;

/// A folder that is removed with its files at the end of the test.
struct Scratch {
  fs::path path = fs::temp_directory_path() /
                  ("pawl_data_" + std::to_string(::getpid()) + "_" + std::to_string(counter++));
  Scratch() { fs::create_directories(path); }
  ~Scratch() { fs::remove_all(path); }
  fs::path operator/(std::string const& name) const { return path / name; }
  static inline std::atomic<int> counter = 0;
};

/// Sets PAWL_DATA for a scope (an empty text unsets it).
struct WithPawlData {
  std::string before = std::getenv("PAWL_DATA") ? std::getenv("PAWL_DATA") : "";
  explicit WithPawlData(std::string const& value) { put(value); }
  ~WithPawlData() { put(before); }
  static void put(std::string const& value) {
    value.empty() ? ::unsetenv("PAWL_DATA") : ::setenv("PAWL_DATA", value.c_str(), 1);
  }
};

std::string text(fs::path const& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

fs::path write(fs::path const& path, std::string const& bytes) {
  fs::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << bytes;
  return path;
}

std::string gzip(Scratch const& scratch, std::string const& bytes) {
  auto const path = (scratch / "packed").string();
  auto const file = gzopen(path.c_str(), "wb");
  REQUIRE(gzwrite(file, bytes.data(), static_cast<unsigned>(bytes.size())) ==
          static_cast<int>(bytes.size()));
  REQUIRE(gzclose(file) == Z_OK);
  return text(path);
}

std::string idx(int type, std::vector<std::uint32_t> const& sizes, std::string const& data) {
  std::string bytes{'\0', '\0', static_cast<char>(type), static_cast<char>(sizes.size())};
  for (auto const n : sizes) {
    for (int shift = 24; shift >= 0; shift -= 8) bytes += static_cast<char>(n >> shift & 255);
  }
  return bytes + data;
}

/// n bytes that differ from each other and between images.
std::string ramp(std::size_t n) {
  std::string bytes(n, '\0');
  for (std::size_t i = 0; i < n; ++i) bytes[i] = static_cast<char>(i * 31 + i / 256);
  return bytes;
}

/// A tiny MNIST: 3 train and 2 test images of 28x28.
void write_mnist(fs::path const& folder) {
  write(folder / "train-images-idx3-ubyte", idx(8, {3, 28, 28}, ramp(3 * 784)));
  write(folder / "train-labels-idx1-ubyte", idx(8, {3}, {7, 0, 9}));
  write(folder / "t10k-images-idx3-ubyte", idx(8, {2, 28, 28}, ramp(2 * 784)));
  write(folder / "t10k-labels-idx1-ubyte", idx(8, {2}, {1, 2}));
}

std::string cifar_row(int label_bytes, int label, unsigned char fill) {
  std::string row(static_cast<std::size_t>(label_bytes), static_cast<char>(label));
  row += std::string(1024, static_cast<char>(fill));
  row += std::string(1024, static_cast<char>(fill + 1));
  row += std::string(1024, static_cast<char>(fill + 2));
  return row;
}

std::string digit_line(int value, int label) {
  std::string line;
  for (int i = 0; i < 64; ++i) line += std::to_string(value) + ",";
  return line + std::to_string(label) + "\n";
}

fs::path shipped() { return fs::path(__FILE__).parent_path() / ".." / ".." / "data"; }

/// The folder of real data sets; empty where there is none.
fs::path real_mnist() {
  auto const* const folder = std::getenv("PAWL_TEST_DATA");
  if (folder != nullptr && fs::is_directory(fs::path(folder) / "mnist")) return folder;
  MESSAGE("skipped: no MNIST under '", folder ? folder : "", "' (PAWL_TEST_DATA)");
  return {};
}

std::int64_t element(pawl::Tensor const& t, std::vector<std::int64_t> const& index) {
  auto x = t;
  for (auto const i : index) x = x[i];
  return x.item<std::int64_t>();
}

}  // namespace

TEST_CASE("an IDX file reads alike plain and packed, element for element") {
  Scratch const scratch;
  auto const bytes = idx(8, {2, 3, 2}, ramp(12));
  auto const plain = pawl::read_idx(write(scratch / "plain", bytes));
  auto const packed = pawl::read_idx(write(scratch / "file.gz", gzip(scratch, bytes)));
  CHECK(plain.sizes() == torch::IntArrayRef{2, 3, 2});
  CHECK((plain.scalar_type() == torch::kUInt8));
  CHECK(torch::equal(plain, packed));
  for (std::int64_t i = 0; i < 12; ++i) CHECK(element(plain.reshape({12}), {i}) == i * 31 % 256);
}

TEST_CASE("gzip data in several members is read to its end") {
  Scratch const scratch;
  auto const bytes = idx(8, {300}, ramp(300));
  auto const two = gzip(scratch, bytes.substr(0, 100)) + gzip(scratch, bytes.substr(100));
  CHECK(torch::equal(pawl::read_idx(write(scratch / "two.gz", two)),
                     pawl::read_idx(write(scratch / "plain", bytes))));
}

TEST_CASE("a damaged IDX file is refused with the reason and the file name") {
  Scratch const scratch;
  auto const refuse = [&](std::string const& bytes, char const* reason) {
    auto const path = write(scratch / "bad-idx", bytes);
    CHECK_THROWS_WITH_AS(pawl::read_idx(path), Contains("bad-idx: "), pawl::Error);
    CHECK_THROWS_WITH_AS(pawl::read_idx(path), Contains(reason), pawl::Error);
  };
  auto const good = idx(8, {2, 3}, ramp(6));
  refuse("", "only 0 bytes");
  refuse(good.substr(0, 3), "only 3 bytes");
  refuse(good.substr(0, 7), "header is truncated");
  refuse(good.substr(0, good.size() - 1), "is truncated");
  refuse(good + "x", "1 bytes follow the 6");
  refuse("x" + good.substr(1), "magic number");
  refuse(idx(8, {}, ""), "header is truncated");
  refuse(idx(8, {0, 3}, ""), "dimension 0 is 0");
  refuse(idx(0x0D, {1}, ramp(4)), "type 13");
  refuse(idx(8, {0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF}, ramp(6)), "is truncated");
  refuse(idx(8, {65536, 65536, 65536, 65536}, ramp(6)), "is truncated");  // 2^64 wraps to 0
  CHECK_THROWS_WITH_AS(pawl::read_idx(scratch / "absent"), Contains("cannot be read"), pawl::Error);
  CHECK_THROWS_WITH_AS(pawl::read_idx(scratch.path), Contains("cannot be read"), pawl::Error);
}

TEST_CASE("damaged gzip data is refused") {
  Scratch const scratch;
  auto const good = gzip(scratch, idx(8, {5000}, ramp(5000)));
  auto const refuse = [&](std::string const& bytes, char const* reason) {
    auto const path = write(scratch / "bad.gz", bytes);
    CHECK_THROWS_WITH_AS(pawl::read_idx(path), Contains(reason), pawl::Error);
  };
  for (std::size_t n : {2, 9, 30}) refuse(good.substr(0, n), "truncated");
  refuse(good.substr(0, good.size() - 1), "truncated");
  refuse(good + "garbage", "7 bytes follow the end");
  refuse(good + std::string(1, '\0'), "1 bytes follow the end");
  auto claims_more = good;
  for (auto i = good.size() - 4; i < good.size(); ++i) claims_more[i] = '\xFF';
  refuse(claims_more, "damaged");
}

TEST_CASE("no flipped bit in packed data goes unnoticed") {
  Scratch const scratch;
  auto const bytes = idx(8, {40}, ramp(40));
  auto const good = gzip(scratch, bytes);
  auto const expected = pawl::read_idx(write(scratch / "good.gz", good));
  int refused = 0, harmless = 0;
  for (std::size_t bit = 0; bit < 8 * good.size(); ++bit) {
    auto flipped = good;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ 1 << bit % 8);
    auto const path = write(scratch / "flipped.gz", flipped);
    try {
      auto const read = pawl::read_idx(path);
      CHECK(torch::equal(read, expected));
      ++harmless;  // time stamp, flags and system of the gzip header say nothing about the data
    } catch (pawl::Error const&) {
      ++refused;
    }
  }
  CHECK(refused + harmless == static_cast<int>(8 * good.size()));
  CHECK(harmless <= 8 * 7);
}

TEST_CASE("MNIST is found under its official names, in subfolders and packed") {
  for (auto const* const folder : {"", "mnist", "MNIST/raw"}) {
    Scratch const scratch;
    write_mnist(scratch.path / folder);
    auto const data = pawl::load_mnist(scratch.path);
    CHECK(data.name == "mnist");
    CHECK(data.classes == 10);
    CHECK(data.train->size() == 3);
    CHECK(data.test->size() == 2);
    CHECK(data.train->shape == std::vector<std::int64_t>{1, 28, 28});
    CHECK((data.train->dtype == torch::kUInt8));
    CHECK(element(data.train->labels, {2}) == 9);
    CHECK(data.normalise.scale == 1.0 / 255);
  }
  Scratch const scratch;
  write_mnist(scratch.path);
  for (auto const* const name : {"train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"}) {
    auto dotted = std::string(name);
    dotted.replace(dotted.find("-idx"), 1, ".");
    write(scratch / (dotted + ".gz"), gzip(scratch, text(scratch / name)));
    fs::remove(scratch / name);
  }
  CHECK(element(pawl::load_mnist(scratch.path).test->labels, {1}) == 2);
}

TEST_CASE("rows of MNIST come out as stored, and normalised to [0, 1]") {
  Scratch const scratch;
  write_mnist(scratch.path);
  auto const data = pawl::load_mnist(scratch.path);
  auto const rows = pawl::whole(data.train, data.normalise).read(torch::tensor({2L, 0L}));
  auto const bytes = ramp(3 * 784);
  CHECK(element(rows.stored, {0, 0, 1, 3}) == static_cast<unsigned char>(bytes[2 * 784 + 28 + 3]));
  CHECK(element(rows.y, {0}) == 9);
  auto const x = data.normalise(torch::full({1, 1, 28, 28}, 255, torch::kUInt8), torch::kFloat64);
  CHECK(x.min().item<double>() == doctest::Approx(1.0));
}

TEST_CASE("MNIST files that do not belong together are refused") {
  Scratch const scratch;
  auto const refuse = [&](char const* file, std::string const& bytes, char const* reason) {
    write_mnist(scratch.path);
    write(scratch / file, bytes);
    CHECK_THROWS_WITH_AS(pawl::load_mnist(scratch.path), Contains(reason), pawl::Error);
    CHECK_THROWS_WITH_AS(pawl::load_mnist(scratch.path), Contains(file), pawl::Error);
  };
  refuse("train-labels-idx1-ubyte", idx(8, {2}, {1, 2}), "3 images, but");
  refuse("train-labels-idx1-ubyte", idx(8, {3}, {1, 10, 2}), "label 10, but labels are 0 .. 9");
  refuse("t10k-labels-idx1-ubyte", idx(8, {2, 28, 28}, ramp(2 * 784)), "is it the label file");
  refuse("t10k-images-idx3-ubyte", idx(8, {2}, {1, 2}), "is it the image file");
  refuse("train-images-idx3-ubyte", idx(8, {3, 14, 56}, ramp(3 * 784)), "14x56");
}

TEST_CASE("a missing data set names the files that were looked for and how to get them") {
  Scratch const scratch;
  CHECK_THROWS_WITH_AS(pawl::load("mnist", scratch.path),
                       Contains("mnist/train-images-idx3-ubyte.gz"), pawl::Error);
  CHECK_THROWS_WITH_AS(pawl::load("mnist", scratch.path), Contains("scripts/fetch_data mnist"),
                       pawl::Error);
  CHECK_THROWS_WITH_AS(pawl::load("cifar10", scratch.path),
                       Contains("cifar-10-batches-bin/data_batch_1.bin"), pawl::Error);
  CHECK_THROWS_WITH_AS(pawl::load("minst", scratch.path), Contains("did you mean 'mnist'?"),
                       pawl::Error);
  CHECK_THROWS_WITH_AS(pawl::load("mnist", scratch / "nowhere"), Contains("nowhere' (as given)"),
                       pawl::Error);
}

TEST_CASE("the data folder is the one given, else PAWL_DATA") {
  Scratch const scratch;
  write_mnist(scratch / "mnist");
  WithPawlData const set(scratch.path.string());
  CHECK(pawl::load("mnist").train->size() == 3);
  CHECK(pawl::data_root(scratch / "mnist") == scratch / "mnist");
  WithPawlData const wrong((scratch / "gone").string());
  CHECK_THROWS_WITH_AS(pawl::data_root(), Contains("from PAWL_DATA"), pawl::Error);
}

TEST_CASE("Fashion-MNIST is never taken from files of MNIST") {
  Scratch const scratch;
  write_mnist(scratch.path);
  CHECK_THROWS_AS(pawl::load_fashion_mnist(scratch.path), pawl::Error);
  write_mnist(scratch / "fashion_mnist");
  CHECK(pawl::load("fashion_mnist", scratch.path).name == "fashion_mnist");
  CHECK(pawl::load_fashion_mnist(scratch / "fashion_mnist").train->size() == 3);
}

TEST_CASE("CIFAR-10 joins its batches in order, channels first") {
  Scratch const scratch;
  for (int b = 1; b <= 5; ++b) {
    write(scratch / ("cifar-10-batches-bin/data_batch_" + std::to_string(b) + ".bin"),
          cifar_row(1, b, static_cast<unsigned char>(10 * b)) + cifar_row(1, 9, 250));
  }
  write(scratch / "cifar-10-batches-bin/test_batch.bin", cifar_row(1, 4, 99));
  auto const data = pawl::load("cifar10", scratch.path);
  CHECK(data.train->shape == std::vector<std::int64_t>{3, 32, 32});
  CHECK(torch::equal(data.train->labels, torch::tensor({1, 9, 2, 9, 3, 9, 4, 9, 5, 9})));
  auto const x = pawl::read_all(*data.train);
  CHECK(element(x, {4, 0, 0, 0}) == 30);
  CHECK(element(x, {4, 1, 31, 31}) == 31);
  CHECK(element(x, {4, 2, 5, 6}) == 32);
  CHECK(data.test->size() == 1);
  CHECK(pawl::load_cifar10(scratch / "cifar-10-batches-bin").classes == 10);
}

TEST_CASE("a CIFAR-10 batch that is shorter than the others is refused") {
  Scratch const scratch;
  for (int b = 1; b <= 5; ++b) {
    auto const row = cifar_row(1, b, 1);
    write(scratch / ("data_batch_" + std::to_string(b) + ".bin"), b == 4 ? row : row + row);
  }
  write(scratch / "test_batch.bin", cifar_row(1, 4, 99));
  CHECK_THROWS_WITH_AS(pawl::load_cifar10(scratch.path),
                       Contains("data_batch_4.bin: has 1 rows but data_batch_1.bin has 2"),
                       pawl::Error);
}

TEST_CASE("CIFAR-100 gives fine or coarse labels") {
  Scratch const scratch;
  auto row = cifar_row(2, 0, 7);
  row[0] = 19;
  row[1] = 99;
  write(scratch / "cifar-100-binary/train.bin", row);
  write(scratch / "cifar-100-binary/test.bin", row + row);
  auto const fine = pawl::load("cifar100", scratch.path);
  auto const coarse = pawl::load_cifar100(scratch.path, pawl::CifarLabels::coarse);
  CHECK(fine.classes == 100);
  CHECK(element(fine.train->labels, {0}) == 99);
  CHECK(coarse.classes == 20);
  CHECK(element(coarse.test->labels, {1}) == 19);
  CHECK(element(pawl::read_all(*fine.test), {1, 0, 0, 0}) == 7);
}

TEST_CASE("a damaged CIFAR file is refused") {
  Scratch const scratch;
  auto const row = cifar_row(2, 0, 7);
  auto const refuse = [&](std::string const& bytes, char const* reason) {
    write(scratch / "test.bin", row);
    write(scratch / "train.bin", bytes);
    CHECK_THROWS_WITH_AS(pawl::load_cifar100(scratch.path), Contains(reason), pawl::Error);
    CHECK_THROWS_WITH_AS(pawl::load_cifar100(scratch.path), Contains("train.bin: "), pawl::Error);
  };
  refuse("", "has 0 bytes");
  refuse(row.substr(1), "3073 bytes, which is no positive multiple of the row size 3074");
  refuse(row + "x", "3075 bytes");
  refuse(char(20) + row.substr(1), "label 20, but labels are 0 .. 19");
  refuse(row.substr(0, 1) + char(100) + row.substr(2), "label 100, but labels are 0 .. 99");
}

TEST_CASE("the shipped digits have 1,797 rows, every fifth of a class for testing") {
  auto const data = pawl::load("digits", shipped());
  CHECK(data.train->size() == 1442);
  CHECK(data.test->size() == 355);
  CHECK(data.train->shape == std::vector<std::int64_t>{1, 8, 8});
  CHECK(data.normalise.scale == 1.0 / 16);
  auto const train = torch::bincount(data.train->labels, {}, 10);
  auto const test = torch::bincount(data.test->labels, {}, 10);
  CHECK(torch::equal(
      train + test,
      torch::tensor({178, 182, 177, 183, 181, 182, 181, 179, 174, 180}).to(torch::kLong)));
  CHECK(torch::equal(test, (train + test).floor_divide(5)));
  auto const x = pawl::read_all(*data.train);
  CHECK(x.max().item<int>() == 16);
  CHECK(torch::equal(x[0][0][0], torch::tensor({0, 0, 5, 13, 9, 1, 0, 0}, torch::kUInt8)));
  CHECK(pawl::load_digits(shipped() / "digits").train->size() == 1442);
  CHECK(pawl::load_digits(shipped() / "digits" / "digits.csv.gz").train->size() == 1442);
}

TEST_CASE("a damaged digits file is refused with its line") {
  Scratch const scratch;
  auto const refuse = [&](std::string const& bytes, char const* reason) {
    auto const path = write(scratch / "digits.csv", bytes);
    CHECK_THROWS_WITH_AS(pawl::load_digits(path), Contains(reason), pawl::Error);
  };
  auto const good = digit_line(16, 9);
  refuse("", "is empty");
  refuse(good + digit_line(17, 0), "line 2, value 1 must be an integer 0 .. 16");
  refuse(digit_line(3, 10), "line 1, value 65 must be an integer 0 .. 9");
  refuse(good + good.substr(2), "line 2");
  refuse("0," + good, "line 1, value 65");
  refuse(good.substr(0, good.size() - 1) + ",1\n", "wrong after value 65");
  refuse(good.substr(0, good.size() - 3), "line 1");
  refuse(good + "\n", "line 2");
  refuse("a" + good, "line 1, value 1");
  refuse("-" + good, "line 1, value 1");
  refuse(good + good + good + good, "4 samples are too few for a training and a test set");
}

TEST_CASE("a digits file may end without a line break and have DOS ones") {
  Scratch const scratch;
  std::string all;
  for (int i = 0; i < 5; ++i) all += digit_line(i, 4);
  all.insert(all.find('\n'), "\r");
  all.pop_back();
  auto const data = pawl::load_digits(write(scratch / "digits.csv", all));
  CHECK(torch::equal(pawl::read_all(*data.train).select(3, 7).select(2, 7).flatten(),
                     torch::tensor({0, 1, 2, 3}, torch::kUInt8)));
  CHECK(element(pawl::read_all(*data.test), {0, 0, 0, 0}) == 4);
}

TEST_CASE("padding puts zeros around every stored image") {
  Scratch const scratch;
  write_mnist(scratch.path);
  auto const data = pawl::load_mnist(scratch.path);
  auto const wide = pawl::pad(data, 2);
  CHECK(wide.train->shape == std::vector<std::int64_t>{1, 32, 32});
  auto const x = pawl::read_all(*wide.train);
  CHECK(torch::equal(x.slice(2, 2, 30).slice(3, 2, 30), pawl::read_all(*data.train)));
  CHECK(x.sum(torch::kInt64).item<std::int64_t>() ==
        pawl::read_all(*data.train).sum(torch::kInt64).item<std::int64_t>());
  CHECK(torch::equal(wide.test->labels, data.test->labels));
  CHECK(pawl::pad(data, 0).train == data.train);
  CHECK_THROWS_WITH_AS(pawl::pad(data, -1), Contains("-1 pixels"), pawl::Error);
}

TEST_CASE("a limit keeps the first training rows and the whole test set") {
  Scratch const scratch;
  write_mnist(scratch.path);
  auto const data = pawl::load_mnist(scratch.path);
  auto const two = pawl::first(data, 2);
  CHECK(two.train->size() == 2);
  CHECK(two.test == data.test);
  CHECK(torch::equal(pawl::read_all(*two.train), pawl::read_all(*data.train).slice(0, 0, 2)));
  CHECK(pawl::first(data, 0).train->size() == 3);
  CHECK_THROWS_WITH_AS(pawl::first(data, 4), Contains("4 of the 3"), pawl::Error);
}

TEST_CASE("normalisation is checked against the channels") {
  Scratch const scratch;
  write_mnist(scratch.path);
  auto const data = pawl::load_mnist(scratch.path);
  auto const shifted = pawl::normalised(data, {.5}, {.25});
  auto const x = shifted.normalise(torch::full({1, 1, 1, 1}, 255, torch::kUInt8), torch::kFloat64);
  CHECK(x.item<double>() == doctest::Approx(2.0));
  CHECK_THROWS_WITH_AS(pawl::normalised(data, {.5, .5}, {.2, .2}), Contains("1 channels"),
                       pawl::Error);
  CHECK_THROWS_WITH_AS(pawl::normalised(data, {.5}, {}), Contains("0 deviations"), pawl::Error);
  CHECK_THROWS_WITH_AS(pawl::normalised(data, {.5}, {0}), Contains("positive"), pawl::Error);
}

TEST_CASE("the real MNIST has its known counts and brightness") {
  auto const root = real_mnist();
  if (root.empty()) return;
  auto const data = pawl::load("mnist", root);
  CHECK(data.train->size() == 60000);
  CHECK(data.test->size() == 10000);
  auto const counts = torch::bincount(data.train->labels, {}, 10);
  CHECK(torch::equal(counts,
                     torch::tensor({5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949})
                         .to(torch::kLong)));
  auto const x = pawl::read_all(*data.train).to(torch::kFloat64).div_(255);
  CHECK(x.mean().item<double>() == doctest::Approx(.1307).epsilon(1e-3));
  CHECK(x.std().item<double>() == doctest::Approx(.3081).epsilon(1e-3));
  auto const wide = pawl::read_all(*pawl::pad(data, 2).train).to(torch::kFloat64).div_(255);
  CHECK(wide.mean().item<double>() == doctest::Approx(.1000).epsilon(1e-3));
  CHECK(wide.std().item<double>() == doctest::Approx(.2752).epsilon(1e-3));
}
