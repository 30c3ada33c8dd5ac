#include "network.h"

#include "devices.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

enum
{
  NICS_MAX = 32,
  INDEX_MAX = 64,   /* of interfaces that are there before the workload is */
  OPERATING_MS = 2000,
  OPERATING_PAUSE_US = 5000,
  PLUG_IN_MS = 5000 /* of a guest that is emulated, and whose CPUs the workload uses */
};

static unsigned taken[NICS_MAX];
static size_t taken_count;
static bool untouched[INDEX_MAX + 1]; /* by index: up, and as the kernel has made it after network_default */

struct request
{
  struct nlmsghdr header;
  char body[512];
};

static void
add_attribute (struct request *request, unsigned short type, const void *data, size_t len)
{
  struct rtattr *attribute = (struct rtattr *) ((char *) request + NLMSG_ALIGN (request->header.nlmsg_len));

  attribute->rta_type = type;
  attribute->rta_len = (unsigned short) RTA_LENGTH (len);
  memcpy (RTA_DATA (attribute), data, len);
  request->header.nlmsg_len = (uint32_t) (NLMSG_ALIGN (request->header.nlmsg_len) + RTA_ALIGN (attribute->rta_len));
}

/* Send, and wait for the kernel's word on it: 0, or -1 with errno. */
static int
ask_kernel (struct request *request)
{
  struct
  {
    struct nlmsghdr header;
    struct nlmsgerr error;
    char more[1024];
  } reply;
  cleanup_close int fd = socket (AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);

  if (fd < 0 || send (fd, request, request->header.nlmsg_len, 0) < 0)
    return -1;
  if (recv (fd, &reply, sizeof reply, 0) < (ssize_t) NLMSG_LENGTH (sizeof reply.error))
    return -1;
  errno = -reply.error.error;
  return errno ? -1 : 0;
}

static struct request
make_request (unsigned short type, const void *body, size_t len)
{
  struct request request = { .header = { .nlmsg_len = (uint32_t) NLMSG_LENGTH (len),
                                         .nlmsg_type = type,
                                         .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE } };
  memcpy (request.body, body, len);
  return request;
}

static int
parse_address (const char *text, void *bytes, int *family, size_t *len)
{
  *family = strchr (text, ':') ? AF_INET6 : AF_INET;
  *len = *family == AF_INET6 ? 16 : 4;
  return inet_pton (*family, text, bytes) == 1 ? 0 : -1;
}

static int
add_address (unsigned index, const char *text, struct fault *fault)
{
  uint8_t address[16], broadcast[4];
  char copy[80];
  int family;
  size_t len;
  long long prefix;

  snprintf (copy, sizeof copy, "%s", text);
  char *slash = strchr (copy, '/');
  if (slash)
    *slash++ = 0;
  if (!slash || parse_address (copy, address, &family, &len) < 0
      || !parse_number (slash, 0, (long long) len * 8, &prefix))
    return fail (fault, FAULT_INVALID, 0, "\"%.80s\" is not an address with a prefix", text);
  struct ifaddrmsg body = { .ifa_family = (uint8_t) family, .ifa_prefixlen = (uint8_t) prefix, .ifa_index = index };
  if (family == AF_INET6)
    body.ifa_flags = IFA_F_NODAD;
  struct request request = make_request (RTM_NEWADDR, &body, sizeof body);
  add_attribute (&request, IFA_LOCAL, address, len);
  add_attribute (&request, IFA_ADDRESS, address, len);
  if (family == AF_INET && prefix < 31)
    {
      for (int i = 0; i < 4; i++)
        broadcast[i] = (uint8_t) (address[i] | (prefix >= 8 * (i + 1) ? 0 : 0xff >> (prefix > 8 * i ? prefix - 8 * i : 0)));
      add_attribute (&request, IFA_BROADCAST, broadcast, sizeof broadcast);
    }
  if (ask_kernel (&request) < 0)
    return fail (fault, FAULT_FAILED, errno, "add address %.80s", text);
  return 0;
}

