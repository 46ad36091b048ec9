#pragma once

// Everything but the models (`models/`) and the choices by name for programs (`*/catalogue.hpp`).

#include "core/any_learner.hpp"
#include "core/learner.hpp"
#include "metrics/accuracy_matrix.hpp"
#include "metrics/anytime.hpp"
#include "metrics/evaluate.hpp"
#include "metrics/statistics.hpp"
#include "version.hpp"
