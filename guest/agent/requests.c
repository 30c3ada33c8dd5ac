#include "requests.h"

#include "channel.h"
#include "devices.h"
#include "files.h"
#include "identity.h"
#include "limits.h"
#include "mounts.h"
#include "network.h"
#include "power.h"
#include "renew.h"
#include "root.h"
#include "stats.h"
#include "streams.h"
#include "tty.h"
#include "workload.h"

#include <string.h>

static const struct field_rule seq_only[] = { { "seq", false }, { NULL, false } };
static const struct field_rule signal_rules[]
    = { { "seq", false }, { "signal", false }, { "pid", false }, { NULL, false } };
static const struct field_rule resize_rules[]
    = { { "seq", false }, { "rows", false }, { "cols", false }, { NULL, false } };
static const struct field_rule on_rules[] = { { "seq", false }, { "on", false }, { NULL, false } };
static const struct field_rule pause_rules[] = { { "seq", false }, { "on", false }, { "time_ns", false }, { NULL, false } };
static const struct field_rule limit_rules[] = { { "seq", false }, { "cgroup", true }, { NULL, false } };
static const struct field_rule reset_rules[] = { { "seq", false }, { "settle", false }, { NULL, false } };
static const struct field_rule premount_rules[]
    = { { "seq", false }, { "image_serial", false }, { "upper_serial", false }, { "file", true }, { NULL, false } };
static const struct field_rule path_rules[] = { { "seq", false }, { "path", false }, { NULL, false } };
static const struct field_rule network_rules[]
    = { { "seq", false }, { "rescan", false }, { "gone", true }, { "nic", true }, { "gateway", false }, { "line", true }, { NULL, false } };
static const struct field_rule attach_rules[] = { { "seq", false }, { "stdin", false }, { NULL, false } };

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
work_await_frozen (void *arg, struct fault *fault)
{
  (void) arg;
  return workload_await_frozen (fault);
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
  long long on, time_ns;

  (void) message, (void) answer;
  if (field_number (fields, "on", 0, 1, 0, &on, fault) < 0
      || field_number (fields, "time_ns", 0, INT64_MAX, 0, &time_ns, fault) < 0)
    return -1;
  /* a machine that stood still does not know how long: the workload must not see the time of before */
  if ((time_ns && identity_set_clock (time_ns, fault) < 0) || workload_pause (on, fault) < 0)
    return -1;
  return on ? start_task (work_await_frozen, NULL, seq, fault) : 0;
}

static int
handle_renew (const struct message *message, const struct fields *fields, long long seq, struct answer *answer,
              struct fault *fault)
{
  (void) fields, (void) seq, (void) answer;
  return renew (message->data, message->len, fault);
}

static int
handle_limit (const struct message *message, const struct fields *fields, long long seq, struct answer *answer,
              struct fault *fault)
{
  const char *key, *value;
  size_t at = 0;

  (void) message, (void) seq;
  if (machine.state != STATE_RUNNING)
    return fail (fault, FAULT_CONFLICT, 0, "the workload is not running");
  while (fields_next (fields, &at, &key, &value))
    if (strcmp (key, "cgroup") == 0 && limits_change (value, fault) < 0)
      return -1;
  answer_add (answer, "memory", "%lld", limits_most_memory ());
  answer_add (answer, "pids", "%lld", limits_most_tasks ());
  return 0;
}

/* What goes, goes first: a name or an address may come back on another interface. */
static int
handle_network (const struct message *message, const struct fields *fields, long long seq, struct answer *answer,
                struct fault *fault)
{
  const char *key, *value, *gateway = field_text (fields, "gateway");
  long long rescan;
  size_t at = 0;

  (void) message, (void) seq, (void) answer;
  if (field_number (fields, "rescan", 0, 1, 0, &rescan, fault) < 0 || need_root (fault) < 0)
    return -1;
  while (fields_next (fields, &at, &key, &value))
    if (strcmp (key, "gone") == 0 && network_pull_out (value, fault) < 0)
      return -1;
  if (rescan && devices_rescan (fault) < 0)
    return -1;
  at = 0;
  while (fields_next (fields, &at, &key, &value))
    if (strcmp (key, "nic") == 0 && network_plug_in (value, fault) < 0)
      return -1;
  if (gateway && network_set_gateway (gateway, fault) < 0)
    return -1;
  at = 0;
  while (fields_next (fields, &at, &key, &value))
    if (strcmp (key, "line") == 0 && mounts_edit_file (value, fault) < 0)
      return -1;
  return 0;
}

static int
handle_reset (const struct message *message, const struct fields *fields, long long seq, struct answer *answer,
              struct fault *fault)
{
  long long settle;

  (void) message, (void) seq, (void) answer;
  if (field_number (fields, "settle", 0, 1, 0, &settle, fault) < 0)
    return -1;
  return workload_reset (settle, fault);
}

static int
handle_premount (const struct message *message, const struct fields *fields, long long seq, struct answer *answer,
                 struct fault *fault)
{
  const char *image = field_text (fields, "image_serial"), *upper = field_text (fields, "upper_serial");
  const char *key, *value;
  size_t at = 0;

  (void) message, (void) seq, (void) answer;
  if (machine.state != STATE_IDLE)
    return fail (fault, FAULT_CONFLICT, 0, "the machine is configured already");
  if (!upper)
    return fail (fault, FAULT_INVALID, 0, "field \"upper_serial\" is missing");
  if (!image && field_text (fields, "file"))
    return fail (fault, FAULT_INVALID, 0, "field \"file\" needs \"image_serial\"");
  if (!image)
    return root_premount_upper (upper, fault);
  if (root_premount (image, upper, fault) < 0)
    return -1;
  while (fields_next (fields, &at, &key, &value))
    if (strcmp (key, "file") == 0 && mounts_add_file (value, fault) < 0)
      return -1;
  return mounts_keep_ahead (fault) < 0 ? -1 : root_sync (fault);
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

static const struct request requests[] = {
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
  [MSG_RESET] = { handle_reset, reset_rules, ON_CONNECTION },
  [MSG_PREMOUNT] = { handle_premount, premount_rules, ON_CONNECTION },
  [MSG_LIMIT] = { handle_limit, limit_rules, ON_CONNECTION },
  [MSG_NETWORK] = { handle_network, network_rules, ON_CONNECTION },
  [MSG_PAUSE] = { handle_pause, pause_rules, ON_CONNECTION },
  [MSG_RENEW] = { handle_renew, NULL, ON_CONNECTION },
};

const struct request *
request_of (uint8_t type)
{
  return type < COUNT (requests) && requests[type].handle ? &requests[type] : NULL;
}
