#include "commands.hpp"
namespace bench {
int reproduce_command(Arguments const&) { throw UsageError("not yet"); }
}
