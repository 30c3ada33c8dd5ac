#include "jobs.h"

#include "channel.h"
#include "logfile.h"
#include "loop.h"
#include "streams.h"
#include "tty.h"
#include "workload.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>

enum
{
  PIECE = 32768,
  LINE_MS = 3,    /* for the end of a line on a terminal */
  DRAIN_MS = 100, /* for what grandchildren still hold open after an exec's end */
};

static struct job jobs[JOBS_MAX];

struct job *
job_new (enum job_kind kind, struct fault *fault)
{
  for (size_t i = 0; i < JOBS_MAX; i++)
    if (jobs[i].kind == JOB_FREE)
      {
        jobs[i] = (struct job){ .kind = kind, .reports = -1, .in = -1, .out = -1, .err = -1, .seq = -1 };
        return &jobs[i];
      }
  fail (fault, FAULT_BUSY, 0, "more than %d processes and transfers", JOBS_MAX);
  return NULL;
}

struct job *
job_main (void)
{
  for (size_t i = 0; i < JOBS_MAX; i++)
    if (jobs[i].kind == JOB_MAIN)
      return &jobs[i];
  return NULL;
}

struct job *
job_by_pid (pid_t pid)
{
  for (size_t i = 0; i < JOBS_MAX; i++)
    if (jobs[i].kind != JOB_FREE && jobs[i].pid == pid && !jobs[i].exited)
      return &jobs[i];
  return NULL;
}

size_t
jobs_alive (enum job_kind kind)
{
  size_t alive = 0;

  for (size_t i = 0; i < JOBS_MAX; i++)
    alive += jobs[i].kind == kind;
  return alive;
}

static int
open_pipe (int *ours, int *theirs, bool we_read, struct fault *fault)
{
  int ends[2];

  if (pipe2 (ends, O_CLOEXEC) < 0)
    return fail (fault, FAULT_FAILED, errno, "pipe");
  *ours = ends[we_read ? 0 : 1];
  *theirs = ends[we_read ? 1 : 0];
  fcntl (*ours, F_SETFL, O_NONBLOCK);
  return 0;
}

int
job_open_stdio (struct job *job, bool tty, bool open_stdin, int rows, int cols, struct launch *launch,
                struct fault *fault)
{
  int *theirs = launch->stdio;

  theirs[0] = theirs[1] = theirs[2] = -1;
  job->tty = tty;
  if (tty)
    {
      if (tty_open (rows, cols, &job->out, &theirs[0], launch->console, fault) < 0)
        return -1;
      theirs[1] = fcntl (theirs[0], F_DUPFD_CLOEXEC, 3);
      theirs[2] = fcntl (theirs[0], F_DUPFD_CLOEXEC, 3);
      return 0;
    }
  if (open_stdin && open_pipe (&job->in, &theirs[0], false, fault) < 0)
    return -1;
  if (!open_stdin && (theirs[0] = open ("/dev/null", O_RDONLY | O_CLOEXEC)) < 0)
    return fail (fault, FAULT_FAILED, errno, "open /dev/null");
  if (open_pipe (&job->out, &theirs[1], true, fault) < 0)
    return -1;
  return open_pipe (&job->err, &theirs[2], true, fault);
}

void
job_close_stdio (struct job *job)
{
  close_fd (&job->in);
  close_fd (&job->out);
  close_fd (&job->err);
}

void
job_free (struct job *job)
{
  for (struct stream *one = NULL; (one = stream_next (job, one));)
    stream_drop (one);
  close_fd (&job->reports);
  job_close_stdio (job);
  *job = (struct job){ 0 };
}

void
jobs_mute (void)
{
  for (size_t i = 0; i < JOBS_MAX; i++)
    jobs[i].mute = true;
}

