/* process: what the host says of a program to run (messages WORKLOAD and EXEC).  Pure. */
#pragma once

#include "fields.h"

#include <linux/filter.h>
#include <sys/resource.h>

enum
{
  SECCOMP_MAX = 4096 /* BPF_MAXINSNS */
};

struct process
{
  char *blob;  /* the strings live here */
  char **list; /* and the pointers here: each list below ends with NULL */
  char **args, **env, **groups, **masked, **readonly;
  const char *cwd, *user;
  bool tty, open_stdin, stdin_once, no_new_privs, init, privileged;
  int rows, cols;
  int oom_score_adj;
  uint64_t caps;
  struct rlimit limits[RLIM_NLIMITS];
  uint32_t limits_set; /* bit per RLIMIT_ */
  struct sock_filter *filter;
  size_t filter_len; /* instructions */
};

int process_open (struct process *process, const uint8_t *data, size_t len, struct fault *fault);
/* The filter is copied; 0 instructions is none. */
int process_set_filter (struct process *process, const struct sock_filter *filter, size_t count, struct fault *fault);
void process_close (struct process *process);
/* First NAME=value of env, or NULL. */
const char *process_env (const struct process *process, const char *name);
