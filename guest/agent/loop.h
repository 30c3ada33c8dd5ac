/* loop: poll(2), with what to wait for said anew in every round, so that nothing is watched by accident. */
#pragma once

#include "util.h"

typedef void loop_fn (void *arg, short events);

/* For this round.  A watch that finds its descriptor closed meanwhile must see that itself. */
void loop_watch (int fd, short events, loop_fn *fn, void *arg);
/* Wake up at this time (now_ms) at the latest. */
void loop_wake_at (int64_t ms);
/* Wait and call; the watches are then forgotten. */
void loop_run_once (void);
