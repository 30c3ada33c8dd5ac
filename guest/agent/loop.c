#include "loop.h"

#include <poll.h>

enum
{
  WATCHES_MAX = 1024
};

static struct pollfd fds[WATCHES_MAX];
static struct
{
  loop_fn *fn;
  void *arg;
} calls[WATCHES_MAX];
static nfds_t count;
static int64_t wake_ms = INT64_MAX;

void
loop_watch (int fd, short events, loop_fn *fn, void *arg)
{
  if (count == WATCHES_MAX)
    return; /* there are fewer streams and jobs than that */
  fds[count] = (struct pollfd){ .fd = fd, .events = events };
  calls[count].fn = fn;
  calls[count].arg = arg;
  count++;
}

void
loop_wake_at (int64_t ms)
{
  if (ms < wake_ms)
    wake_ms = ms;
}

void
loop_run_once (void)
{
  int timeout = -1;

  if (wake_ms != INT64_MAX)
    {
      int64_t left = wake_ms - now_ms ();
      timeout = left <= 0 ? 0 : left > 60000 ? 60000 : (int) left;
    }
  int ready = poll (fds, count, timeout);
  nfds_t watched = count;
  count = 0;
  wake_ms = INT64_MAX;
  for (nfds_t i = 0; ready > 0 && i < watched; i++)
    if (fds[i].revents)
      calls[i].fn (calls[i].arg, fds[i].revents);
}
