/* limits: what the workload's cgroup may use of the guest. */
#pragma once

#include "util.h"

/* One that the host has set: `pids.max=100`, a file of the workload's cgroup. */
int limits_set (const char *text, struct fault *fault);

/* See how much there is to have; limits_keep_reserve does it, unless it was done before. */
int limits_look (struct fault *fault);

/* After limits_set: lower what would leave the kernel and the agent nothing. */
int limits_keep_reserve (struct fault *fault);

/* `memory.max=…` or `pids.max=…` of a workload that runs; no more than limits_keep_reserve has left, whatever is asked. */
int limits_change (const char *text, struct fault *fault);

/* The most that limits_change will set. */
long long limits_most_memory (void);
long long limits_most_tasks (void);

/* A new cgroup in place of the workload's, without its limits and rules. */
int limits_renew (struct fault *fault);

/* How much the workload may have of a guest with these figures of /proc/meminfo, in bytes.  Pure. */
long long limits_memory (const char *meminfo);