static int
add_default_route (unsigned index, const char *text, struct fault *fault)
{
  uint8_t gateway[16];
  int family;
  size_t len;

  if (parse_address (text, gateway, &family, &len) < 0)
    return fail (fault, FAULT_INVALID, 0, "\"%.80s\" is not a gateway", text);
  struct rtmsg body = { .rtm_family = (uint8_t) family,
                        .rtm_table = RT_TABLE_MAIN,
                        .rtm_protocol = RTPROT_BOOT,
                        .rtm_scope = RT_SCOPE_UNIVERSE,
                        .rtm_type = RTN_UNICAST };
  struct request request = make_request (RTM_NEWROUTE, &body, sizeof body);
  add_attribute (&request, RTA_GATEWAY, gateway, len);
  if (index)
    add_attribute (&request, RTA_OIF, &index, sizeof index);
  if (ask_kernel (&request) < 0)
    return fail (fault, FAULT_FAILED, errno, "add a default route through %.80s", text);
  return 0;
}

static int
drop_default_routes (uint8_t family, struct fault *fault)
{
  struct rtmsg body = { .rtm_family = family, .rtm_table = RT_TABLE_MAIN, .rtm_scope = RT_SCOPE_NOWHERE };

  for (;;)
    {
      struct request request = make_request (RTM_DELROUTE, &body, sizeof body);
      request.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
      if (ask_kernel (&request) < 0)
        break;
    }
  /* none is left; of IPv6 the kernel's own "nowhere", or no IPv6 at all */
  if (errno == ESRCH || (family == AF_INET6 && (errno == ENOENT || errno == EOPNOTSUPP || errno == EAFNOSUPPORT)))
    return 0;
  return fail (fault, FAULT_FAILED, errno, "take the default route away");
}

static bool
is_taken (unsigned index)
{
  for (size_t i = 0; i < taken_count; i++)
    if (taken[i] == index)
      return true;
  return false;
}

/* `ifr` gets its name and MAC.  By index, since if_nameindex is a dump of everything about all interfaces: an emulated
 * CPU would translate all of that for it. */
static bool
is_ethernet (int control, unsigned index, struct ifreq *ifr)
{
  *ifr = (struct ifreq){ .ifr_ifindex = (int) index };
  return ioctl (control, SIOCGIFNAME, ifr) == 0 && ioctl (control, SIOCGIFHWADDR, ifr) == 0
         && ifr->ifr_hwaddr.sa_family == ARPHRD_ETHER;
}

/* The Ethernet interface with this MAC, else the free one with the lowest index; 0 for none. */
static unsigned
choose_interface (int control, const uint8_t mac[6], bool any_mac, char name[IFNAMSIZ])
{
  unsigned found = 0;
  bool exact = false;

  for (unsigned index = 1; index <= INDEX_MAX && !exact; index++)
    {
      struct ifreq ifr;
      if (is_taken (index) || !is_ethernet (control, index, &ifr))
        continue;
      exact = !any_mac && memcmp (ifr.ifr_hwaddr.sa_data, mac, 6) == 0;
      if (!exact && found)
        continue;
      found = index;
      snprintf (name, IFNAMSIZ, "%s", ifr.ifr_name);
    }
  return found;
}

