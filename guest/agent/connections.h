/* connections: those that a copy of a machine must not go on with, because they are another's. */
#pragma once

#include "util.h"

/* End every TCP connection and connected UDP socket of this machine that leaves it; their owners get
 * ECONNABORTED.  What is only between its own processes, over the loopback, stays, and so does what listens. */
int connections_reset (struct fault *fault);
