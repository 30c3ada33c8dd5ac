/* dispatch: from a message to the subject that it is for, and the answer back. */
#include "channel.h"
#include "files.h"
#include "paths.h"
#include "power.h"
#include "root.h"
#include "stats.h"
#include "streams.h"
#include "tty.h"
#include "workload.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/utsname.h>

static const struct field_rule seq_only[] = { { "seq", false }, { NULL, false } };
static const struct field_rule signal_rules[]
    = { { "seq", false }, { "signal", false }, { "pid", false }, { NULL, false } };
static const struct field_rule resize_rules[]
    = { { "seq", false }, { "rows", false }, { "cols", false }, { NULL, false } };
static const struct field_rule on_rules[] = { { "seq", false }, { "on", false }, { NULL, false } };
static const struct field_rule path_rules[] = { { "seq", false }, { "path", false }, { NULL, false } };
static const struct field_rule attach_rules[] = { { "seq", false }, { "stdin", false }, { NULL, false } };

/* The answer's fields are in `answer`; 1: the answer comes later. */
typedef int handle_fn (const struct message *message, const struct fields *fields, long long seq,
                       struct answer *answer, struct fault *fault);

static int
handle_ping (const struct message *message, const struct fields *fields, long long seq, struct answer *answer,
             struct fault *fault)
{
  (void) message, (void) fields, (void) seq, (void) answer, (void) fault;
  return 0;
}

static int
handle_identity (const struct message *message, const struct fields *fields, long long seq, struct answer *answer,
                 struct fault *fault)
{
  (void) fields, (void) seq;
  if (identity_take (&machine.identity, message->data, message->len, fault) < 0)
    return -1;
  answer_add (answer, "generation", "%s", machine.identity.generation);
  answer_add (answer, "boot_id", "%s", machine.identity.boot_id);
  return 0;
}

static int
handle_configure (const struct message *message, const struct fields *fields, long long seq, struct answer *answer,
                  struct fault *fault)
{
  (void) fields, (void) seq, (void) answer;
  if (machine.state != STATE_IDLE)
    return fail (fault, FAULT_CONFLICT, 0, "the machine is configured already");
  if (configure (&machine.configuration, message->data, message->len, fault) < 0)
    return -1;
  machine.state = STATE_CONFIGURED;
  return 0;
}

static int
handle_workload (const struct message *message, const struct fields *fields, long long seq, struct answer *answer,
                 struct fault *fault)
{
  (void) fields, (void) seq, (void) answer;
  return workload_prepare (message->data, message->len, fault);
}

static int
handle_start (const struct message *message, const struct fields *fields, long long seq, struct answer *answer,
              struct fault *fault)
{
  (void) message, (void) fields, (void) answer;
  return workload_start (seq, fault) < 0 ? -1 : 1;
}

static int
handle_signal (const struct message *message, const struct fields *fields, long long seq, struct answer *answer,
               struct fault *fault)
{
  long long signum, pid;

  (void) message, (void) seq, (void) answer;
  if (field_number (fields, "signal", 1, 64, 0, &signum, fault) < 0
      || field_number (fields, "pid", 2, INT32_MAX, 0, &pid, fault) < 0)
    return -1;
  if (!signum)
    return fail (fault, FAULT_INVALID, 0, "field \"signal\" is missing");
  return workload_signal ((int) signum, (pid_t) pid, fault);
}

static int
handle_resize (const struct message *message, const struct fields *fields, long long seq, struct answer *answer,
               struct fault *fault)
{
  struct stream *stream = stream_find (message->stream);
  struct job *job = message->stream ? stream ? stream->job : NULL : job_main ();
  long long rows, cols;

  (void) seq, (void) answer;
  if (field_number (fields, "rows", 0, 65535, 0, &rows, fault) < 0
      || field_number (fields, "cols", 0, 65535, 0, &cols, fault) < 0)
    return -1;
  if (!job || !job->tty || job->out < 0)
    return fail (fault, FAULT_CONFLICT, 0, "there is no terminal to resize");
  if (tty_resize (job->out, (int) rows, (int) cols) < 0)
    return fail (fault, FAULT_FAILED, errno, "resize the terminal");
  return 0;
}

