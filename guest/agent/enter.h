/* enter: in the main process's child, in its new mount namespace: from the agent's root into the workload's. */
#pragma once

#include "launch.h"

int enter_root (const struct launch *launch, struct fault *fault);
