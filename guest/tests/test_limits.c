/* How much memory the workload may have. */
#include "limits.h"
#include "test.h"

static long long
kib (long long total, long long free, long long available)
{
  char meminfo[300];

  snprintf (meminfo, sizeof meminfo, "MemTotal: %10lld kB\nMemFree:  %10lld kB\nMemAvailable: %7lld kB\nBuffers: 7 kB\n",
            total, free, available);
  return limits_memory (meminfo) / 1024;
}

int
main (void)
{
  EXPECT (kib (64000, 32000, 40000) == 32000 - 8192 - 1000);
  /* free, but kept for huge pages */
  EXPECT (kib (1024000, 950000, 890000) == 890000 - 8192 - 16000);
  EXPECT (kib (8000000, 7900000, 7800000) == 7800000 - 8192 - 16384);
  /* never nothing */
  EXPECT (kib (40000, 5000, 6000) == 1024);
  EXPECT (limits_memory ("") == 1024 * 1024);
  return failures;
}