static int
handle_stats (const struct message *message, const struct fields *fields, long long seq, struct answer *answer,
              struct fault *fault)
{
  (void) message, (void) fields, (void) seq, (void) fault;
  stats_add (answer);
  return 0;
}

static int
handle_ps (const struct message *message, const struct fields *fields, long long seq, struct answer *answer,
           struct fault *fault)
{
  (void) message, (void) fields, (void) seq, (void) fault;
  stats_processes (answer);
  return 0;
}

static int
need_root (struct fault *fault)
{
  return machine.configuration.done ? 0 : fail (fault, FAULT_CONFLICT, 0, "no CONFIGURE has been given");
}

static int
handle_stat (const struct message *message, const struct fields *fields, long long seq, struct answer *answer,
             struct fault *fault)
{
  const char *path = field_text (fields, "path");

  (void) message, (void) seq;
  if (!path)
    return fail (fault, FAULT_INVALID, 0, "field \"path\" is missing");
  return need_root (fault) < 0 ? -1 : files_stat (path, answer, fault);
}

static int
start_task (work_fn *work, void *arg, long long seq, struct fault *fault)
{
  static const int stdio[3] = { -1, -1, -1 };
  struct job *job = job_new (JOB_TASK, fault);

  if (!job)
    return -1;
  job->answers_ok = true;
  job->seq = seq;
  job->pid = launch_work (work, arg, stdio, &job->reports, fault);
  if (job->pid > 0)
    return 1;
  job_free (job);
  return -1;
}

static int
work_sync (void *arg, struct fault *fault)
{
  (void) arg, (void) fault;
  sync ();
  return 0;
}

static int
work_freeze (void *arg, struct fault *fault)
{
  return root_freeze (arg != NULL, fault);
}

static int
handle_sync (const struct message *message, const struct fields *fields, long long seq, struct answer *answer,
             struct fault *fault)
{
  (void) message, (void) fields, (void) answer;
  return start_task (work_sync, NULL, seq, fault);
}

static int
handle_freeze (const struct message *message, const struct fields *fields, long long seq, struct answer *answer,
               struct fault *fault)
{
  long long on;

  (void) message, (void) answer;
  if (field_number (fields, "on", 0, 1, 0, &on, fault) < 0 || need_root (fault) < 0)
    return -1;
  return start_task (work_freeze, on ? &machine : NULL, seq, fault);
}

static int
handle_pause (const struct message *message, const struct fields *fields, long long seq, struct answer *answer,
              struct fault *fault)
{
  long long on;

  (void) message, (void) seq, (void) answer;
  if (field_number (fields, "on", 0, 1, 0, &on, fault) < 0)
    return -1;
  return workload_pause (on, fault);
}

static int
handle_poweroff (const struct message *message, const struct fields *fields, long long seq, struct answer *answer,
                 struct fault *fault)
{
  (void) message, (void) fields, (void) seq, (void) answer, (void) fault;
  power_request ();
  return 0;
}

static int
handle_seccomp (const struct message *message, const struct fields *fields, long long seq, struct answer *answer,
                struct fault *fault)
{
  size_t count = message->len / sizeof (struct sock_filter);

  (void) fields, (void) seq, (void) answer;
  if (message->len % sizeof (struct sock_filter) || count > SECCOMP_MAX)
    return fail (fault, FAULT_INVALID, 0, "a seccomp filter has at most %d instructions of 8 bytes", SECCOMP_MAX);
  free (machine.filter);
  machine.filter = NULL;
  machine.filter_len = 0;
  if (!count)
    return 1;
  machine.filter = malloc (message->len);
  if (!machine.filter)
    return fail (fault, FAULT_FAILED, errno, "memory for a seccomp filter");
  memcpy (machine.filter, message->data, message->len);
  machine.filter_len = count;
  return 1;
}

static int
handle_attach (const struct message *message, const struct fields *fields, long long seq, struct answer *answer,
               struct fault *fault)
{
  long long feeds;

  (void) seq, (void) answer;
  if (field_number (fields, "stdin", 0, 1, 1, &feeds, fault) < 0)
    return -1;
  return workload_attach (message->stream, feeds, fault);
}

