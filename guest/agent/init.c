#include "init.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

pid_t
init_fork (bool tty)
{
  pid_t pid = fork ();

  if (pid)
    return pid;
  setpgid (0, 0);
  if (tty)
    {
      /* we are in the background for a moment, and this must not stop us */
      signal (SIGTTOU, SIG_IGN);
      tcsetpgrp (0, getpid ());
      signal (SIGTTOU, SIG_DFL);
    }
  return 0;
}

static void
let_go_of_files (void)
{
  int null = open ("/dev/null", O_RDWR | O_CLOEXEC);

  /* the program alone holds its stdio and the report pipe */
  for (int fd = 0; fd < 3; fd++)
    if (null < 0 || dup2 (null, fd) < 0)
      close (fd);
  syscall (SYS_close_range, 3u, ~0u, 0u);
}

/* Reap all that ended; true with *status when the program itself did. */
static bool
reap (pid_t child, int *status)
{
  bool ended = false;
  pid_t pid;
  int one;

  while ((pid = waitpid (-1, &one, WNOHANG)) > 0)
    if (pid == child)
      {
        ended = true;
        *status = one;
      }
  return ended;
}

_Noreturn void
init_run (pid_t child)
{
  sigset_t all;
  int status;

  prctl (PR_SET_NAME, "init", 0, 0, 0);
  sigfillset (&all);
  sigprocmask (SIG_SETMASK, &all, NULL);
  let_go_of_files ();
  for (;;)
    {
      if (reap (child, &status))
        _exit (WIFSIGNALED (status) ? 128 + WTERMSIG (status) : WEXITSTATUS (status));
      int signum = sigwaitinfo (&all, NULL);
      if (signum > 0 && signum != SIGCHLD)
        kill (child, signum);
    }
}