/* How much output may be read now: bounded by every client, so the slowest holds up the process, as in Docker. */
static size_t
output_room (const struct job *job)
{
  size_t room = job->kind == JOB_MAIN ? LOG_PIECE : PIECE;
  uint64_t credit = stream_credit (job);

  if (job->kind == JOB_MAIN && !logfile_ready ())
    return 0;
  if (credit < room)
    room = (size_t) credit;
  if (credit != UINT64_MAX && channel_room () < room)
    room = channel_room ();
  return room;
}

/* One piece from `fd`.  False when nothing was there. */
static bool
take_output (struct job *job, int *fd, bool is_stderr)
{
  static char bytes[PIECE];
  size_t room = output_room (job);
  ssize_t got, more;

  if (*fd < 0 || room == 0)
    return false;
  got = read (*fd, bytes, room);
  if (job->tty && got > 0 && (size_t) got < room && bytes[got - 1] != '\n')
    {
      /* the kernel hands on a line and its end one after the other, and wakes us in between */
      struct pollfd end = { .fd = *fd, .events = POLLIN };
      more = poll (&end, 1, LINE_MS) > 0 ? read (*fd, bytes + got, room - (size_t) got) : 0;
      got += more > 0 ? more : 0;
    }
  if (got < 0 && (errno == EAGAIN || errno == EINTR))
    return false;
  if (got <= 0) /* a terminal's end is EIO */
    {
      close_fd (fd);
      return false;
    }
  if (job->kind == JOB_MAIN)
    logfile_write (bytes, (size_t) got, is_stderr);
  stream_output (job, is_stderr ? MSG_STDERR : MSG_STDOUT, bytes, (size_t) got);
  return true;
}

static void
on_out (void *arg, short events)
{
  struct job *job = arg;

  (void) events;
  take_output (job, &job->out, false);
}

static void
on_err (void *arg, short events)
{
  struct job *job = arg;

  (void) events;
  take_output (job, &job->err, true);
}

static void
on_in (void *arg, short events)
{
  (void) events;
  job_input (arg);
}

static int
input_fd (const struct job *job)
{
  return job->tty ? job->out : job->in;
}

/* A terminal has no end of input: a ^D that nobody typed would end the shell of a user who only detached. */
void
job_detach (struct job *job)
{
  if (job->kind != JOB_MAIN || job->stdin_once)
    close_fd (&job->in);
}

void
job_input (struct job *job)
{
  if (job->kind == JOB_MAIN && !job->launched)
    return; /* it waits for the process */
  for (struct stream *one = NULL; (one = stream_next (job, one));)
    {
      if (!stream_feed (one, input_fd (job)) && !job->tty)
        close_fd (&job->in);
      if (one->in.len == 0 && one->in_end && one->feeds)
        {
          one->feeds = false;
          job_detach (job);
        }
    }
}

static void
read_reports (struct job *job)
{
  struct report report;
  ssize_t got;

  while (job->reports >= 0 && (got = read (job->reports, &report, sizeof report)) != -1)
    {
      if (got == sizeof report && report.pid)
        job->pid = report.pid;
      else if (got == sizeof report)
        {
          job->faulted = true;
          job->fault = report.fault;
        }
      else
        {
          close_fd (&job->reports);
          if (!job->faulted && job->pid == 0)
            {
              job->faulted = true;
              fail (&job->fault, FAULT_CONFLICT, 0, "the workload ended while a process was started in it");
            }
          job->launched = !job->faulted;
          if (job->kind == JOB_MAIN)
            workload_launched (job);
          if (job->kind == JOB_EXEC && job->launched && !job->mute && stream_next (job, NULL))
            {
              cleanup_answer struct answer answer = { 0 };
              answer_add (&answer, "pid", "%d", job->pid);
              channel_ok (job->stream, job->seq, &answer);
            }
          job_input (job);
        }
    }
}

static void
on_reports (void *arg, short events)
{
  (void) events;
  read_reports (arg);
}