static int
handle_exec (const struct message *message, const struct fields *fields, long long seq, struct answer *answer,
             struct fault *fault)
{
  (void) fields, (void) seq, (void) answer;
  return workload_exec (message->stream, message->data, message->len, fault) < 0 ? -1 : 1;
}

static int
handle_get (const struct message *message, const struct fields *fields, long long seq, struct answer *answer,
            struct fault *fault)
{
  (void) fields, (void) seq, (void) answer;
  if (need_root (fault) < 0)
    return -1;
  return files_get (message->stream, message->data, message->len, fault) < 0 ? -1 : 1;
}

static int
handle_put (const struct message *message, const struct fields *fields, long long seq, struct answer *answer,
            struct fault *fault)
{
  (void) fields, (void) seq, (void) answer;
  if (need_root (fault) < 0)
    return -1;
  return files_put (message->stream, message->data, message->len, fault) < 0 ? -1 : 1;
}

static int
handle_changes (const struct message *message, const struct fields *fields, long long seq, struct answer *answer,
                struct fault *fault)
{
  (void) fields, (void) seq, (void) answer;
  if (need_root (fault) < 0)
    return -1;
  return files_changes (message->stream, message->data, message->len, fault) < 0 ? -1 : 1;
}

enum
{
  ON_CONNECTION = 1, /* stream 0 */
  ON_NEW_STREAM = 2, /* a fault ends the stream */
  ON_STREAM = 4,
};

static const struct
{
  handle_fn *handle;
  const struct field_rule *rules; /* NULL: the handler takes the payload apart */
  int where;
} handlers[] = {
  [MSG_PING] = { handle_ping, seq_only, ON_CONNECTION },
  [MSG_IDENTITY] = { handle_identity, NULL, ON_CONNECTION },
  [MSG_CONFIGURE] = { handle_configure, NULL, ON_CONNECTION },
  [MSG_WORKLOAD] = { handle_workload, NULL, ON_CONNECTION },
  [MSG_SECCOMP] = { handle_seccomp, NULL, ON_CONNECTION },
  [MSG_START] = { handle_start, seq_only, ON_CONNECTION },
  [MSG_SIGNAL] = { handle_signal, signal_rules, ON_CONNECTION },
  [MSG_ATTACH] = { handle_attach, attach_rules, ON_NEW_STREAM },
  [MSG_EXEC] = { handle_exec, NULL, ON_NEW_STREAM },
  [MSG_RESIZE] = { handle_resize, resize_rules, ON_CONNECTION | ON_STREAM },
  [MSG_STATS] = { handle_stats, seq_only, ON_CONNECTION },
  [MSG_PS] = { handle_ps, seq_only, ON_CONNECTION },
  [MSG_STAT] = { handle_stat, path_rules, ON_CONNECTION },
  [MSG_GET] = { handle_get, NULL, ON_NEW_STREAM },
  [MSG_PUT] = { handle_put, NULL, ON_NEW_STREAM },
  [MSG_CHANGES] = { handle_changes, NULL, ON_NEW_STREAM },
  [MSG_SYNC] = { handle_sync, seq_only, ON_CONNECTION },
  [MSG_FREEZE] = { handle_freeze, on_rules, ON_CONNECTION },
  [MSG_POWEROFF] = { handle_poweroff, seq_only, ON_CONNECTION },
  [MSG_PAUSE] = { handle_pause, on_rules, ON_CONNECTION },
};

/* The number of a request, found without judging the rest; -1 for none. */
static long long
find_seq (const struct message *message)
{
  struct fields fields = { (const char *) message->data, message->len };
  const char *text;
  long long seq;

  if (message->type == MSG_SECCOMP || !message->len || message->data[message->len - 1])
    return -1;
  size_t nuls = 0;
  for (size_t i = 0; i < message->len; i++)
    nuls += message->data[i] == 0;
  if (nuls % 2)
    return -1;
  text = field_text (&fields, "seq");
  return text && parse_number (text, 0, INT64_MAX, &seq) ? seq : -1;
}

