/* devices: the kernel's modules, its news of devices, disks by serial, and the workload's /dev. */
#pragma once

#include "util.h"

#include <limits.h>

/* Load what /modules.load lists; problems are said and passed over (the module may be built in). */
void devices_load_modules (void);
/* Look for devices that were not there when the kernel booted. */
int devices_rescan (struct fault *fault);
/* A template's interface, of which a machine without a network makes no use. */
void devices_drop_interfaces (void);
/* The PCI device behind an interface, for good: `devices_rescan` does not find it again. */
int devices_remove_interface (const char *name, struct fault *fault);
/* Let disks and interfaces be found anew, as if nobody had used them; nothing of what is on the disks is remembered,
 * which in a clone are others. */
int devices_renew (struct fault *fault);
/* A socket that becomes readable when the kernel has found or lost a device. */
int devices_watch (void);
void devices_drain (int watch);
/* Path of the virtio disk with this serial; waits up to `timeout_ms` for it. */
int devices_find_disk (const char *serial, char path[64], int timeout_ms, struct fault *fault);
enum
{
  DEV_SHM_KIB = 65536 /* Docker's default */
};

/* Build the workload's /dev below DIR_DEV: standard nodes, pts, shm.  If there is one already, only its shm changes. */
int devices_make_dev (long long shm_kib, struct fault *fault);
/* One more in there, of a character device that anybody may open as far as the rules let him: `10:229 fuse`, a path
 * below /dev. */
int devices_add_node (const char *text, struct fault *fault);
/* For privileged workloads: all nodes of the guest's own /dev. */
int devices_add_all (struct fault *fault);