void
jobs_watch (void)
{
  for (struct job *job = jobs; job < jobs + JOBS_MAX; job++)
    {
      bool ready = job->kind != JOB_FREE && (job->launched || job->kind == JOB_FILES) && output_room (job) > 0;
      bool waiting = false;
      if (job->kind == JOB_FREE)
        continue;
      for (struct stream *one = NULL; (one = stream_next (job, one));)
        waiting |= one->in.len > 0;
      waiting = waiting && (job->launched || job->kind != JOB_MAIN) && input_fd (job) >= 0;
      if (job->reports >= 0)
        loop_watch (job->reports, POLLIN, on_reports, job);
      if (waiting)
        loop_watch (input_fd (job), POLLOUT, on_in, job);
      if (ready && job->out >= 0)
        loop_watch (job->out, POLLIN, on_out, job);
      if (ready && job->err >= 0)
        loop_watch (job->err, POLLIN, on_err, job);
    }
}

void
jobs_reap (void)
{
  int status;
  pid_t pid;

  /* a pid must be known before its end is heard of */
  for (size_t i = 0; i < JOBS_MAX; i++)
    if (jobs[i].kind != JOB_FREE)
      read_reports (&jobs[i]);
  while ((pid = waitpid (-1, &status, WNOHANG)) > 0)
    {
      struct job *job = job_by_pid (pid);
      if (!job)
        continue; /* an exec's helper */
      job->exited = true;
      job->exited_ms = now_ms ();
      job->code = WIFSIGNALED (status) ? 128 + WTERMSIG (status) : WEXITSTATUS (status);
    }
}

/* All output is sent; waits a little for ends that grandchildren hold. */
static bool
is_drained (struct job *job)
{
  if (job->out < 0 && job->err < 0)
    return true;
  if (output_room (job) == 0)
    return false;
  while (take_output (job, &job->out, false) || take_output (job, &job->err, true))
    ;
  if (job->out < 0 && job->err < 0)
    return true;
  if (output_room (job) == 0)
    return false;
  loop_wake_at (job->exited_ms + DRAIN_MS);
  return now_ms () >= job->exited_ms + DRAIN_MS;
}

static void
settle_exec (struct job *job)
{
  struct stream *stream = stream_next (job, NULL);

  /* its helper may hold the reports open for longer than it lives, and its OK comes with their end */
  if (job->reports >= 0 || (!job->faulted && (!job->exited || !is_drained (job))))
    return;
  if (stream && job->faulted)
    channel_error (stream->id, job->seq, &job->fault);
  if (stream && !job->faulted)
    {
      cleanup_answer struct answer answer = { 0 };
      answer_add (&answer, "code", "%d", job->code);
      answer_add (&answer, "oom", "0");
      answer_add (&answer, "time_ns", "%lld", (long long) now_ns ());
      channel_send (MSG_EXITED, stream->id, answer.data, answer.len);
    }
  if (stream)
    stream_end (stream);
  job_free (job);
}

/* Transfers and tasks: a child of ours that reports a fault or ends well. */
static void
settle_own (struct job *job)
{
  if (!job->exited || job->reports >= 0 || !is_drained (job))
    return;
  if (!job->faulted && job->code)
    {
      job->faulted = true;
      fail (&job->fault, FAULT_FAILED, 0, "the agent's helper ended with %d", job->code);
    }
  bool heard = !job->mute && (job->stream == 0 || stream_next (job, NULL));
  if (heard && job->faulted)
    channel_error (job->stream, job->seq, &job->fault);
  else if (heard && job->answers_ok)
    channel_ok (job->stream, job->seq, NULL);
  struct stream *stream = stream_next (job, NULL);
  if (stream)
    stream_end (stream);
  job_free (job);
}

void
jobs_settle (void)
{
  for (struct job *job = jobs; job < jobs + JOBS_MAX; job++)
    switch (job->kind)
      {
      case JOB_FREE:
        break;
      case JOB_MAIN:
        workload_settle (job);
        break;
      case JOB_EXEC:
        settle_exec (job);
        break;
      case JOB_FILES:
      case JOB_TASK:
        settle_own (job);
        break;
      }
}
