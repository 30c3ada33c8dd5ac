#include "caps.h"

#include <linux/capability.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

static const char *const cap_names[] = {
  "CHOWN",          "DAC_OVERRIDE",    "DAC_READ_SEARCH",    "FOWNER",           "FSETID",
  "KILL",           "SETGID",          "SETUID",             "SETPCAP",          "LINUX_IMMUTABLE",
  "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN",          "NET_RAW",          "IPC_LOCK",
  "IPC_OWNER",      "SYS_MODULE",      "SYS_RAWIO",          "SYS_CHROOT",       "SYS_PTRACE",
  "SYS_PACCT",      "SYS_ADMIN",       "SYS_BOOT",           "SYS_NICE",         "SYS_RESOURCE",
  "SYS_TIME",       "SYS_TTY_CONFIG",  "MKNOD",              "LEASE",            "AUDIT_WRITE",
  "AUDIT_CONTROL",  "SETFCAP",         "MAC_OVERRIDE",       "MAC_ADMIN",        "SYSLOG",
  "WAKE_ALARM",     "BLOCK_SUSPEND",   "AUDIT_READ",         "PERFMON",          "BPF",
  "CHECKPOINT_RESTORE",
};

int
caps_add (uint64_t *set, const char *name, struct fault *fault)
{
  if (strncmp (name, "CAP_", 4) == 0)
    for (size_t i = 0; i < COUNT (cap_names); i++)
      if (strcmp (name + 4, cap_names[i]) == 0)
        {
          *set |= (uint64_t) 1 << i;
          return 0;
        }
  return fail (fault, FAULT_INVALID, 0, "unknown capability \"%.60s\"", name);
}

int
caps_bound (uint64_t set, struct fault *fault)
{
  /* the kernel may know fewer or more than we do */
  for (unsigned long cap = 0; cap < 64 && prctl (PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++)
    if (!(set >> cap & 1) && prctl (PR_CAPBSET_DROP, cap, 0, 0, 0) < 0)
      return fail (fault, FAULT_FAILED, errno, "drop capability %lu from the bounding set", cap);
  return 0;
}

int
caps_apply (uint64_t set, uid_t uid, struct fault *fault)
{
  struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
  struct __user_cap_data_struct data[2] = { { 0 } };

  for (unsigned long cap = 0; cap < 64; cap++)
    if ((set >> cap & 1) && prctl (PR_CAPBSET_READ, cap, 0, 0, 0) <= 0)
      set &= ~((uint64_t) 1 << cap); /* this kernel does not have it */
  if (uid != 0)
    set = 0;
  for (int i = 0; i < 2; i++)
    data[i].permitted = data[i].effective = (uint32_t) (set >> 32 * i);
  if (prctl (PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0)
    return fail (fault, FAULT_FAILED, errno, "clear ambient capabilities");
  if (syscall (SYS_capset, &header, data) < 0)
    return fail (fault, FAULT_FAILED, errno, "set capabilities");
  return 0;
}
