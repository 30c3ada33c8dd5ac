/* launch: from the agent to a running program in the workload's namespaces.
 *
 * The caller gets reports through a pipe: one with the pid (exec only), then either its end, when execve has
 * succeeded, or one with a fault. */
#pragma once

#include "process.h"

struct launch
{
  struct process *process;
  int stdio[3];             /* the workload's ends */
  char console[32];         /* the agent's path of its tty, or "" */
  char *const *sysctls;     /* main process only, NULL-terminated */
  bool read_only;           /* the root */
};

struct report
{
  int32_t pid; /* 0: this is a fault */
  struct fault fault;
};

/* Both return a pid and set *reports, or -1.  For an exec the pid is a helper's that ends by itself; the
 * program's own comes as a report, before it can have ended. */
pid_t launch_main (const struct launch *launch, int *reports, struct fault *fault);
pid_t launch_exec (const struct launch *launch, pid_t main_pid, int *reports, struct fault *fault);
/* A child of ours that runs `work` in the agent's namespaces, chrooted to the workload's root if `root`. */
typedef int work_fn (void *arg, struct fault *fault);
pid_t launch_work (work_fn *work, void *arg, const int stdio[3], int *reports, struct fault *fault);

/* In the child: undo what PID 1 set for itself. */
void reset_signals (void);
