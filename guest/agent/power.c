#include "power.h"

#include "channel.h"
#include "loop.h"
#include "root.h"

#include <signal.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <time.h>

enum
{
  FLUSH_MS = 1000,
  KILL_MS = 2000,
};

static int64_t deadline;

/* What still runs holds the file systems, which should be left clean. */
static void
wait_for_all (void)
{
  int64_t until = now_ms () + KILL_MS;
  sigset_t child;
  pid_t pid;

  sigemptyset (&child);
  sigaddset (&child, SIGCHLD);
  while (now_ms () < until)
    {
      while ((pid = waitpid (-1, NULL, WNOHANG)) > 0)
        ;
      if (pid < 0)
        return; /* none is left */
      sigtimedwait (&child, NULL, &(struct timespec){ .tv_nsec = 100000000 });
    }
}

static _Noreturn void
power_off (void)
{
  struct fault ignored;

  root_freeze (false, &ignored); /* most often it is not frozen */
  kill (-1, SIGKILL);
  wait_for_all ();
  sync ();
  root_unmount ();
  sync ();
  for (;;)
    reboot (RB_POWER_OFF);
}

void
power_request (void)
{
  if (!deadline)
    deadline = now_ms () + FLUSH_MS;
}

void
power_settle (void)
{
  if (!deadline)
    return;
  loop_wake_at (deadline);
  if (!channel_connected () || channel_flushed () || now_ms () >= deadline)
    power_off ();
}

static void
crash (int signum)
{
  say ("the agent crashed with signal %d", signum);
  for (;;)
    reboot (RB_POWER_OFF);
}

void
power_catch_crashes (void)
{
  static char stack[16384];
  static const int signals[] = { SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT };
  stack_t alternate = { .ss_sp = stack, .ss_size = sizeof stack };
  struct sigaction action = { .sa_handler = crash, .sa_flags = SA_ONSTACK };

  sigaltstack (&alternate, NULL);
  for (size_t i = 0; i < COUNT (signals); i++)
    sigaction (signals[i], &action, NULL);
}
