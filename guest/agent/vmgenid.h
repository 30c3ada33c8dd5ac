/* vmgenid: the firmware's news that this machine is a copy of another, and when the kernel hears of it. */
#pragma once

#include "util.h"

/* Not until vmgenid_listen: the kernel would run the firmware's code for it (a thousand pieces to translate where a
 * CPU is emulated) before anything else, and the agent gives each machine that starts from a template new entropy
 * anyway, and says so. */
void vmgenid_defer (void);
/* From now on, which is what copies and snapshots of a machine with a workload need.  Idempotent, and does nothing
 * where nothing was deferred. */
void vmgenid_listen (void);
/* The same some time after a workload has begun. */
void vmgenid_listen_later (void);
void vmgenid_settle (void);
