#include "tty.h"

#include "paths.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>

#ifndef TIOCGPTPEER
#define TIOCGPTPEER _IO ('T', 0x41)
#endif

int
tty_open (int rows, int cols, int *master, int *slave, char name[32], struct fault *fault)
{
  int unlocked = 0;
  unsigned number;
  cleanup_close int m = open (DIR_DEV "/pts/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);

  if (m < 0)
    return fail (fault, FAULT_FAILED, errno, "open a terminal");
  if (ioctl (m, TIOCSPTLCK, &unlocked) < 0 || ioctl (m, TIOCGPTN, &number) < 0)
    return fail (fault, FAULT_FAILED, errno, "unlock a terminal");
  *slave = ioctl (m, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
  if (*slave < 0)
    return fail (fault, FAULT_FAILED, errno, "open a terminal's other end");
  snprintf (name, 32, DIR_DEV "/pts/%u", number);
  if (rows && cols)
    tty_resize (m, rows, cols);
  *master = steal_fd (&m);
  return 0;
}

int
tty_resize (int master, int rows, int cols)
{
  struct winsize size = { .ws_row = (unsigned short) rows, .ws_col = (unsigned short) cols };
  return ioctl (master, TIOCSWINSZ, &size);
}
