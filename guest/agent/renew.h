/* renew: a running machine becomes another one: the copy of a fork, or a snapshot that goes on (message RENEW). */
#pragma once

#include "util.h"

/* Connections reset, interfaces with new addresses, /etc/hosts and its like with new text.  The workload has to
 * be frozen: what it does before this is done, it would do in the original's name. */
int renew (const uint8_t *data, size_t len, struct fault *fault);
