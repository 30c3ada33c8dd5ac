/* tty: pseudo-terminals of the workload's own devpts. */
#pragma once

#include "util.h"

/* `name` becomes the agent's path of the slave.  Both ends are closed on exec; the master does not block. */
int tty_open (int rows, int cols, int *master, int *slave, char name[32], struct fault *fault);
int tty_resize (int master, int rows, int cols);
