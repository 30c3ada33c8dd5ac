/* stats: figures of the guest, and its processes. */
#pragma once

#include "fields.h"

void stats_add (struct answer *answer);
/* Rows of the workload's processes: pid, ppid, user, tty, start, cpu ms, rss KiB, command. */
void stats_processes (struct answer *answer);
/* pid, ppid, tty_nr, utime + stime, starttime, rss of a /proc/PID/stat line.  Pure. */
struct process_row
{
  long pid, ppid;
  int tty;
  unsigned long long cpu_ticks, start_ticks;
  long rss_pages;
  char name[32];
};
bool stats_parse (const char *line, struct process_row *row);
