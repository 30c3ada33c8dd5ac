/* network: the loopback and the NICs of a plan: name, MAC, addresses, default routes. */
#pragma once

#include "util.h"

/* What interfaces begin with; before there is one. */
void network_default (void);
void network_loopback_up (void);
/* Every interface up, without a name or an address of its own yet: the clones of this guest have that behind them.
 * `settle`: and the kernel's news of its carrier, which takes up to a second. */
void network_up_early (bool settle);
/* Before the first NIC of a configuration. */
void network_begin (void);
/* `mac name address/prefix gateway mtu`, `-` for none; addresses and gateways may be several with commas
 * (IPv4 and IPv6).  The interface is the one with this MAC; in a clone of a template none has it yet, and
 * the first that is still free gets it. */
int network_set_up (const char *text, struct fault *fault);
/* The same for an interface that has been set up under this name: its addresses and routes are replaced. */
int network_renew (const char *text, struct fault *fault);
/* As `network_set_up`, of an interface that is being plugged in: waits for the one with this MAC. */
int network_plug_in (const char *text, struct fault *fault);
/* An interface goes, by its name; fine if it is not there. */
int network_pull_out (const char *name, struct fault *fault);
/* The IPv4 default route from now on, `-` for none. */
int network_set_gateway (const char *text, struct fault *fault);
