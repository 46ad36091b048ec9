#include "pawl/pawl.hpp"

char const* version_seen_by_the_second();

int main() { return version_seen_by_the_second() == nullptr; }