static bool
have_interface (const uint8_t mac[6])
{
  struct if_nameindex *list = if_nameindex ();
  cleanup_close int control = socket (AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  bool found = false;

  for (struct if_nameindex *one = list; one && one->if_index && !found; one++)
    {
      struct ifreq ifr = { 0 };
      snprintf (ifr.ifr_name, IFNAMSIZ, "%s", one->if_name);
      found = !is_taken (one->if_index) && ioctl (control, SIOCGIFHWADDR, &ifr) == 0
              && memcmp (ifr.ifr_hwaddr.sa_data, mac, 6) == 0;
    }
  if (list)
    if_freenameindex (list);
  return found;
}

struct nic
{
  char name[IFNAMSIZ], addresses[512], gateways[256];
  uint8_t mac[6];
  bool any_mac;
  int mtu;
};

/* `02:42:ac:11:00:02`, and nothing behind it. */
static bool
parse_mac (const char *text, uint8_t mac[6])
{
  if (strlen (text) != 17)
    return false;
  for (int i = 0; i < 6; i++)
    {
      const char digits[] = { text[3 * i], text[3 * i + 1], 0 };
      if (!parse_hex (digits, mac + i, 1) || (i < 5 && text[3 * i + 2] != ':'))
        return false;
    }
  return true;
}

/* The next word of *rest, into `to`; false if there is none, or it is longer. */
static bool
take_word (char **rest, char *to, size_t size)
{
  char *word;

  do
    word = strsep (rest, " ");
  while (word && !*word);
  if (!word || strlen (word) >= size)
    return false;
  strcpy (to, word);
  return true;
}

/* By hand: an emulated CPU would translate all of sscanf for it. */
static int
parse_nic (const char *text, struct nic *nic, struct fault *fault)
{
  cleanup_free char *copy = strdup (text);
  char *rest = copy, mac[24], mtu[12], more[2];
  long long number = 0;

  if (!copy)
    return fail (fault, FAULT_FAILED, errno, "memory for a nic");
  if (!take_word (&rest, mac, sizeof mac) || !take_word (&rest, nic->name, sizeof nic->name)
      || !take_word (&rest, nic->addresses, sizeof nic->addresses)
      || !take_word (&rest, nic->gateways, sizeof nic->gateways) || !take_word (&rest, mtu, sizeof mtu)
      || take_word (&rest, more, sizeof more) || rest)
    return fail (fault, FAULT_INVALID, 0, "nic \"%.100s\" is not mac, name, address, gateway and mtu", text);
  nic->any_mac = strcmp (mac, "-") == 0;
  if (!nic->any_mac && !parse_mac (mac, nic->mac))
    return fail (fault, FAULT_INVALID, 0, "nic %s: \"%s\" is not a MAC", nic->name, mac);
  if (strcmp (mtu, "-") != 0 && !parse_number (mtu, 0, 65535, &number))
    return fail (fault, FAULT_INVALID, 0, "nic %s: \"%s\" is not an MTU", nic->name, mtu);
  nic->mtu = (int) number;
  return 0;
}

/* IPv6 only where there is an address of it: as in a container, and nothing is solicited for nothing.  Nobody on
   the network is believed to be a router, and an address is used at once. */
static int
switch_ipv6 (const char *name, bool on, struct fault *fault)
{
  static const char *const settings[] = { "accept_ra", "accept_dad" };
  char path[96];

  for (size_t i = 0; on && i < COUNT (settings); i++)
    {
      snprintf (path, sizeof path, "/proc/sys/net/ipv6/conf/%s/%s", name, settings[i]);
      if (write_text (path, "0", 0) < 0)
        return fail (fault, FAULT_FAILED, errno, "write %s", path);
    }
  snprintf (path, sizeof path, "/proc/sys/net/ipv6/conf/%s/disable_ipv6", name);
  if (write_text (path, on ? "0" : "1", 0) < 0 && on)
    return fail (fault, FAULT_FAILED, errno, "write %s", path);
  return 0;
}

static int
change_link (int control, const char *now, const struct nic *nic, unsigned index, struct fault *fault)
{
  struct ifreq ifr = { 0 };
  const char *name = nic->name;
  const uint8_t *mac = nic->any_mac ? NULL : nic->mac;
  bool ipv6 = strchr (nic->addresses, ':') != NULL, fresh = index <= INDEX_MAX && untouched[index];

  snprintf (ifr.ifr_name, IFNAMSIZ, "%s", now);
  if (mac && ioctl (control, SIOCGIFHWADDR, &ifr) == 0 && memcmp (ifr.ifr_hwaddr.sa_data, mac, 6) != 0)
    {
      memcpy (ifr.ifr_hwaddr.sa_data, mac, 6);
      if (ioctl (control, SIOCSIFHWADDR, &ifr) < 0)
        return fail (fault, FAULT_FAILED, errno, "set the MAC of %s", now);
    }
  if (strcmp (now, name) != 0)
    {
      ifr.ifr_flags = 0; /* the name of one that is up cannot change */
      if (ioctl (control, SIOCSIFFLAGS, &ifr) < 0)
        return fail (fault, FAULT_FAILED, errno, "set %s down", now);
      snprintf (ifr.ifr_newname, IFNAMSIZ, "%s", name);
      if (ioctl (control, SIOCSIFNAME, &ifr) < 0)
        return fail (fault, FAULT_FAILED, errno, "rename %s to %s", now, name);
      snprintf (ifr.ifr_name, IFNAMSIZ, "%s", name);
    }
  ifr.ifr_mtu = nic->mtu;
  if (nic->mtu && ioctl (control, SIOCSIFMTU, &ifr) < 0)
    return fail (fault, FAULT_FAILED, errno, "set the MTU of %s to %d", name, nic->mtu);
  if ((ipv6 || !fresh) && switch_ipv6 (name, ipv6, fault) < 0)
    return -1;
  if (fresh)
    untouched[index] = false;
  ifr.ifr_flags = IFF_UP;
  if (ioctl (control, SIOCSIFFLAGS, &ifr) < 0)
    return fail (fault, FAULT_FAILED, errno, "set %s up", name);
  return 0;
}

static int
each_part (char *list, unsigned index, int (*add) (unsigned, const char *, struct fault *), struct fault *fault)
{
  char *save;

  if (strcmp (list, "-") == 0)
    return 0;
  for (char *one = strtok_r (list, ",", &save); one; one = strtok_r (NULL, ",", &save))
    if (add (index, one, fault) < 0)
      return -1;
  return 0;
}

int
network_set_gateway (const char *text, struct fault *fault)
{
  char list[256];

  if (drop_default_routes (AF_INET, fault) < 0 || drop_default_routes (AF_INET6, fault) < 0)
    return -1;
  snprintf (list, sizeof list, "%s", text);
  return each_part (list, 0, add_default_route, fault);
}

void
network_loopback_up (void)
{
  struct ifreq ifr = { .ifr_name = "lo" };
  cleanup_close int control = socket (AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

  ifr.ifr_flags = IFF_UP | IFF_LOOPBACK;
  if (control < 0 || ioctl (control, SIOCSIFFLAGS, &ifr) < 0)
    say ("loopback: %s", strerror (errno));
}

/* As in a container: an interface has IPv6 if it has been given such an address; everybody may ping, and listen on
 * low ports. */
void
network_default (void)
{
  static const char *const defaults[][2] = {
    { "/proc/sys/net/ipv6/conf/default/disable_ipv6", "1" },
    { "/proc/sys/net/ipv4/ping_group_range", "0 2147483647" },
    { "/proc/sys/net/ipv4/ip_unprivileged_port_start", "0" },
  };

  for (size_t i = 0; i < COUNT (defaults); i++)
    if (write_text (defaults[i][0], defaults[i][1], 0) < 0 && errno != ENOENT)
      say ("%s: %s", defaults[i][0], strerror (errno));
}

/* IFF_RUNNING says nothing: it is set of one that the kernel has not looked at yet, too. */
static void
await_operating (const char *name)
{
  int64_t until = now_ms () + OPERATING_MS;
  char path[64], state[16];

  snprintf (path, sizeof path, "/sys/class/net/%s/operstate", name);
  while (read_text (path, state, sizeof state) > 0 && strcmp (state, "up\n") != 0 && now_ms () < until)
    usleep (OPERATING_PAUSE_US);
}

void
network_up_early (bool settle)
{
  cleanup_close int control = socket (AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

  for (unsigned index = 1; index <= INDEX_MAX; index++)
    {
      struct ifreq ifr;
      if (!is_ethernet (control, index, &ifr))
        continue;
      ifr.ifr_flags = IFF_UP;
      if (ioctl (control, SIOCSIFFLAGS, &ifr) < 0)
        say ("%s: %s", ifr.ifr_name, strerror (errno)); /* the set-up will try again, and tell */
      else if (settle)
        await_operating (ifr.ifr_name);
      untouched[index] = true;
    }
}

void
network_begin (void)
{
  taken_count = 0;
}

static int
set_up (struct nic *nic, const char *now, unsigned index, int control, struct fault *fault)
{
  if (change_link (control, now, nic, index, fault) < 0)
    return -1;
  if (each_part (nic->addresses, index, add_address, fault) < 0)
    return -1;
  return each_part (nic->gateways, index, add_default_route, fault);
}

int
network_set_up (const char *text, struct fault *fault)
{
  char now[IFNAMSIZ] = "";
  struct nic nic;

  if (parse_nic (text, &nic, fault) < 0)
    return -1;
  cleanup_close int control = socket (AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (control < 0)
    return fail (fault, FAULT_FAILED, errno, "socket");
  unsigned index = choose_interface (control, nic.mac, nic.any_mac, now);
  if (!index || taken_count == NICS_MAX)
    return fail (fault, FAULT_FAILED, ENODEV, "nic %s", nic.name);
  taken[taken_count++] = index;
  return set_up (&nic, now, index, control, fault);
}

/* Down, which also takes IPv6 addresses and all routes, and without its IPv4 addresses. */
static int
take_down (int control, const char *name, unsigned index, struct fault *fault)
{
  struct ifreq ifr = { 0 };
  struct ifaddrmsg any = { .ifa_family = AF_INET, .ifa_index = index };

  snprintf (ifr.ifr_name, IFNAMSIZ, "%s", name);
  if (ioctl (control, SIOCGIFFLAGS, &ifr) < 0)
    return fail (fault, FAULT_FAILED, errno, "look at %s", name);
  ifr.ifr_flags &= (short) ~IFF_UP;
  if (ioctl (control, SIOCSIFFLAGS, &ifr) < 0)
    return fail (fault, FAULT_FAILED, errno, "set %s down", name);
  for (;;)
    {
      /* without an address it means the interface's first */
      struct request request = make_request (RTM_DELADDR, &any, sizeof any);
      if (ask_kernel (&request) < 0)
        return errno == EADDRNOTAVAIL ? 0 : fail (fault, FAULT_FAILED, errno, "remove the addresses of %s", name);
    }
}

int
network_renew (const char *text, struct fault *fault)
{
  struct nic nic;

  if (parse_nic (text, &nic, fault) < 0)
    return -1;
  cleanup_close int control = socket (AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  unsigned index = if_nametoindex (nic.name);
  if (control < 0 || !index)
    return fail (fault, FAULT_FAILED, errno, "nic %s", nic.name);
  return take_down (control, nic.name, index, fault) < 0 ? -1 : set_up (&nic, nic.name, index, control, fault);
}

int
network_plug_in (const char *text, struct fault *fault)
{
  int64_t deadline = now_ms () + PLUG_IN_MS;
  uint8_t mac[6];
  char copy[18];

  snprintf (copy, sizeof copy, "%.17s", text);
  if (!parse_mac (copy, mac))
    return fail (fault, FAULT_INVALID, 0, "nic \"%.100s\" does not begin with a MAC", text);
  cleanup_close int watch = devices_watch (); /* before looking, so that nothing is missed */
  while (!have_interface (mac))
    {
      int64_t left = deadline - now_ms ();
      struct pollfd poll_watch = { .fd = watch, .events = POLLIN };
      if (left <= 0)
        return fail (fault, FAULT_FAILED, ENODEV, "interface %s", copy);
      poll (&poll_watch, 1, (int) left);
      if (watch >= 0)
        devices_drain (watch);
    }
  return network_set_up (text, fault);
}

int
network_pull_out (const char *name, struct fault *fault)
{
  unsigned index = if_nametoindex (name);

  if (devices_remove_interface (name, fault) < 0)
    return -1;
  for (size_t i = 0; index && i < taken_count; i++)
    if (taken[i] == index)
      taken[i] = taken[--taken_count];
  return 0;
}
