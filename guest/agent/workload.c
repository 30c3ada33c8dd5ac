#include "workload.h"

#include "channel.h"
#include "device_rules.h"
#include "devices.h"
#include "limits.h"
#include "logfile.h"
#include "loop.h"
#include "mounts.h"
#include "network.h"
#include "paths.h"
#include "ports.h"
#include "power.h"
#include "quiet.h"
#include "streams.h"
#include "vmgenid.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

enum
{
  STUCK_MS = 5000, /* how long a client that does not read may hold up the end */
  EXECS_MS = 1000, /* how long the end waits for execs to be told of theirs */
  FROZEN_MS = 10000, /* one that sleeps in the kernel freezes when it wakes */
  BEGUN_MS = 400,  /* how long START is not answered while the workload computes; */
  BEGUN_MOST = 15, /* so many times as long where the host has no time for us */
  LOOK_MS = 4,     /* how often it is looked at meanwhile, */
  LOOKS = 2,       /* and how often in a row nothing must be going on */
};

struct machine machine;
static struct process process;

const char *
machine_state_name (void)
{
  static const char *const names[] = { "idle", "configured", "running", "exited" };
  return names[machine.state];
}

static int
open_process (struct process *to, const uint8_t *data, size_t len, struct fault *fault)
{
  if (process_open (to, data, len, fault) < 0)
    return -1;
  if (process_set_filter (to, machine.filter, machine.filter_len, fault) == 0)
    return 0;
  process_close (to);
  return -1;
}

int
workload_prepare (const uint8_t *data, size_t len, struct fault *fault)
{
  struct process fresh;
  struct job *job = job_main ();

  if (machine.state == STATE_RUNNING || machine.state == STATE_EXITED || (job && job->pid))
    return fail (fault, FAULT_CONFLICT, 0, "the workload is already running");
  if (open_process (&fresh, data, len, fault) < 0)
    return -1;
  if (!job)
    job = job_new (JOB_MAIN, fault);
  if (!job)
    {
      process_close (&fresh);
      return -1;
    }
  process_close (&process);
  process = fresh;
  job->stdin_once = process.stdin_once;
  return 0;
}

/* In the workload's cgroup or below it, whoever was short of memory. */
static bool
had_oom_kill (void)
{
  char text[1024];

  return read_text (CGROUP_WORKLOAD "/memory.events", text, sizeof text) > 0
         && number_after (text, "\noom_kill ") > 0;
}

static void
close_theirs (struct launch *launch)
{
  for (int i = 0; i < 3; i++)
    close_fd (&launch->stdio[i]);
}

static int
start_main (struct job *job, struct fault *fault)
{
  struct launch launch = { .process = &process,
                           .sysctls = machine.configuration.sysctls,
                           .read_only = machine.configuration.read_only };
  int opened
      = job_open_stdio (job, process.tty, process.open_stdin, process.rows, process.cols, &launch, fault);

  /* there is one with a terminal only, to mount it on */
  if (opened == 0 && *launch.console && write_text (DIR_DEV "/console", "", O_CREAT) < 0)
    opened = fail (fault, FAULT_FAILED, errno, "make the workload's /dev/console");
  pid_t pid = opened < 0 ? -1 : launch_main (&launch, &job->reports, fault);

  close_theirs (&launch);
  if (pid < 0)
    {
      job_close_stdio (job);
      return -1;
    }
  job->pid = pid;
  return 0;
}

int
workload_start (long long seq, struct fault *fault)
{
  struct job *job = job_main ();
  struct fault rules;

  if (!*machine.identity.generation)
    return fail (fault, FAULT_CONFLICT, 0, "no IDENTITY has been given");
  if (machine.state == STATE_IDLE)
    return fail (fault, FAULT_CONFLICT, 0, "no CONFIGURE has been given");
  if (!job)
    return fail (fault, FAULT_CONFLICT, 0, "no WORKLOAD has been given");
  if (machine.state != STATE_CONFIGURED || job->pid)
    return fail (fault, FAULT_CONFLICT, 0, "the workload was started before");
  if (!process.privileged && device_rules_apply (&machine.configuration.devices, &rules) < 0)
    {
      if (machine.configuration.devices.count)
        return fail (fault, rules.kind, 0, "%s", rules.text);
      /* a kernel without them is no reason to refuse: what is open to the workload is still only its own machine */
      say ("%s", rules.text);
    }
  if (process.privileged && device_rules_lift (fault) < 0)
    return -1;
  job->faulted = job->exited = job->mute = false;
  job->begun_ms = 0;
  job->seq = seq;
  return start_main (job, fault);
}

