/* init: the small PID 1 of a workload's namespace (`docker run --init`): reaps and forwards signals. */
#pragma once

#include "util.h"

/* Fork the real program: 0 in it, its pid in the init.  With a tty it gets the foreground. */
pid_t init_fork (bool tty);
/* Ends as the program did. */
_Noreturn void init_run (pid_t child);
