/* identity: what makes this VM another one than those that share its memory's origin (message IDENTITY). */
#pragma once

#include "fields.h"

struct identity
{
  char generation[40]; /* "" before the first */
  char boot_id[40];
};

/* Nanoseconds since 1970. */
int identity_set_clock (long long time_ns, struct fault *fault);
int identity_take (struct identity *identity, const uint8_t *data, size_t len, struct fault *fault);
