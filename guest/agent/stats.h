/* stats: figures of the guest, and its processes. */
#pragma once

#include "fields.h"

void stats_add (struct answer *answer);
/* Rows of the workload's processes, as docs/agent-protocol.md has them, and what they are shares of. */
void stats_processes (struct answer *answer);
/* What is asked for of a /proc/PID/stat line.  Pure. */
struct process_row
{
  long pid, ppid, pgid, sid, tpgid;
  int tty, cpu;
  unsigned flags;
  unsigned long long cpu_ticks, start_ticks, virtual_bytes;
  long priority, nice, threads, rss_pages;
  char state, name[32];
};
bool stats_parse (const char *line, struct process_row *row);
