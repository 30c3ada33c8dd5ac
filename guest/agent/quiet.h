/* quiet: whether the guest has nothing to do. */
#pragma once

#include <stdbool.h>

/* Nothing but the caller wants a CPU, and nothing waits for a disk; `at_a_glance`: whatever waits for a disk. */
bool is_quiet (bool at_a_glance);

/* How many tasks run or want to, of the text of /proc/loadavg; 0 for another text.  Pure. */
int quiet_running (const char *loadavg);
/* How many wait for a disk, of the text of /proc/stat; 0 when it does not say.  Pure. */
int quiet_blocked (const char *stat);
