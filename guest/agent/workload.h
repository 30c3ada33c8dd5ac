/* workload: the life of the main process, and the execs beside it. */
#pragma once

#include "configure.h"
#include "identity.h"
#include "jobs.h"

enum machine_state
{
  STATE_IDLE,
  STATE_CONFIGURED,
  STATE_RUNNING,
  STATE_EXITED,
};

struct machine
{
  enum machine_state state;
  struct identity identity;
  struct configuration configuration;
  struct sock_filter *filter; /* for the processes that follow */
  size_t filter_len;
  bool powering_off;
};

extern struct machine machine;

const char *machine_state_name (void);
int workload_prepare (const uint8_t *data, size_t len, struct fault *fault);
/* The answer to `seq` comes when execve has succeeded or failed. */
int workload_start (long long seq, struct fault *fault);
void workload_launched (struct job *job);
/* When it has ended and its output is out: record, message, power off. */
void workload_settle (struct job *job);
/* After a rehearsal: as if none had been.  `settle`: wait for what the kernel still does about that, up to seconds. */
int workload_reset (bool settle, struct fault *fault);
int workload_exec (uint16_t stream, const uint8_t *data, size_t len, struct fault *fault);
int workload_attach (uint16_t stream, bool feeds, struct fault *fault);
int workload_signal (int signum, pid_t pid, struct fault *fault);
/* `user` of the main process, "" without one. */
const char *workload_user (void);
int workload_pause (bool on, struct fault *fault);
bool workload_is_frozen (void);
/* Blocks until every process of it stands still; for a task's own process. */
int workload_await_frozen (struct fault *fault);
