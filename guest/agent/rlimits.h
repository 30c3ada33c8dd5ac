/* rlimits: `nofile 1024 4096` → setrlimit. */
#pragma once

#include "util.h"

#include <sys/resource.h>

int rlimit_add (struct rlimit limits[RLIM_NLIMITS], uint32_t *set, const char *text, struct fault *fault);
/* Docker's defaults, and then these. */
int rlimits_apply (const struct rlimit limits[RLIM_NLIMITS], uint32_t set, struct fault *fault);
