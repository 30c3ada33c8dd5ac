/* device_rules: which devices the workload may open, as Docker has it for containers. */
#pragma once

#include "util.h"

#include <linux/bpf.h>

enum
{
  DEVICE_RULES_MAX = 64
};

/* The program for a cgroup: nodes may be made, and null, zero, full, random, urandom, the own terminals opened.
 * How many instructions.  Pure. */
size_t device_rules_program (struct bpf_insn program[DEVICE_RULES_MAX]);

/* For the workload's cgroup, until it is made anew; idempotent. */
int device_rules_apply (struct fault *fault);
/* Away again, for a workload that may open everything; idempotent. */
int device_rules_lift (struct fault *fault);
/* The cgroup was made anew. */
void device_rules_forget (void);