void
workload_launched (struct job *job)
{
  if (job->launched)
    {
      machine.state = STATE_RUNNING;
      job->looked_ms = now_ms ();
      job->given_ms = BEGUN_MS;
      job->begun_ms = job->looked_ms + BEGUN_MS * BEGUN_MOST; /* workload_begin answers */
      job->quiet = 0;
      return;
    }
  if (!job->mute)
    channel_error (0, job->seq, &job->fault);
  /* its namespaces are gone with it; it may be tried again */
  job_close_stdio (job);
  job->pid = 0;
}

static bool
has_output (const struct job *job)
{
  struct pollfd ends[] = { { .fd = job->out, .events = POLLIN }, { .fd = job->err, .events = POLLIN } };
  return poll (ends, COUNT (ends), 0) > 0;
}

/* START is answered when the program has come to rest for the first time, has ended, or has computed for BEGUN_MS.
 * Whoever starts an instance and looks into it at once expects to see what its first command did: on one kernel
 * that has always happened by then, but an emulated CPU is fifty times slower than the host that asks.  Nor does the
 * guest know when it stood still because others had the host's CPUs: time that has passed unseen counts for little. */
static void
workload_begin (struct job *job)
{
  int64_t now = now_ms (), unseen = now - job->looked_ms;

  if (!job->begun_ms)
    return;
  job->given_ms -= unseen < LOOK_MS ? unseen : LOOK_MS;
  job->looked_ms = now;
  if (!job->exited && job->given_ms > 0 && now < job->begun_ms)
    {
      bool is_last = job->quiet + 1 == LOOKS; /* many a program has ended by then */
      job->quiet = has_output (job) || !logfile_flushed () || !is_quiet (!is_last) ? 0 : job->quiet + 1;
      if (job->quiet < LOOKS)
        {
          loop_wake_at (now + LOOK_MS);
          return;
        }
    }
  job->begun_ms = 0;
  vmgenid_listen_later ();
  if (!job->mute)
    channel_ok (0, job->seq, NULL);
}

static void
write_record (int code, bool oom, long long time_ns)
{
  char record[128];

  snprintf (record, sizeof record, "{\"code\":%d,\"oom\":%s,\"time_ns\":%lld}\n", code, oom ? "true" : "false", time_ns);
  if (port_write_through (&ports[PORT_EXIT], record, strlen (record)) < 0)
    say ("exit record: %s", strerror (errno));
}

static void
tell_end (struct job *job)
{
  cleanup_answer struct answer answer = { 0 };
  bool oom = had_oom_kill ();
  long long time_ns = now_ns ();

  if (!machine.configuration.rehearsal)
    write_record (job->code, oom, time_ns);
  for (struct stream *one = NULL; (one = stream_next (job, one));)
    stream_end (one);
  answer_add (&answer, "code", "%d", job->code);
  answer_add (&answer, "oom", "%d", oom);
  answer_add (&answer, "time_ns", "%lld", time_ns);
  channel_send (MSG_EXITED, 0, answer.data, answer.len);
}

/* Clients that take nothing are let go, so that the end is not theirs to decide. */
static void
drop_stuck (struct job *job)
{
  for (struct stream *one = NULL; (one = stream_next (job, one));)
    if (one->credit == 0 || channel_room () == 0)
      stream_end (one);
}

void
workload_settle (struct job *job)
{
  workload_begin (job);
  if (!job->launched || !job->exited || machine.state != STATE_RUNNING)
    return;
  if (job->out >= 0 || job->err >= 0 || !logfile_flushed ())
    {
      loop_wake_at (job->exited_ms + STUCK_MS);
      if (now_ms () >= job->exited_ms + STUCK_MS)
        {
          drop_stuck (job);
          loop_wake_at (now_ms () + 100);
        }
      return;
    }
  if (jobs_alive (JOB_EXEC) && now_ms () < job->exited_ms + EXECS_MS)
    {
      loop_wake_at (job->exited_ms + EXECS_MS);
      return;
    }
  tell_end (job);
  machine.state = STATE_EXITED;
  if (!machine.configuration.rehearsal)
    power_request ();
}

/* What every workload needs: the clones of this guest have it behind them.  What fails here is tried again, and then
 * told. */
static void
prepare_early (bool settle)
{
  struct fault fault;

  if (device_rules_apply (NULL, &fault) < 0 || devices_make_dev (DEV_SHM_KIB, &fault) < 0 || limits_look (&fault) < 0
      || limits_keep_reserve (&fault) < 0)
    say ("%s", fault.text);
  network_up_early (settle);
  if (settle)
    vmgenid_defer ();
}

