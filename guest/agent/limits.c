#include "limits.h"

#include "paths.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>

enum
{
  MEMORY_KIB = 8192,   /* for buffers, tables and the agent's own children */
  MEMORY_SHARE = 64,   /* and this part of all memory, */
  MEMORY_MORE = 16384, /* up to so much */
  MEMORY_LEAST = 1024,
  TASKS = 64,          /* for the agent's children, and kernel threads to come */
  TASKS_LEAST = 16,
  RENEW_TRIES = 100,
  RENEW_PAUSE_US = 10000,
};

static long long most_memory, most_tasks;
static bool looked, kept; /* of the workload's cgroup as it is now */

int
limits_set (const char *text, struct fault *fault)
{
  char path[200];
  const char *value = strchr (text, '=');

  if (!value || value == text || memchr (text, '/', (size_t) (value - text)) || value - text > 60)
    return fail (fault, FAULT_INVALID, 0, "cgroup \"%.100s\" is not name=value", text);
  snprintf (path, sizeof path, CGROUP_WORKLOAD "/%.*s", (int) (value - text), text);
  kept = false;
  if (write_text (path, value + 1, 0) < 0)
    return fail (fault, FAULT_INVALID, errno, "cgroup \"%.100s\"", text);
  return 0;
}

long long
limits_memory (const char *meminfo)
{
  long long total = number_after (meminfo, "MemTotal:"), kib = number_after (meminfo, "MemFree:");
  long long available = number_after (meminfo, "MemAvailable:"); /* less than free where much is kept for huge pages */

  if (available < kib)
    kib = available;
  kib -= MEMORY_KIB + (total / MEMORY_SHARE < MEMORY_MORE ? total / MEMORY_SHARE : MEMORY_MORE);
  return (kib > MEMORY_LEAST ? kib : MEMORY_LEAST) * 1024;
}

/* Write `most` to a file of the workload's cgroup that holds more, or `max`. */
static int
lower (const char *name, long long most, struct fault *fault)
{
  char path[200], text[32];
  long long now;

  snprintf (path, sizeof path, CGROUP_WORKLOAD "/%s", name);
  if (read_text (path, text, sizeof text) < 0)
    return fail (fault, FAULT_FAILED, errno, "read %s", path);
  text[strcspn (text, "\n")] = 0;
  if (parse_number (text, 0, most, &now))
    return 0;
  snprintf (text, sizeof text, "%lld", most);
  if (write_text (path, text, 0) < 0)
    return fail (fault, FAULT_FAILED, errno, "write %s", path);
  return 0;
}

/* A guest whose memory is used up to the last page does not kill: its kernel drops the pages of running programs
 * and reads them again, for minutes.  A cgroup that is full kills at once.  It is the same with tasks: a fork bomb
 * must not take those with which the agent runs an exec. */
int
limits_look (struct fault *fault)
{
  char text[8192];
  struct sysinfo now;
  long long tasks;

  looked = kept = false;
  if (read_text ("/proc/meminfo", text, sizeof text) < 0)
    return fail (fault, FAULT_FAILED, errno, "read /proc/meminfo");
  most_memory = limits_memory (text);
  if (read_text ("/proc/sys/kernel/threads-max", text, sizeof text) < 0 || sysinfo (&now) < 0)
    return fail (fault, FAULT_FAILED, errno, "read how many tasks there may be");
  tasks = strtoll (text, NULL, 10) - now.procs - TASKS;
  most_tasks = tasks > TASKS_LEAST ? tasks : TASKS_LEAST;
  looked = true;
  return 0;
}

int
limits_keep_reserve (struct fault *fault)
{
  if (kept)
    return 0;
  if (!looked && limits_look (fault) < 0)
    return -1;
  if (lower ("memory.max", most_memory, fault) < 0 || lower ("pids.max", most_tasks, fault) < 0)
    return -1;
  kept = true;
  return 0;
}

int
limits_change (const char *text, struct fault *fault)
{
  bool is_memory = strncmp (text, "memory.max=", strlen ("memory.max=")) == 0;

  if (!is_memory && strncmp (text, "pids.max=", strlen ("pids.max=")) != 0)
    return fail (fault, FAULT_INVALID, 0, "cgroup \"%.100s\" cannot change while the workload runs", text);
  if (limits_set (text, fault) < 0)
    return -1;
  return lower (is_memory ? "memory.max" : "pids.max", is_memory ? most_memory : most_tasks, fault);
}

long long
limits_most_memory (void)
{
  return most_memory;
}

long long
limits_most_tasks (void)
{
  return most_tasks;
}

int
limits_renew (struct fault *fault)
{
  kept = false;
  for (int tries = 0; rmdir (CGROUP_WORKLOAD) < 0; tries++)
    {
      if (errno != EBUSY || tries == RENEW_TRIES)
        return fail (fault, FAULT_FAILED, errno, "remove the workload's cgroup");
      write_text (CGROUP_WORKLOAD "/cgroup.kill", "1", 0);
      usleep (RENEW_PAUSE_US);
    }
  if (mkdir (CGROUP_WORKLOAD, 0755) < 0)
    return fail (fault, FAULT_FAILED, errno, "make the workload's cgroup");
  return 0;
}
