#include "connections.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>

enum
{
  /* the kernel's numbers of TCP states (include/net/tcp_states.h, which is not for programs) */
  ESTABLISHED = 1,
  TIME_WAIT = 6,
  LISTEN = 10,
  STATES_ALL = 0xfff,

  NAMESPACES_MAX = 1024,
};

struct seen
{
  ino_t numbers[NAMESPACES_MAX];
  size_t count;
};

static const struct
{
  uint8_t family, protocol;
  uint32_t states;
} kinds[] = {
  /* a socket in TIME_WAIT has no owner any more, one that listens has no peer */
  { AF_INET, IPPROTO_TCP, STATES_ALL & ~(1u << TIME_WAIT) & ~(1u << LISTEN) },
  { AF_INET6, IPPROTO_TCP, STATES_ALL & ~(1u << TIME_WAIT) & ~(1u << LISTEN) },
  { AF_INET, IPPROTO_UDP, 1u << ESTABLISHED },
  { AF_INET6, IPPROTO_UDP, 1u << ESTABLISHED },
};

static int
open_diag (struct fault *fault)
{
  int fd = socket (AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);

  return fd < 0 ? fail (fault, FAULT_FAILED, errno, "look at connections") : fd;
}

static int
send_request (int fd, uint16_t type, uint16_t flags, const struct inet_diag_req_v2 *what)
{
  struct
  {
    struct nlmsghdr header;
    struct inet_diag_req_v2 body;
  } request = { .header = { .nlmsg_len = sizeof request, .nlmsg_type = type, .nlmsg_flags = NLM_F_REQUEST | flags },
                .body = *what };

  return send (fd, &request, sizeof request, 0) < 0 ? -1 : 0;
}

static bool
is_local (const struct inet_diag_msg *message)
{
  const uint8_t *address = (const uint8_t *) message->id.idiag_src;
  static const uint8_t mapped[12] = { [10] = 0xff, [11] = 0xff }, loopback[16] = { [15] = 1 };

  if (message->idiag_family == AF_INET)
    return address[0] == 127;
  if (memcmp (address, mapped, sizeof mapped) == 0)
    return address[12] == 127;
  return memcmp (address, loopback, sizeof loopback) == 0;
}

static int
destroy (int fd, uint8_t protocol, const struct inet_diag_msg *message, struct fault *fault)
{
  struct inet_diag_req_v2 what = { .sdiag_family = message->idiag_family,
                                   .sdiag_protocol = protocol,
                                   .idiag_states = 1u << message->idiag_state,
                                   .id = message->id };
  struct
  {
    struct nlmsghdr header;
    struct nlmsgerr error;
    char more[256];
  } reply;

  if (send_request (fd, SOCK_DESTROY, NLM_F_ACK, &what) < 0
      || recv (fd, &reply, sizeof reply, 0) < (ssize_t) NLMSG_LENGTH (sizeof reply.error))
    return fail (fault, FAULT_FAILED, errno, "reset a connection");
  if (reply.error.error && reply.error.error != -ENOENT) /* it may have ended by itself */
    return fail (fault, FAULT_FAILED, -reply.error.error, "reset a connection");
  return 0;
}

static int
reset_kind (size_t kind, struct fault *fault)
{
  struct inet_diag_req_v2 what = { .sdiag_family = kinds[kind].family,
                                   .sdiag_protocol = kinds[kind].protocol,
                                   .idiag_states = kinds[kind].states };
  static char bytes[32768] __attribute__ ((aligned (NLMSG_ALIGNTO)));
  cleanup_close int listing = open_diag (fault);
  cleanup_close int ending = listing < 0 ? -1 : open_diag (fault);

  if (ending < 0)
    return -1;
  if (send_request (listing, SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, &what) < 0)
    return fail (fault, FAULT_FAILED, errno, "list connections");
  for (;;)
    {
      ssize_t got = recv (listing, bytes, sizeof bytes, 0);
      if (got < 0)
        return fail (fault, FAULT_FAILED, errno, "list connections");
      size_t left = (size_t) got;
      for (struct nlmsghdr *one = (struct nlmsghdr *) bytes; NLMSG_OK (one, left); one = NLMSG_NEXT (one, left))
        {
          const struct inet_diag_msg *message = NLMSG_DATA (one);
          if (one->nlmsg_type == NLMSG_DONE)
            return 0;
          if (one->nlmsg_type == NLMSG_ERROR)
            return fail (fault, FAULT_FAILED, -((const struct nlmsgerr *) NLMSG_DATA (one))->error, "list connections");
          if (one->nlmsg_len < NLMSG_LENGTH (sizeof *message))
            return fail (fault, FAULT_FAILED, EPROTO, "list connections");
          if (!is_local (message) && destroy (ending, kinds[kind].protocol, message, fault) < 0)
            return -1;
        }
    }
}

static int
reset_here (struct fault *fault)
{
  for (size_t kind = 0; kind < COUNT (kinds); kind++)
    if (reset_kind (kind, fault) < 0)
      return -1;
  return 0;
}

/* Those in the namespace `path`; we are in our own again afterwards, or the machine is lost. */
static int
reset_in (int home, const char *path, struct fault *fault)
{
  cleanup_close int there = open (path, O_RDONLY | O_CLOEXEC);

  if (there < 0)
    return errno == ENOENT ? 0 : fail (fault, FAULT_FAILED, errno, "open %s", path); /* it has just ended */
  if (setns (there, CLONE_NEWNET) < 0)
    return fail (fault, FAULT_FAILED, errno, "enter %s", path);
  int result = reset_here (fault);
  if (setns (home, CLONE_NEWNET) < 0)
    return fail (fault, FAULT_FAILED, errno, "come back from %s", path);
  return result;
}

/* Whether the namespace is a new one, noted then; -1 when there are too many. */
static int
note_namespace (struct seen *seen, ino_t number)
{
  for (size_t i = 0; i < seen->count; i++)
    if (seen->numbers[i] == number)
      return 0;
  if (seen->count == NAMESPACES_MAX)
    return -1;
  seen->numbers[seen->count++] = number;
  return 1;
}

/* The workload may have made network namespaces: each one that a process is in. */
static int
reset_elsewhere (struct fault *fault)
{
  static struct seen seen;
  cleanup_dir DIR *processes = opendir ("/proc");
  cleanup_close int home = open ("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
  struct stat about;
  char path[64];

  if (!processes || home < 0 || fstat (home, &about) < 0)
    return fail (fault, FAULT_FAILED, errno, "look for network namespaces");
  seen = (struct seen){ .numbers = { about.st_ino }, .count = 1 };
  for (struct dirent *one; (one = readdir (processes));)
    {
      if (one->d_name[0] < '1' || one->d_name[0] > '9')
        continue;
      snprintf (path, sizeof path, "/proc/%.20s/ns/net", one->d_name);
      if (stat (path, &about) < 0)
        continue; /* a process that has ended, which has no sockets */
      int fresh = note_namespace (&seen, about.st_ino);
      if (fresh < 0)
        return fail (fault, FAULT_FAILED, E2BIG, "more than %d network namespaces", NAMESPACES_MAX);
      if (fresh && reset_in (home, path, fault) < 0)
        return -1;
    }
  return 0;
}

int
connections_reset (struct fault *fault)
{
  return reset_here (fault) < 0 ? -1 : reset_elsewhere (fault);
}
