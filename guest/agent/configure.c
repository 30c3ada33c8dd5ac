#include "configure.h"

#include "devices.h"
#include "limits.h"
#include "mounts.h"
#include "network.h"
#include "paths.h"
#include "root.h"

#include <string.h>

static const struct field_rule configure_rules[] = {
  { "seq", false },   { "image_serial", false }, { "upper_serial", false }, { "read_only", false },
  { "nic", true },    { "upper_format", false }, { "mount", true },         { "file", true },
  { "sysctl", true }, { "shm_kib", false },      { "cgroup", true },        { "rescan", false },
  { "rehearsal", false }, { "upper_fresh", false }, { "device", true },   { "node", true },          { NULL, false },
};

static int
take_sysctls (struct configuration *configuration, const struct fields *fields, struct fault *fault)
{
  const char *key, *value;
  size_t at = 0, count = 0;

  configuration->sysctls = calloc (field_count (fields, "sysctl") + 1, sizeof (char *));
  if (!configuration->sysctls)
    return fail (fault, FAULT_FAILED, errno, "memory for sysctls");
  while (fields_next (fields, &at, &key, &value))
    if (strcmp (key, "sysctl") == 0)
      {
        if (!strchr (value, '='))
          return fail (fault, FAULT_INVALID, 0, "sysctl \"%.100s\" is not name=value", value);
        configuration->sysctls[count++] = (char *) value;
      }
  return 0;
}

static int
put_in_place (struct configuration *configuration, const struct fields *fields, struct fault *fault)
{
  const char *key, *value, *format = field_text (fields, "upper_format");
  long long read_only, shm_kib, rescan, rehearsal, fresh;
  size_t at = 0, nics = 0;

  if (field_number (fields, "read_only", 0, 1, 0, &read_only, fault) < 0
      || field_number (fields, "shm_kib", 1, 1LL << 40, DEV_SHM_KIB, &shm_kib, fault) < 0
      || field_number (fields, "rescan", 0, 1, 0, &rescan, fault) < 0
      || field_number (fields, "rehearsal", 0, 1, 0, &rehearsal, fault) < 0
      || field_number (fields, "upper_fresh", 0, 1, 0, &fresh, fault) < 0)
    return -1;
  configuration->rehearsal = rehearsal;
  configuration->read_only = read_only;
  if (format && strcmp (format, "ext4") != 0)
    return fail (fault, FAULT_INVALID, 0, "upper_format \"%.40s\" is not ext4", format);
  if (take_sysctls (configuration, fields, fault) < 0)
    return -1;
  if (rescan && devices_rescan (fault) < 0)
    return -1;
  if (!field_text (fields, "nic"))
    devices_drop_interfaces ();
  if (root_mount (field_text (fields, "image_serial"), field_text (fields, "upper_serial"), fresh, fault) < 0)
    return -1;
  if (devices_make_dev (shm_kib, fault) < 0 || mounts_make_points (fault) < 0)
    return -1;
  while (fields_next (fields, &at, &key, &value))
    {
      if (strcmp (key, "mount") == 0 && mounts_have_ahead ())
        return fail (fault, FAULT_CONFLICT, 0, "files that go over mounts were mounted ahead");
      if (strcmp (key, "mount") == 0 && mounts_add (value, fault) < 0)
        return -1;
      if (strcmp (key, "nic") == 0 && (nics++ == 0 ? network_begin () : 0, network_set_up (value, fault) < 0))
        return -1;
      if (strcmp (key, "cgroup") == 0 && limits_set (value, fault) < 0)
        return -1;
      if (strcmp (key, "device") == 0 && device_rules_add (&configuration->devices, value, fault) < 0)
        return -1;
      if (strcmp (key, "node") == 0 && devices_add_node (value, fault) < 0)
        return -1;
    }
  if (limits_keep_reserve (fault) < 0)
    return -1;
  /* files go over mounts: a volume on /etc still gets its hosts */
  at = 0;
  while (fields_next (fields, &at, &key, &value))
    if (strcmp (key, "file") == 0 && mounts_add_file (value, fault) < 0)
      return -1;
  return mounts_have_ahead () ? 0 : mounts_add_machine_id (fault);
}

int
configure (struct configuration *configuration, const uint8_t *data, size_t len, struct fault *fault)
{
  struct fields fields;

  *configuration = (struct configuration){ .blob = malloc (len + 1) };
  if (!configuration->blob)
    return fail (fault, FAULT_FAILED, errno, "memory for the configuration");
  memcpy (configuration->blob, data, len);
  if (fields_open (&fields, (const uint8_t *) configuration->blob, len, configure_rules, fault) == 0
      && put_in_place (configuration, &fields, fault) == 0)
    {
      configuration->done = true;
      return 0;
    }
  configure_undo (configuration);
  return -1;
}

void
configure_undo (struct configuration *configuration)
{
  root_unmount ();
  mounts_forget_files ();
  free (configuration->blob);
  free (configuration->sysctls);
  *configuration = (struct configuration){ 0 };
}
