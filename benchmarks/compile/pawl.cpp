// What a user's source file pays for the whole library.
#include <pawl/pawl.hpp>
