/* power: the orderly end of the machine, and the disorderly one of the agent. */
#pragma once

#include "util.h"

/* Power off as soon as the host has taken what is queued for it, or does not take it. */
void power_request (void);
void power_settle (void);
/* PID 1 must not die: a crash of the agent powers off instead of panicking the kernel. */
void power_catch_crashes (void);
