/* caps: capabilities by name, and giving up those that a process should not have. */
#pragma once

#include "util.h"

/* "CAP_CHOWN" → its bit. */
int caps_add (uint64_t *set, const char *name, struct fault *fault);
/* Before the user changes: the bounding set. */
int caps_bound (uint64_t set, struct fault *fault);
/* After it has changed: permitted and effective are `set` for root and empty for others, inheritable and
 * ambient are empty, as in Docker. */
int caps_apply (uint64_t set, uid_t uid, struct fault *fault);
