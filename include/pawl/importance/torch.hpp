#pragma once

// What importances need of LibTorch beyond pawl's torch.hpp: the nodes of autograd's graph and its
// engine. Half a second of compile time that only users of importances pay.

#include "../torch.hpp"

#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/generated/Functions.h>
