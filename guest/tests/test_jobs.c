/* When an exec is told to have ended: after the answer that it has begun. */
#include "jobs.h"
#include "streams.h"
#include "test.h"

#include <fcntl.h>
#include <sys/wait.h>

enum
{
  STREAM = 5
};

static void
report_pid (int reports, pid_t pid)
{
  struct report report = { .pid = pid };
  EXPECT (write (reports, &report, sizeof report) == sizeof report);
}

/* A program that has ended at once, while the helper that started it still holds the reports open. */
static void
test_end_waits_for_the_helper (void)
{
  int reports[2];
  siginfo_t info;
  struct fault fault;
  struct job *job = job_new (JOB_EXEC, &fault);

  EXPECT (pipe2 (reports, O_CLOEXEC | O_NONBLOCK) == 0);
  EXPECT (stream_open (STREAM, job, &fault) != NULL);
  job->stream = STREAM;
  job->reports = reports[0];
  pid_t pid = fork ();
  if (pid == 0)
    _exit (7);
  report_pid (reports[1], pid);
  EXPECT (waitid (P_PID, (id_t) pid, &info, WEXITED | WNOWAIT) == 0);
  jobs_reap ();
  jobs_settle ();
  EXPECT (job->exited && job->code == 7 && !job->launched);
  EXPECT (stream_find (STREAM) != NULL);
  close (reports[1]);
  jobs_reap ();
  EXPECT (job->launched);
  jobs_settle ();
  EXPECT (stream_find (STREAM) == NULL && job->kind == JOB_FREE);
}

int
main (void)
{
  test_end_waits_for_the_helper ();
  return failures;
}
