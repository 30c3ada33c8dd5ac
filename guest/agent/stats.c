#include "stats.h"

#include "paths.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <time.h>

void
stats_add (struct answer *answer)
{
  char text[8192];
  struct timespec up;

  clock_gettime (CLOCK_BOOTTIME, &up);
  answer_add (answer, "uptime_ms", "%lld", (long long) up.tv_sec * 1000 + up.tv_nsec / 1000000);
  answer_add (answer, "cpus", "%d", get_nprocs ());
  if (read_text ("/proc/meminfo", text, sizeof text) > 0)
    {
      answer_add (answer, "mem_total_kib", "%lld", number_after (text, "MemTotal:"));
      answer_add (answer, "mem_free_kib", "%lld", number_after (text, "MemFree:"));
      answer_add (answer, "mem_available_kib", "%lld", number_after (text, "MemAvailable:"));
    }
  if (read_text (CGROUP_WORKLOAD "/pids.current", text, sizeof text) > 0)
    answer_add (answer, "pids", "%lld", strtoll (text, NULL, 10));
  if (read_text (CGROUP_WORKLOAD "/memory.current", text, sizeof text) > 0)
    answer_add (answer, "workload_mem_kib", "%lld", strtoll (text, NULL, 10) / 1024);
  if (read_text (CGROUP_WORKLOAD "/cpu.stat", text, sizeof text) > 0)
    {
      answer_add (answer, "cpu_usec", "%lld", number_after (text, "usage_usec "));
      answer_add (answer, "cpu_user_usec", "%lld", number_after (text, "user_usec "));
      answer_add (answer, "cpu_system_usec", "%lld", number_after (text, "system_usec "));
    }
}

bool
stats_parse (const char *line, struct process_row *row)
{
  const char *open = strchr (line, '('), *close = strrchr (line, ')');
  unsigned long long utime, stime;

  *row = (struct process_row){ .pid = strtol (line, NULL, 10) };
  if (!open || !close || close < open)
    return false;
  snprintf (row->name, sizeof row->name, "%.*s", (int) (close - open - 1), open + 1);
  if (sscanf (close + 1,
              " %c %ld %ld %ld %d %ld %u %*u %*u %*u %*u %llu %llu %*d %*d %ld %ld %ld %*d %llu %llu %ld"
              " %*u %*u %*u %*u %*u %*u %*u %*u %*u %*u %*u %*u %*u %*d %d",
              &row->state, &row->ppid, &row->pgid, &row->sid, &row->tty, &row->tpgid, &row->flags, &utime, &stime,
              &row->priority, &row->nice, &row->threads, &row->start_ticks, &row->virtual_bytes, &row->rss_pages, &row->cpu)
      != 16)
    return false;
  row->cpu_ticks = utime + stime;
  return true;
}

/* Of the workload, that is in a pid namespace below ours; its users and groups, real and effective. */
static bool
is_of_workload (const char *status, unsigned users[2], unsigned groups[2])
{
  const char *line = strstr (status, "\nNSpid:");
  const char *uids = strstr (status, "\nUid:"), *gids = strstr (status, "\nGid:");
  unsigned outer, inner;

  if (!uids || sscanf (uids, "\nUid: %u %u", &users[0], &users[1]) != 2)
    return false;
  if (!gids || sscanf (gids, "\nGid: %u %u", &groups[0], &groups[1]) != 2)
    return false;
  return line && sscanf (line, "\nNSpid: %u %u", &outer, &inner) == 2;
}

static void
add_row (struct answer *answer, const char *pid)
{
  char path[300], status[4096], line[1024], command[4096], tty[16] = "?";
  struct process_row row;
  unsigned users[2], groups[2];
  long ticks = sysconf (_SC_CLK_TCK), page_kib = sysconf (_SC_PAGESIZE) / 1024;

  snprintf (path, sizeof path, "/proc/%s/status", pid);
  if (read_text (path, status, sizeof status) < 0 || !is_of_workload (status, users, groups))
    return;
  snprintf (path, sizeof path, "/proc/%s/stat", pid);
  if (read_text (path, line, sizeof line) < 0 || !stats_parse (line, &row))
    return;
  snprintf (path, sizeof path, "/proc/%s/cmdline", pid);
  ssize_t got = read_text (path, command, sizeof command);
  while (got > 0 && command[got - 1] == 0)
    got--;
  for (ssize_t i = 0; i < got; i++)
    if (iscntrl ((unsigned char) command[i]))
      command[i] = ' ';
  for (char *c = row.name; *c; c++)
    if (iscntrl ((unsigned char) *c))
      *c = ' ';
  if (got <= 0)
    snprintf (command, sizeof command, "[%s]", row.name);
  if (row.tty)
    snprintf (tty, sizeof tty, "pts/%d", (row.tty & 0xff) | (row.tty >> 12 & 0xfff00));
  struct timespec now, up;
  clock_gettime (CLOCK_REALTIME, &now);
  clock_gettime (CLOCK_BOOTTIME, &up);
  long long start = (long long) now.tv_sec - up.tv_sec + (long long) (row.start_ticks / (unsigned long long) ticks);
  answer_add (answer, "row",
              "%ld\t%ld\t%ld\t%ld\t%ld\t%s\t%c\t%u\t%u\t%u\t%u\t%u\t%lld\t%llu\t%llu\t%ld\t%ld\t%ld\t%ld\t%d\t%lld\t%s\t%s",
              row.pid, row.ppid, row.pgid, row.sid, row.tpgid, tty, row.state, users[0], users[1], groups[0], groups[1],
              row.flags, start, row.cpu_ticks * 1000 / (unsigned long long) ticks, row.virtual_bytes / 1024,
              row.rss_pages * page_kib, row.priority, row.nice, row.threads, row.cpu, number_after (status, "\nVmLck:"),
              row.name, command);
}

void
stats_processes (struct answer *answer)
{
  char text[8192];
  struct dirent *entry;
  cleanup_dir DIR *dir = opendir ("/proc");

  answer_add (answer, "now", "%lld", (long long) (now_ns () / 1000000000));
  if (read_text ("/proc/meminfo", text, sizeof text) > 0)
    answer_add (answer, "mem_total_kib", "%lld", number_after (text, "MemTotal:"));
  while (dir && (entry = readdir (dir)))
    if (isdigit ((unsigned char) entry->d_name[0]))
      add_row (answer, entry->d_name);
}
