#include "rlimits.h"

#include <stdio.h>
#include <string.h>

static const char *const limit_names[] = {
  [RLIMIT_CPU] = "cpu",         [RLIMIT_FSIZE] = "fsize",     [RLIMIT_DATA] = "data",
  [RLIMIT_STACK] = "stack",     [RLIMIT_CORE] = "core",       [RLIMIT_RSS] = "rss",
  [RLIMIT_NPROC] = "nproc",     [RLIMIT_NOFILE] = "nofile",   [RLIMIT_MEMLOCK] = "memlock",
  [RLIMIT_AS] = "as",           [RLIMIT_LOCKS] = "locks",     [RLIMIT_SIGPENDING] = "sigpending",
  [RLIMIT_MSGQUEUE] = "msgqueue", [RLIMIT_NICE] = "nice",     [RLIMIT_RTPRIO] = "rtprio",
  [RLIMIT_RTTIME] = "rttime",
};

int
rlimit_add (struct rlimit limits[RLIM_NLIMITS], uint32_t *set, const char *text, struct fault *fault)
{
  char name[16], soft_text[24], hard_text[24], rest;
  long long soft, hard;

  if (sscanf (text, "%15s %23s %23s %c", name, soft_text, hard_text, &rest) == 3
      && parse_number (soft_text, -1, INT64_MAX, &soft) && parse_number (hard_text, -1, INT64_MAX, &hard))
    for (size_t i = 0; i < COUNT (limit_names); i++)
      if (strcmp (name, limit_names[i]) == 0)
        {
          limits[i].rlim_cur = soft < 0 ? RLIM_INFINITY : (rlim_t) soft;
          limits[i].rlim_max = hard < 0 ? RLIM_INFINITY : (rlim_t) hard;
          *set |= 1u << i;
          return 0;
        }
  return fail (fault, FAULT_INVALID, 0, "rlimit \"%.60s\" is not \"name soft hard\"", text);
}

/* What Docker's daemon gives its containers; the kernel's own for its first process is much less. */
static int
apply_defaults (struct fault *fault)
{
  static const struct rlimit files = { 1048576, 1048576 }, none = { RLIM_INFINITY, RLIM_INFINITY };

  if (setrlimit (RLIMIT_NOFILE, &files) < 0 || setrlimit (RLIMIT_NPROC, &none) < 0
      || setrlimit (RLIMIT_CORE, &none) < 0)
    return fail (fault, FAULT_FAILED, errno, "set the default rlimits");
  return 0;
}

int
rlimits_apply (const struct rlimit limits[RLIM_NLIMITS], uint32_t set, struct fault *fault)
{
  if (apply_defaults (fault) < 0)
    return -1;
  for (int i = 0; i < (int) COUNT (limit_names); i++)
    if ((set >> i & 1) && setrlimit ((__typeof__ (RLIMIT_CPU)) i, &limits[i]) < 0)
      return fail (fault, FAULT_FAILED, errno, "set rlimit %s", limit_names[i]);
  return 0;
}
