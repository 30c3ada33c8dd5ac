/* connections: those that a copy of a machine must not go on with, because they are another's. */
#pragma once

#include "util.h"

/* End every TCP connection and connected UDP socket of this machine that leaves it; their owners get
 * ECONNABORTED.  What is only between its own processes, over the loopback, stays, and so does what listens.  In
 * network namespaces that the workload has made, too, as far as a process is in them: there also what goes from one
 * to another. */
int connections_reset (struct fault *fault);
