/* What the kernel says about who is busy. */
#include "quiet.h"
#include "test.h"

int
main (void)
{
  EXPECT (quiet_running ("0.20 0.18 0.12 3/80 11206\n") == 3);
  EXPECT (quiet_running ("0.00 0.00 0.00 1/80 9") == 1);
  EXPECT (quiet_running ("nonsense") == 0);
  EXPECT (quiet_running ("") == 0);
  EXPECT (quiet_blocked ("cpu 1 2\nprocs_running 1\nprocs_blocked 2\nsoftirq 1\n") == 2);
  EXPECT (quiet_blocked ("cpu 1 2\nprocs_running 1\n") == 0);
  return failures;
}
