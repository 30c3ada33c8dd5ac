/* seccomp: the filter that the host compiled. */
#pragma once

#include "util.h"

#include <linux/filter.h>

int seccomp_apply (struct sock_filter *filter, size_t count, struct fault *fault);
