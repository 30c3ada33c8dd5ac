#include "quiet.h"

#include "util.h"

#include <stdlib.h>
#include <string.h>

int
quiet_running (const char *loadavg)
{
  for (int words = 0; words < 3; words++)
    {
      loadavg = strchr (loadavg, ' ');
      if (!loadavg)
        return 0;
      loadavg++;
    }
  return atoi (loadavg);
}

int
quiet_blocked (const char *stat)
{
  const char *line = strstr (stat, "\nprocs_blocked ");
  return line ? atoi (line + strlen ("\nprocs_blocked ")) : 0;
}

bool
is_quiet (bool at_a_glance)
{
  char text[16384];

  /* the cheap file first: /proc/stat counts every interrupt */
  if (read_text ("/proc/loadavg", text, sizeof text) < 0 || quiet_running (text) > 1)
    return false;
  return at_a_glance || (read_text ("/proc/stat", text, sizeof text) > 0 && quiet_blocked (text) == 0);
}
