#include "ports.h"

#include "loop.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>

enum
{
  QUEUE_SIZE = 1 << 20,
  PIECE = 32768, /* the driver takes no more at once */
};

#define PORTS_DIR "/sys/class/virtio-ports"

struct port ports[PORT_COUNT] = {
  [PORT_CONTROL] = { .name = "insula.control", .fd = -1 },
  [PORT_LOG] = { .name = "insula.log", .fd = -1 },
  [PORT_EXIT] = { .name = "insula.exit", .fd = -1 },
};
static int edges = -1;

int
ports_open (void)
{
  edges = epoll_create1 (EPOLL_CLOEXEC);
  if (edges < 0)
    return -1;
  for (size_t i = 0; i < PORT_COUNT; i++)
    if (queue_open (&ports[i].out, QUEUE_SIZE) < 0)
      return -1;
  return 0;
}

static void
open_port (struct port *port, const char *device)
{
  char path[300];
  struct epoll_event event = { .events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = port };

  snprintf (path, sizeof path, "/dev/%s", device);
  cleanup_close int fd = open (path, O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
  if (fd < 0 || epoll_ctl (edges, EPOLL_CTL_ADD, fd, &event) < 0)
    {
      say ("port %s: %s", port->name, strerror (errno));
      return;
    }
  port->readable = port->writable = true;
  port->fd = steal_fd (&fd);
}

void
ports_scan (void)
{
  char file[300], name[64];
  struct dirent *entry;
  bool missing = false;

  for (size_t i = 0; i < PORT_COUNT; i++)
    missing |= ports[i].fd < 0;
  if (!missing)
    return;
  cleanup_dir DIR *dir = opendir (PORTS_DIR);
  while (dir && (entry = readdir (dir)))
    {
      snprintf (file, sizeof file, PORTS_DIR "/%s/name", entry->d_name);
      if (entry->d_name[0] == '.' || read_text (file, name, sizeof name) < 0)
        continue;
      name[strcspn (name, "\n")] = 0;
      for (size_t i = 0; i < PORT_COUNT; i++)
        if (ports[i].fd < 0 && strcmp (ports[i].name, name) == 0)
          open_port (&ports[i], entry->d_name);
    }
}

static void
take_edges (void *arg, short events)
{
  struct epoll_event list[PORT_COUNT];
  int got = epoll_wait (edges, list, PORT_COUNT, 0);

  (void) arg;
  (void) events;
  for (int i = 0; i < got; i++)
    {
      struct port *port = list[i].data.ptr;
      port->readable |= (list[i].events & (EPOLLIN | EPOLLHUP)) != 0;
      port->writable |= (list[i].events & EPOLLOUT) != 0;
    }
}

void
ports_watch (void)
{
  loop_watch (edges, POLLIN, take_edges, NULL);
}

void
port_flush (struct port *port)
{
  if (port->fd < 0 || !port->writable)
    return;
  if (queue_write (&port->out, port->fd, PIECE) < 0)
    port->writable = false;
}

int
port_write_through (struct port *port, const void *data, size_t len)
{
  int flags = port->fd < 0 ? -1 : fcntl (port->fd, F_GETFL);

  if (flags < 0 || fcntl (port->fd, F_SETFL, flags & ~O_NONBLOCK) < 0)
    return -1;
  int result = queue_write (&port->out, port->fd, PIECE) < 0 ? -1 : write_all (port->fd, data, len);
  fcntl (port->fd, F_SETFL, flags);
  return result;
}
