/* jobs: the agent's children: the main process, execs, file transfers, and tasks that may take a while. */
#pragma once

#include "launch.h"

enum
{
  JOBS_MAX = 128
};

enum job_kind
{
  JOB_FREE,
  JOB_MAIN,
  JOB_EXEC,
  JOB_FILES,
  JOB_TASK,
};

struct job
{
  enum job_kind kind;
  pid_t pid; /* 0: none, or not known yet */
  int reports;
  bool launched, faulted, exited;
  struct fault fault;
  int code;
  int64_t exited_ms;
  int64_t begun_ms;  /* until when START is not answered; 0: it is */
  int64_t looked_ms; /* when it was last seen meanwhile, */
  int64_t given_ms;  /* and how long it may still compute */
  int quiet;        /* how often in a row it was seen at rest meanwhile */
  int in, out, err; /* our ends; with a tty `in` is -1 and `out` the master */
  bool tty, stdin_once;
  bool answers_ok; /* a transfer that is answered */
  bool mute;       /* the host that asked is gone: no answer */
  uint16_t stream; /* of its answers */
  long long seq;
};

struct job *job_new (enum job_kind kind, struct fault *fault);
struct job *job_main (void); /* NULL where there is no workload */
struct job *job_by_pid (pid_t pid);
size_t jobs_alive (enum job_kind kind);

/* Pipes or a terminal for a job; the other ends go into `launch`, to be closed by the caller. */
int job_open_stdio (struct job *job, bool tty, bool open_stdin, int rows, int cols, struct launch *launch,
                    struct fault *fault);
void job_close_stdio (struct job *job);
void job_free (struct job *job);
/* Nobody waits for the answers that are due. */
void jobs_mute (void);

/* Say what to wait for in this round. */
void jobs_watch (void);
/* Children have ended. */
void jobs_reap (void);
/* Finish those that are complete; after every round. */
void jobs_settle (void);
void job_input (struct job *job);
/* The end of a stream's input has been reached: what that means for the job. */
void job_detach (struct job *job);
