#include "launch.h"

#include "enter.h"
#include "init.h"
#include "paths.h"
#include "run.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

void
reset_signals (void)
{
  sigset_t none;

  for (int signum = 1; signum < NSIG; signum++)
    signal (signum, SIG_DFL);
  sigemptyset (&none);
  sigprocmask (SIG_SETMASK, &none, NULL);
}

static _Noreturn void
report_fault (int reports, const struct fault *fault)
{
  struct report report = { .fault = *fault };
  write_all (reports, &report, sizeof report);
  _exit (127);
}

static int
take_stdio (const struct launch *launch, struct fault *fault)
{
  if (setsid () < 0)
    return fail (fault, FAULT_FAILED, errno, "new session");
  for (int i = 0; i < 3; i++)
    if (dup2 (launch->stdio[i], i) < 0)
      return fail (fault, FAULT_FAILED, errno, "standard streams");
  if (launch->process->tty && ioctl (0, TIOCSCTTY, 0) < 0)
    return fail (fault, FAULT_FAILED, errno, "controlling terminal");
  return 0;
}

static int
prepare_main (const struct launch *launch, struct fault *fault)
{
  reset_signals ();
  prctl (PR_SET_DUMPABLE, 0, 0, 0, 0);
  if (unshare (CLONE_NEWCGROUP) < 0)
    return fail (fault, FAULT_FAILED, errno, "new cgroup namespace");
  if (take_stdio (launch, fault) < 0)
    return -1;
  return enter_root (launch, fault);
}

/* The main process, or the small init before it. */
static _Noreturn void
child_main (const struct launch *launch, int reports)
{
  struct fault fault;

  if (prepare_main (launch, &fault) < 0)
    report_fault (reports, &fault);
  if (launch->process->init)
    {
      pid_t pid = init_fork (launch->process->tty);
      if (pid < 0)
        {
          fail (&fault, FAULT_FAILED, errno, "fork");
          report_fault (reports, &fault);
        }
      if (pid > 0)
        init_run (pid);
    }
  run_process (launch->process, true, &fault);
  report_fault (reports, &fault);
}

static pid_t
raw_clone (unsigned long flags)
{
  return (pid_t) syscall (SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);
}

/* Born in the workload's cgroup: to move there later waits for every CPU. */
static pid_t
clone_main (struct fault *fault)
{
  cleanup_close int group = open (CGROUP_WORKLOAD, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  /* no IPC namespace: nothing of ours is in the kernel's first one */
  struct clone_args args = { .flags = CLONE_INTO_CGROUP | CLONE_NEWNS | CLONE_NEWPID,
                             .exit_signal = SIGCHLD,
                             .cgroup = (uint64_t) group };
  pid_t pid = group < 0 ? -1 : (pid_t) syscall (SYS_clone3, &args, sizeof args);

  return pid < 0 ? fail (fault, FAULT_FAILED, errno, "start the main process") : pid;
}

/* An exec moves there: whoever is born there is counted against the workload's pids.max, which may be used up. */
static int
join_cgroup (struct fault *fault)
{
  if (write_text (CGROUP_WORKLOAD "/cgroup.procs", "0", 0) < 0)
    return fail (fault, FAULT_FAILED, errno, "join the workload's cgroup");
  return 0;
}

static int
open_reports (int ends[2], struct fault *fault)
{
  if (pipe2 (ends, O_CLOEXEC) < 0)
    return fail (fault, FAULT_FAILED, errno, "pipe");
  fcntl (ends[0], F_SETFL, O_NONBLOCK);
  return 0;
}

pid_t
launch_main (const struct launch *launch, int *reports, struct fault *fault)
{
  int ends[2];

  if (open_reports (ends, fault) < 0)
    return -1;
  cleanup_close int ours = ends[0];
  cleanup_close int theirs = ends[1];
  pid_t pid = clone_main (fault);
  if (pid < 0)
    return -1;
  if (pid == 0)
    child_main (launch, theirs);
  *reports = steal_fd (&ours);
  return pid;
}

/* The helper: joins the namespaces, and forks once more because a pid namespace is for children only.  The
 * program is made our sibling, so that the agent reaps it. */
static _Noreturn void
child_exec (const struct launch *launch, int main_pidfd, int reports)
{
  struct report report = { 0 };
  struct fault fault;
  int gate[2];
  char byte;

  reset_signals ();
  prctl (PR_SET_DUMPABLE, 0, 0, 0, 0);
  if (join_cgroup (&fault) < 0)
    report_fault (reports, &fault);
  if (setns (main_pidfd, CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWCGROUP) < 0)
    {
      fail (&fault, errno == ESRCH ? FAULT_CONFLICT : FAULT_FAILED, errno, "join the workload's namespaces");
      report_fault (reports, &fault);
    }
  if (pipe2 (gate, O_CLOEXEC) < 0)
    {
      fail (&fault, FAULT_FAILED, errno, "pipe");
      report_fault (reports, &fault);
    }
  report.pid = raw_clone (CLONE_PARENT);
  if (report.pid < 0)
    {
      fail (&fault, FAULT_FAILED, errno, "fork into the workload");
      report_fault (reports, &fault);
    }
  if (report.pid > 0)
    {
      write_all (reports, &report, sizeof report);
      _exit (0); /* opens the gate */
    }
  close (gate[1]);
  if (read (gate[0], &byte, 1) < 0)
    _exit (127);
  if (take_stdio (launch, &fault) == 0)
    run_process (launch->process, false, &fault);
  report_fault (reports, &fault);
}

pid_t
launch_exec (const struct launch *launch, pid_t main_pid, int *reports, struct fault *fault)
{
  int ends[2];
  cleanup_close int pidfd = (int) syscall (SYS_pidfd_open, main_pid, 0);

  if (pidfd < 0)
    return fail (fault, FAULT_CONFLICT, errno, "the main process has ended");
  if (open_reports (ends, fault) < 0)
    return -1;
  cleanup_close int ours = ends[0];
  cleanup_close int theirs = ends[1];
  pid_t pid = raw_clone (0);
  if (pid < 0)
    return fail (fault, FAULT_FAILED, errno, "start a process");
  if (pid == 0)
    child_exec (launch, pidfd, theirs);
  *reports = steal_fd (&ours);
  return pid;
}

pid_t
launch_work (work_fn *work, void *arg, const int stdio[3], int *reports, struct fault *fault)
{
  int ends[2];

  if (open_reports (ends, fault) < 0)
    return -1;
  cleanup_close int ours = ends[0];
  cleanup_close int theirs = ends[1];
  pid_t pid = raw_clone (0);
  if (pid < 0)
    return fail (fault, FAULT_FAILED, errno, "fork");
  if (pid == 0)
    {
      reset_signals ();
      signal (SIGPIPE, SIG_IGN);
      for (int i = 0; i < 3; i++)
        if (stdio[i] >= 0)
          dup2 (stdio[i], i);
      /* no exec closes the rest: an open end of another process's stdin would keep that from ending */
      if (theirs != 3)
        theirs = dup2 (theirs, 3);
      syscall (SYS_close_range, 4u, ~0u, 0u);
      if (work (arg, fault) < 0)
        report_fault (theirs, fault);
      _exit (0);
    }
  *reports = steal_fd (&ours);
  return pid;
}
