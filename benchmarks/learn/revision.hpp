#pragma once

namespace bench {

/// The git revision that the program was built from, or "unknown".
char const* git_revision();

}  // namespace bench
