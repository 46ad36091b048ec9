// The floor: what pawl/torch.hpp includes.
#include <pawl/torch.hpp>
