/* device_rules: which devices the workload may open, as Docker has it for containers. */
#pragma once

#include "util.h"

#include <linux/bpf.h>

enum
{
  DEVICE_RULES_FURTHER = 64,
  DEVICE_RULES_MAX = 64 + 6 * DEVICE_RULES_FURTHER /* instructions */
};

/* What may be opened besides; a number that is negative is every one. */
struct device_rules
{
  size_t count;
  struct device_rule
  {
    char type; /* c, b, or a for both */
    int major, minor;
    unsigned access; /* BPF_DEVCG_ACC_ */
  } rules[DEVICE_RULES_FURTHER];
};

/* One more: `c 10:229 rwm`, `b 8:* r`, `a *:* rwm`. */
int device_rules_add (struct device_rules *further, const char *text, struct fault *fault);
/* The program for a cgroup: nodes may be made, and null, zero, full, random, urandom, the own terminals opened, and
 * what `further` has.  How many instructions.  Pure. */
size_t device_rules_program (const struct device_rules *further, struct bpf_insn program[DEVICE_RULES_MAX]);

/* For the workload's cgroup, until it is made anew; idempotent. */
int device_rules_apply (const struct device_rules *further, struct fault *fault);
/* Away again, for a workload that may open everything; idempotent. */
int device_rules_lift (struct fault *fault);
/* The cgroup was made anew. */
void device_rules_forget (void);