int
workload_reset (bool settle, struct fault *fault)
{
  struct job *job = job_main ();

  if (!machine.configuration.rehearsal || machine.state != STATE_EXITED)
    return fail (fault, FAULT_CONFLICT, 0, "only a rehearsal that is over can be reset");
  configure_undo (&machine.configuration);
  if (limits_renew (fault) < 0 || devices_renew (fault) < 0)
    return -1;
  device_rules_forget ();
  if (job)
    job_free (job);
  process_close (&process);
  free (machine.filter);
  machine = (struct machine){ 0 };
  prepare_early (settle);
  return 0;
}

int
workload_exec (uint16_t stream, const uint8_t *data, size_t len, struct fault *fault)
{
  struct launch launch = { 0 };
  struct process one;
  struct job *job, *main = job_main ();

  if (machine.state != STATE_RUNNING || !main || main->exited)
    return fail (fault, FAULT_CONFLICT, 0, "the workload is not running");
  if (stream_find (stream))
    return fail (fault, FAULT_INVALID, 0, "stream %u is in use", stream);
  if (open_process (&one, data, len, fault) < 0)
    return -1;
  launch.process = &one;
  job = job_new (JOB_EXEC, fault);
  if (job && stream_open (stream, job, fault))
    {
      job->stream = stream;
      int opened = job_open_stdio (job, one.tty, one.open_stdin, one.rows, one.cols, &launch, fault);
      pid_t helper = opened < 0 ? -1 : launch_exec (&launch, main->pid, &job->reports, fault);
      close_theirs (&launch);
      process_close (&one);
      if (helper > 0)
        return 0;
      job_free (job);
      return -1;
    }
  process_close (&one);
  if (job)
    job_free (job);
  return -1;
}

int
workload_attach (uint16_t stream, bool feeds, struct fault *fault)
{
  struct job *job = job_main ();
  struct stream *one;

  if (!job || job->exited)
    return fail (fault, FAULT_CONFLICT, 0, job ? "the workload has ended" : "no WORKLOAD has been given");
  one = stream_open (stream, job, fault);
  if (!one)
    return -1;
  one->attached = true;
  one->feeds = feeds;
  return 0;
}

int
workload_signal (int signum, pid_t pid, struct fault *fault)
{
  struct job *job = pid ? job_by_pid (pid) : job_main ();

  if (!job || job->exited || !job->pid || (job->kind != JOB_MAIN && job->kind != JOB_EXEC))
    return fail (fault, FAULT_CONFLICT, 0, pid ? "process %d is not running" : "the workload is not running", pid);
  if (kill (job->pid, signum) < 0)
    return fail (fault, FAULT_FAILED, errno, "signal %d", signum);
  return 0;
}

int
workload_pause (bool on, struct fault *fault)
{
  vmgenid_listen (); /* a copy may be about to be taken */
  if (write_text (CGROUP_WORKLOAD "/cgroup.freeze", on ? "1" : "0", 0) < 0)
    return fail (fault, FAULT_FAILED, errno, on ? "pause the workload" : "unpause the workload");
  return 0;
}

bool
workload_is_frozen (void)
{
  char text[256];

  return read_text (CGROUP_WORKLOAD "/cgroup.events", text, sizeof text) > 0 && strstr (text, "frozen 1");
}

int
workload_await_frozen (struct fault *fault)
{
  int64_t until = now_ms () + FROZEN_MS;
  cleanup_close int events = open (CGROUP_WORKLOAD "/cgroup.events", O_RDONLY | O_CLOEXEC);

  if (events < 0)
    return fail (fault, FAULT_FAILED, errno, "watch the workload's cgroup");
  for (;;)
    {
      char text[256] = "";
      /* poll tells of changes since the last read of this very descriptor */
      if (pread (events, text, sizeof text - 1, 0) < 0)
        return fail (fault, FAULT_FAILED, errno, "watch the workload's cgroup");
      if (strstr (text, "frozen 1"))
        return 0;
      int64_t left = until - now_ms ();
      if (left <= 0)
        return fail (fault, FAULT_BUSY, 0, "a process of the workload could not be frozen within %d s", FROZEN_MS / 1000);
      poll (&(struct pollfd){ .fd = events, .events = POLLPRI }, 1, (int) left);
    }
}

const char *
workload_user (void)
{
  return process.user ? process.user : "";
}
