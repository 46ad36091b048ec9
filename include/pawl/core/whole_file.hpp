#pragma once

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "error.hpp"

#include <fcntl.h>
#include <unistd.h>

namespace pawl {
inline namespace v0 {

/// Writes bytes aside, syncs and renames, so that a file is there whole or not at all.
inline void write_file_whole(std::filesystem::path const& path,
                             std::vector<std::string_view> const& pieces) {
  auto aside = path;
  aside += ".part";
  auto const file = ::open(aside.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  auto const give_up = [&](char const* what) {
    auto const reason = std::string(std::strerror(errno));
    if (file >= 0) ::close(file), ::unlink(aside.c_str());
    fail("cannot ", what, " '", path.string(), "': ", reason);
  };
  if (file < 0) give_up("create");
  for (auto piece : pieces) {
    while (!piece.empty()) {
      auto const written = ::write(file, piece.data(), piece.size());
      if (written < 0 && errno == EINTR) continue;
      if (written <= 0) give_up("write");
      piece.remove_prefix(static_cast<std::size_t>(written));
    }
  }
  if (::fsync(file) != 0) give_up("write");
  ::close(file);
  std::error_code failed;
  std::filesystem::rename(aside, path, failed);
  if (failed) {
    std::filesystem::remove(aside);
    fail("cannot write '", path.string(), "': ", failed.message());
  }
}

}  // namespace v0
}  // namespace pawl
