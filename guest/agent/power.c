#include "power.h"

#include "channel.h"
#include "loop.h"
#include "root.h"

#include <signal.h>
#include <sys/mount.h>
#include <sys/reboot.h>

enum
{
  FLUSH_MS = 1000
};

static int64_t deadline;

static _Noreturn void
power_off (void)
{
  kill (-1, SIGKILL);
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