static void
take_request (const struct message *message)
{
  cleanup_answer struct answer answer = { 0 };
  struct fields fields = { 0 };
  struct fault fault;
  int where = handlers[message->type].where;
  int place = message->stream == 0 ? ON_CONNECTION : ON_STREAM | ON_NEW_STREAM;
  long long seq = find_seq (message);
  int result = -1;

  if (!(where & place))
    fail (&fault, FAULT_INVALID, 0, "message %u does not go on stream %u", message->type, message->stream);
  else if ((where & ON_NEW_STREAM) && stream_find (message->stream))
    {
      fail (&fault, FAULT_INVALID, 0, "stream %u is in use", message->stream);
      channel_error (0, -1, &fault); /* the stream itself goes on */
      return;
    }
  else if (!handlers[message->type].rules
           || fields_open (&fields, message->data, message->len, handlers[message->type].rules, &fault) == 0)
    result = handlers[message->type].handle (message, &fields, seq, &answer, &fault);
  if (result == 0 && !(message->type == MSG_RESIZE && message->stream))
    channel_ok (message->stream, seq, &answer);
  if (result >= 0)
    return;
  channel_error (message->stream, seq, &fault);
  if (message->stream && (where & ON_NEW_STREAM))
    channel_send (MSG_CLOSED, message->stream, NULL, 0);
}

static void
let_go (struct stream *stream)
{
  struct job *job = stream->job;
  bool feeds = stream->feeds;

  if (feeds && !stream->in_end)
    {
      stream_feed (stream, -1);
      if (job->launched || job->kind != JOB_MAIN)
        job_detach (job);
    }
  if (job->kind == JOB_FILES && job->pid > 0 && !job->exited)
    kill (job->pid, SIGKILL);
}

static void
take_stream (struct stream *stream, const struct message *message)
{
  struct fault fault;
  uint32_t credit;

  switch (message->type)
    {
    case MSG_STDIN:
      if (!stream_input (stream, message->data, message->len))
        {
          fail (&fault, FAULT_INVALID, 0, "more than %d bytes of input without credit", STREAM_CREDIT);
          channel_error (stream->id, -1, &fault);
          let_go (stream);
          stream_end (stream);
          return;
        }
      job_input (stream->job);
      break;
    case MSG_STDIN_END:
      stream->in_end = true;
      job_input (stream->job);
      break;
    case MSG_CREDIT:
      if (message->len != sizeof credit)
        return;
      memcpy (&credit, message->data, sizeof credit);
      stream->credit += credit;
      break;
    case MSG_CLOSE:
      let_go (stream);
      stream_end (stream);
      break;
    }
}

void
on_message (const struct message *message)
{
  struct stream *stream = stream_find (message->stream);
  struct fault fault;

  switch (message->type)
    {
    case MSG_STDIN:
    case MSG_STDIN_END:
    case MSG_CREDIT:
    case MSG_CLOSE:
      if (stream) /* else it has just ended, and the host will hear of it */
        take_stream (stream, message);
      return;
    }
  if (message->type < COUNT (handlers) && handlers[message->type].handle)
    {
      take_request (message);
      return;
    }
  fail (&fault, FAULT_INVALID, 0, "unknown message %u", message->type);
  channel_error (message->stream, find_seq (message), &fault);
}

void
on_synchronised (void)
{
  cleanup_answer struct answer answer = { 0 };
  struct utsname uts;
  char text[256] = "", boot_id[64] = "";
  long long mem_kib = 0;

  uname (&uts);
  if (read_text ("/proc/meminfo", text, sizeof text) > 0 && strncmp (text, "MemTotal:", 9) == 0)
    mem_kib = strtoll (text + 9, NULL, 10);
  if (*machine.identity.boot_id)
    memcpy (boot_id, machine.identity.boot_id, sizeof machine.identity.boot_id);
  answer_add (&answer, "version", "1");
  answer_add (&answer, "state", "%s", machine_state_name ());
  answer_add (&answer, "boot_id", "%s", boot_id);
  answer_add (&answer, "kernel", "%s", uts.release);
  answer_add (&answer, "mem_kib", "%lld", mem_kib);
  channel_send (MSG_HELLO, 0, answer.data, answer.len);
}

void
on_cut (void)
{
  for (unsigned id = 1; id <= UINT16_MAX; id++)
    {
      struct stream *stream = stream_find ((uint16_t) id);
      if (stream)
        {
          let_go (stream);
          stream_drop (stream);
        }
    }
}
