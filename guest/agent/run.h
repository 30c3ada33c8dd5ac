/* run: the last steps in the child, inside the workload's root: user, rights, directory, program. */
#pragma once

#include "process.h"

/* Does not return when it succeeds. */
int run_process (struct process *process, bool make_cwd, struct fault *fault);
