#include "revision.hpp"

#ifndef PAWL_REVISION_HEADER
#define PAWL_GIT_REVISION "unknown"
#else
#include PAWL_REVISION_HEADER
#endif

namespace bench {

char const* git_revision() { return PAWL_GIT_REVISION; }

}  // namespace bench
