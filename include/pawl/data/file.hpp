#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "../core/error.hpp"
#include "../core/files.hpp"

#include <zlib.h>

namespace pawl {
inline namespace v0 {

namespace detail {

/// A zlib stream that is closed when it goes out of scope.
struct Inflater {
  z_stream stream{};

  Inflater() { require(inflateInit2(&stream, 16 + MAX_WBITS) == Z_OK, "zlib does not start"); }
  ~Inflater() { inflateEnd(&stream); }
  Inflater(Inflater const&) = delete;
  Inflater& operator=(Inflater const&) = delete;
};

/// Buffer size to begin with: what the file says about itself, but never more than its bytes can
/// hold (deflate packs at most 1032 to 1). One spare byte lets zlib see the end without growing.
inline std::int64_t first_guess(std::uint8_t const* packed, std::int64_t size) {
  if (size < 18) return 1;
  auto const* tail = packed + size - 4;
  std::int64_t const claimed = tail[0] | tail[1] << 8 | tail[2] << 16 | std::int64_t{tail[3]} << 24;
  return std::min(claimed, 1032 * size) + 1;
}

/// Unpacks gzip members one after another and checks their sums; whatever else follows is an error.
inline Tensor inflated(Tensor const& packed, std::string const& file) {
  auto const* const source = packed.data_ptr<std::uint8_t>();
  auto const size = packed.numel();
  constexpr std::int64_t piece = 1 << 30;  // zlib counts in 32 bits
  auto out = torch::empty({first_guess(source, size)}, torch::kUInt8);
  Inflater inflater;
  auto& z = inflater.stream;
  std::int64_t taken = 0, made = 0;
  while (true) {
    if (made == out.numel()) out.resize_({2 * made});
    z.next_in = const_cast<std::uint8_t*>(source + taken);  // zlib only reads from it
    z.avail_in = static_cast<uInt>(std::min(size - taken, piece));
    z.next_out = out.data_ptr<std::uint8_t>() + made;
    z.avail_out = static_cast<uInt>(std::min(out.numel() - made, piece));
    auto const code = inflate(&z, Z_NO_FLUSH);
    taken = z.next_in - source;
    made = z.next_out - out.data_ptr<std::uint8_t>();
    if (code == Z_STREAM_END) {
      if (taken == size) return out.narrow(0, 0, made);
      require(size - taken > 2 && source[taken] == 0x1f && source[taken + 1] == 0x8b,
              {file, ": ", size - taken,
               " bytes follow the end of the gzip data; fetch the file again"});
      inflateReset(&z);
    } else {
      require(code != Z_BUF_ERROR,
              {file, ": the gzip data is truncated; fetch the file again (scripts/fetch_data)"});
      require(code == Z_OK, {file, ": the gzip data is damaged (", z.msg ? z.msg : "checksum",
                             "); fetch the file again (scripts/fetch_data)"});
    }
  }
}

}  // namespace detail

/// Reads a whole file, plain or gzip (told apart by their first bytes): [n] uint8. Throws `Error`
/// when the file cannot be read, or when gzip data is truncated, damaged or followed by anything
/// else.
inline Tensor read_bytes(std::string const& path) {
  auto const bytes = read_file(path);
  auto const* data = bytes.numel() < 2 ? nullptr : bytes.data_ptr<std::uint8_t>();
  auto const packed = data != nullptr && data[0] == 0x1f && data[1] == 0x8b;
  return packed ? detail::inflated(bytes, path) : bytes;
}

}  // namespace v0
}  // namespace pawl
