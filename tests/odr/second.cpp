#include "pawl/pawl.hpp"

char const* version_seen_by_the_second();
char const* version_seen_by_the_second() { return PAWL_VERSION; }
