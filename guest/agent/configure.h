/* configure: the machine part of a plan (message CONFIGURE), taken apart and put in place. */
#pragma once

#include "device_rules.h"
#include "fields.h"

struct configuration
{
  char *blob;
  char **sysctls; /* NULL-terminated */
  struct device_rules devices;
  bool read_only;
  bool rehearsal; /* nothing of an instance's: to be reset */
  bool done;
};

/* All or nothing: undone when it fails. */
int configure (struct configuration *configuration, const uint8_t *data, size_t len, struct fault *fault);
/* Everything that configuring put in place is gone. */
void configure_undo (struct configuration *configuration);
