#include "renew.h"

#include "connections.h"
#include "fields.h"
#include "mounts.h"
#include "network.h"
#include "workload.h"

#include <string.h>

static const struct field_rule renew_rules[] = {
  { "seq", false },
  { "nic", true },
  { "file", true },
  { NULL, false },
};

int
renew (const uint8_t *data, size_t len, struct fault *fault)
{
  struct fields fields;
  const char *key, *value;
  size_t at = 0;

  if (fields_open (&fields, data, len, renew_rules, fault) < 0)
    return -1;
  if (machine.state != STATE_RUNNING)
    return fail (fault, FAULT_CONFLICT, 0, "only a machine that runs can become another");
  if (!workload_is_frozen ())
    return fail (fault, FAULT_CONFLICT, 0, "the workload is not frozen");
  /* while the old addresses are there: what is told to the peers goes nowhere, the host sees to that */
  if (connections_reset (fault) < 0)
    return -1;
  while (fields_next (&fields, &at, &key, &value))
    {
      if (strcmp (key, "nic") == 0 && network_renew (value, fault) < 0)
        return -1;
      if (strcmp (key, "file") == 0 && mounts_renew_file (value, fault) < 0)
        return -1;
    }
  return 0;
}
