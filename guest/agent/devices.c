#include "devices.h"

#include "paths.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <linux/netlink.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>

enum
{
  VIRTIO_DEVICES_MAX = 64,
  DISKS_MAX = 4,
};

/* Where a disk was found.  Their names stay: they are bound in order, also when they are renewed. */
static struct
{
  char serial[24], path[64];
} found_disks[DISKS_MAX];

static void
load_module (const char *path)
{
  cleanup_close int fd = open (path, O_RDONLY | O_CLOEXEC);

  if (fd < 0 || (syscall (SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST))
    say ("module %s: %s", path, strerror (errno));
}

void
devices_load_modules (void)
{
  char list[16384], path[300], *save;

  if (read_text ("/modules.load", list, sizeof list) < 0)
    return; /* all built in */
  for (char *line = strtok_r (list, "\n", &save); line; line = strtok_r (NULL, "\n", &save))
    {
      snprintf (path, sizeof path, "/%s", line);
      load_module (path);
    }
}

/* A clone's own devices are behind the one bridge that its template had, with nothing behind it. */
int
devices_rescan (struct fault *fault)
{
  char path[300];
  struct dirent *entry;
  cleanup_dir DIR *dir = opendir ("/sys/class/pci_bus");

  while (dir && (entry = readdir (dir)))
    {
      snprintf (path, sizeof path, "/sys/class/pci_bus/%s/rescan", entry->d_name);
      if (entry->d_name[0] == '.' || strcmp (entry->d_name, "0000:00") == 0)
        continue;
      if (write_text (path, "1", 0) < 0)
        return fail (fault, FAULT_FAILED, errno, "look for devices behind %.100s", path);
    }
  return 0;
}

#define VIRTIO "/sys/bus/virtio/"

static void
unbind_all (const char *driver)
{
  char path[300];
  struct dirent *entry;

  snprintf (path, sizeof path, VIRTIO "drivers/%s", driver);
  cleanup_dir DIR *dir = opendir (path);
  snprintf (path, sizeof path, VIRTIO "drivers/%s/unbind", driver);
  while (dir && (entry = readdir (dir)))
    if (strncmp (entry->d_name, "virtio", strlen ("virtio")) == 0 && write_text (path, entry->d_name, 0) < 0)
      say ("unbind %s: %s", entry->d_name, strerror (errno));
}

void
devices_drop_interfaces (void)
{
  unbind_all ("virtio_net");
}

int
devices_remove_interface (const char *name, struct fault *fault)
{
  char path[300];

  if (strchr (name, '/') || name[0] == '.')
    return fail (fault, FAULT_INVALID, 0, "\"%.40s\" is not an interface", name);
  snprintf (path, sizeof path, "/sys/class/net/%.40s", name);
  if (access (path, F_OK) < 0)
    return 0; /* its device was pulled out already */
  /* `device` is virtio's, a link; the PCI device is above it */
  snprintf (path, sizeof path, "/sys/class/net/%.40s/device/../remove", name);
  if (write_text (path, "1", 0) < 0)
    return fail (fault, FAULT_FAILED, errno, "remove %.40s", name);
  return 0;
}

static int
forget_contents (const char *path, struct fault *fault)
{
  cleanup_close int fd = open (path, O_RDONLY | O_CLOEXEC);

  if (fd < 0 || ioctl (fd, BLKFLSBUF, 0) < 0)
    return fail (fault, FAULT_FAILED, errno, "forget what was read of %.64s", path);
  return 0;
}

int
devices_renew (struct fault *fault)
{
  char path[300], name[32];

  unbind_all ("virtio_net");
  unbind_all ("virtio_blk");
  for (unsigned i = 0; i < VIRTIO_DEVICES_MAX; i++) /* in order, for the order of their names */
    {
      snprintf (name, sizeof name, "virtio%u", i);
      snprintf (path, sizeof path, VIRTIO "devices/%s/driver", name);
      if (access (path, F_OK) == 0)
        continue;
      snprintf (path, sizeof path, VIRTIO "devices/%s", name);
      if (access (path, F_OK) == 0 && write_text (VIRTIO "drivers_probe", name, 0) < 0)
        return fail (fault, FAULT_FAILED, errno, "bind %s again", name);
    }
  /* the kernel has looked for partitions */
  for (size_t i = 0; i < COUNT (found_disks) && *found_disks[i].serial; i++)
    if (forget_contents (found_disks[i].path, fault) < 0)
      return -1;
  return 0;
}

int
devices_watch (void)
{
  struct sockaddr_nl address = { .nl_family = AF_NETLINK, .nl_groups = 1 };
  cleanup_close int fd = socket (AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_KOBJECT_UEVENT);

  if (fd < 0 || bind (fd, (struct sockaddr *) &address, sizeof address) < 0)
    return -1;
  return steal_fd (&fd);
}

void
devices_drain (int watch)
{
  char event[4096];

  /* what changed is looked up in sysfs, so a lost event (ENOBUFS) does no harm */
  while (recv (watch, event, sizeof event, 0) >= 0 || errno == ENOBUFS || errno == EINTR)
    ;
}

static bool
recall_disk (const char *serial, char path[64])
{
  for (size_t i = 0; i < COUNT (found_disks) && *found_disks[i].serial; i++)
    if (strcmp (found_disks[i].serial, serial) == 0)
      return strcpy (path, found_disks[i].path), access (path, F_OK) == 0;
  return false;
}

static void
remember_disk (const char *serial, const char *path)
{
  for (size_t i = 0; i < COUNT (found_disks) && strlen (serial) < sizeof found_disks[i].serial; i++)
    if (!*found_disks[i].serial || strcmp (found_disks[i].serial, serial) == 0)
      {
        strcpy (found_disks[i].serial, serial);
        snprintf (found_disks[i].path, sizeof found_disks[i].path, "%s", path);
        return;
      }
}

static bool
look_for_disk (const char *serial, char path[64])
{
  char file[300], text[64];
  struct dirent *entry;
  cleanup_dir DIR *dir = opendir ("/sys/block");

  while (dir && (entry = readdir (dir)))
    {
      snprintf (file, sizeof file, "/sys/block/%s/serial", entry->d_name);
      if (entry->d_name[0] == '.' || read_text (file, text, sizeof text) < 0)
        continue;
      text[strcspn (text, "\n")] = 0;
      if (strcmp (text, serial) == 0 && strlen (entry->d_name) < 32)
        {
          snprintf (path, 64, "/dev/%.32s", entry->d_name);
          return access (path, F_OK) == 0;
        }
    }
  return false;
}

int
devices_find_disk (const char *serial, char path[64], int timeout_ms, struct fault *fault)
{
  int64_t deadline = now_ms () + timeout_ms;

  if (recall_disk (serial, path))
    return 0;
  cleanup_close int watch = devices_watch (); /* before looking, so that nothing is missed */
  while (!look_for_disk (serial, path))
    {
      int64_t left = deadline - now_ms ();
      struct pollfd poll_watch = { .fd = watch, .events = POLLIN };
      if (left <= 0)
        return fail (fault, FAULT_FAILED, ENODEV, "disk \"%.40s\"", serial);
      poll (&poll_watch, 1, (int) left);
      if (watch >= 0)
        devices_drain (watch);
    }
  remember_disk (serial, path);
  return 0;
}

static int
make_node (const char *name, unsigned major, unsigned minor, mode_t mode, struct fault *fault)
{
  char path[64];

  snprintf (path, sizeof path, DIR_DEV "/%s", name);
  if (mknod (path, S_IFCHR | mode, makedev (major, minor)) < 0 || chmod (path, mode) < 0)
    return fail (fault, FAULT_FAILED, errno, "make %s", path);
  return 0;
}

int
devices_make_dev (long long shm_kib, struct fault *fault)
{
  static const struct
  {
    const char *name;
    unsigned major, minor;
  } nodes[] = { { "null", 1, 3 },   { "zero", 1, 5 },    { "full", 1, 7 },
                { "random", 1, 8 }, { "urandom", 1, 9 }, { "tty", 5, 0 } };
  static const char *const links[][2] = { { "/proc/self/fd", "fd" },     { "/proc/self/fd/0", "stdin" },
                                          { "/proc/self/fd/1", "stdout" }, { "/proc/self/fd/2", "stderr" },
                                          { "/proc/kcore", "core" },     { "pts/ptmx", "ptmx" } };
  static long long made_kib;
  unsigned long shm_flags = MS_NOSUID | MS_NODEV | MS_NOEXEC;
  char options[64];

  snprintf (options, sizeof options, "mode=1777,size=%lldk", shm_kib);
  if (access (DIR_DEV "/null", F_OK) == 0)
    {
      if (shm_kib != made_kib && mount (NULL, DIR_DEV "/shm", NULL, MS_REMOUNT | shm_flags, options) < 0)
        return fail (fault, FAULT_FAILED, errno, "resize /dev/shm");
      made_kib = shm_kib;
      return 0;
    }
  if (mount ("tmpfs", DIR_DEV, "tmpfs", MS_NOSUID | MS_STRICTATIME, "mode=755,size=65536k") < 0)
    return fail (fault, FAULT_FAILED, errno, "mount the workload's /dev");
  for (size_t i = 0; i < COUNT (nodes); i++)
    if (make_node (nodes[i].name, nodes[i].major, nodes[i].minor, 0666, fault) < 0)
      return -1;
  for (size_t i = 0; i < COUNT (links); i++)
    {
      char path[64];
      snprintf (path, sizeof path, DIR_DEV "/%s", links[i][1]);
      if (symlink (links[i][0], path) < 0)
        return fail (fault, FAULT_FAILED, errno, "make %s", path);
    }
  if (mkdir (DIR_DEV "/pts", 0755) < 0 || mkdir (DIR_DEV "/shm", 01777) < 0 || mkdir (DIR_DEV "/mqueue", 0755) < 0)
    return fail (fault, FAULT_FAILED, errno, "make the workload's /dev");
  if (mount ("devpts", DIR_DEV "/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5") < 0)
    return fail (fault, FAULT_FAILED, errno, "mount devpts");
  if (mount ("shm", DIR_DEV "/shm", "tmpfs", shm_flags, options) < 0)
    return fail (fault, FAULT_FAILED, errno, "mount /dev/shm");
  made_kib = shm_kib;
  return 0;
}

int
devices_add_node (const char *text, struct fault *fault)
{
  char directory[PATH_MAX] = ".";
  unsigned major, minor;
  int used = 0;

  if (sscanf (text, "%u:%u %n", &major, &minor, &used) != 2 || !used || !text[used] || strlen (text) >= PATH_MAX)
    return fail (fault, FAULT_INVALID, 0, "node \"%.100s\" is not major:minor path", text);
  const char *path = text + used, *slash = strrchr (path, '/'), *name = slash ? slash + 1 : path;
  if (slash)
    snprintf (directory, sizeof directory, "%.*s", (int) (slash - path), path);
  cleanup_close int dev = open (DIR_DEV, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  cleanup_close int parent = dev < 0 ? -1 : make_in_root (dev, directory, true, 0755);
  if (parent < 0)
    return fail (fault, FAULT_FAILED, errno, "make the directory of /dev/%.200s", path);
  unlinkat (parent, name, 0); /* as a runtime does: what was asked for is in the place of a standard node */
  if (mknodat (parent, name, S_IFCHR | 0666, makedev (major, minor)) < 0)
    return fail (fault, FAULT_FAILED, errno, "make /dev/%.200s", path);
  return 0;
}

int
devices_add_all (struct fault *fault)
{
  struct dirent *entry;
  struct stat st;
  cleanup_dir DIR *dir = opendir ("/dev");

  if (!dir)
    return fail (fault, FAULT_FAILED, errno, "list devices");
  while ((entry = readdir (dir)))
    {
      char path[300];
      if (fstatat (dirfd (dir), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0
          || !(S_ISCHR (st.st_mode) || S_ISBLK (st.st_mode)))
        continue;
      snprintf (path, sizeof path, DIR_DEV "/%s", entry->d_name);
      if (mknod (path, st.st_mode, st.st_rdev) < 0 && errno != EEXIST)
        return fail (fault, FAULT_FAILED, errno, "make %.200s", path);
    }
  return 0;
}
