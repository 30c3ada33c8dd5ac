/* ports: the virtio-serial ports.  They are looked up whenever the kernel has news of devices, and watched
 * edge by edge, since a port without a host on it hangs up without end. */
#pragma once

#include "queue.h"

struct port
{
  const char *name;
  int fd; /* -1 until it is there */
  bool readable, writable;
  struct queue out;
};

enum
{
  PORT_CONTROL,
  PORT_LOG,
  PORT_EXIT,
  PORT_COUNT,
};

extern struct port ports[PORT_COUNT];

int ports_open (void);
/* Look for those that are missing. */
void ports_scan (void);
void ports_watch (void);
/* Write what is queued, as far as the host takes it now. */
void port_flush (struct port *port);
/* Write and wait until the host has it. */
int port_write_through (struct port *port, const void *data, size_t len);
