#include "enter.h"

#include "devices.h"
#include "paths.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>

/* Mount on `target` inside the workload's root, wherever its symlinks lead inside it. */
static int
mount_in (int rootfd, const char *source, const char *target, const char *type, unsigned long flags, const char *data,
          struct fault *fault)
{
  char path[64];
  cleanup_close int fd = open_in_root (rootfd, target, O_PATH);

  if (fd < 0)
    return fail (fault, FAULT_FAILED, errno, "open %.200s in the workload's root", target);
  snprintf (path, sizeof path, "/proc/self/fd/%d", fd);
  if (mount (source, path, type, flags, data) < 0)
    return fail (fault, FAULT_FAILED, errno, "mount %.200s", target);
  return 0;
}

static bool
is_mounted_over (const char *parent, const char *path)
{
  struct stat above, st;

  return stat (parent, &above) == 0 && stat (path, &st) == 0 && st.st_dev != above.st_dev;
}

static int
mount_kernel (int rootfd, const struct launch *launch, struct fault *fault)
{
  unsigned long safe = MS_NOSUID | MS_NODEV | MS_NOEXEC;
  unsigned long sys = safe | (launch->process->privileged ? 0 : MS_RDONLY);

  if (mount_in (rootfd, "proc", "/proc", "proc", safe, NULL, fault) < 0)
    return -1;
  if (mount_in (rootfd, "sysfs", "/sys", "sysfs", sys, NULL, fault) < 0)
    return -1;
  if (mount_in (rootfd, "cgroup", "/sys/fs/cgroup", "cgroup2", sys, NULL, fault) < 0)
    return -1;
  if (mount_in (rootfd, DIR_DEV, "/dev", NULL, MS_BIND | MS_REC, NULL, fault) < 0)
    return -1;
  /* a message queue file system belongs to the IPC namespace; the user may have mounted something there */
  if (!is_mounted_over (DIR_DEV, DIR_DEV "/mqueue")
      && mount_in (rootfd, "mqueue", "/dev/mqueue", "mqueue", safe, NULL, fault) < 0)
    return -1;
  if (*launch->console && mount_in (rootfd, launch->console, "/dev/console", NULL, MS_BIND, NULL, fault) < 0)
    return -1;
  for (int i = 0; i < 2 && access (FILE_BOOT_ID, F_OK) == 0; i++) /* a bind becomes read-only by a second call */
    if (mount_in (rootfd, FILE_BOOT_ID, "/proc/sys/kernel/random/boot_id", NULL,
                  MS_BIND | (i ? MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC : 0), NULL, fault)
        < 0)
      return -1;
  return 0;
}

static int
switch_root (int rootfd, struct fault *fault)
{
  if (fchdir (rootfd) < 0 || syscall (SYS_pivot_root, ".", ".") < 0)
    return fail (fault, FAULT_FAILED, errno, "pivot_root");
  if (umount2 (".", MNT_DETACH) < 0 || chdir ("/") < 0)
    return fail (fault, FAULT_FAILED, errno, "leave the agent's root");
  return 0;
}

static int
set_sysctls (char *const *sysctls, struct fault *fault)
{
  for (; *sysctls; sysctls++)
    {
      char path[300];
      const char *value = strchr (*sysctls, '=');
      int used = snprintf (path, sizeof path, "/proc/sys/%.*s", (int) (value - *sysctls), *sysctls);
      if (used >= (int) sizeof path || strstr (path, ".."))
        return fail (fault, FAULT_INVALID, 0, "sysctl \"%.100s\" is not a name", *sysctls);
      /* a slash in a name stands for a dot (net/ipv4/conf/eth0.1) */
      for (char *c = path + strlen ("/proc/sys/"); *c; c++)
        *c = *c == '.' ? '/' : *c == '/' ? '.' : *c;
      if (write_text (path, value + 1, 0) < 0)
        return fail (fault, FAULT_INVALID, errno, "sysctl \"%.200s\"", *sysctls);
    }
  return 0;
}

static int
hide (const char *path, struct fault *fault)
{
  struct stat st;

  if (stat (path, &st) < 0)
    return errno == ENOENT || errno == ENOTDIR ? 0 : fail (fault, FAULT_FAILED, errno, "mask %.200s", path);
  if (S_ISDIR (st.st_mode) ? mount ("tmpfs", path, "tmpfs", MS_RDONLY, "size=0k,mode=0755")
                           : mount ("/dev/null", path, NULL, MS_BIND, NULL))
    return fail (fault, FAULT_FAILED, errno, "mask %.200s", path);
  return 0;
}

static int
protect (const char *path, struct fault *fault)
{
  unsigned long flags = MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC;

  if (mount (path, path, NULL, MS_BIND | MS_REC, NULL) < 0)
    return errno == ENOENT || errno == ENOTDIR ? 0 : fail (fault, FAULT_FAILED, errno, "protect %.200s", path);
  if (mount (NULL, path, NULL, flags, NULL) < 0)
    return fail (fault, FAULT_FAILED, errno, "make %.200s read-only", path);
  return 0;
}

/* The engine's own files go with a read-only root; what the user has mounted over one of them does not. */
static int
protect_files (dev_t files, struct fault *fault)
{
  static const char *const paths[] = { "/etc/hosts", "/etc/hostname", "/etc/resolv.conf" };
  struct stat st;

  for (size_t i = 0; i < COUNT (paths); i++)
    if (stat (paths[i], &st) == 0 && st.st_dev == files
        && mount (NULL, paths[i], NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV, NULL) < 0)
      return fail (fault, FAULT_FAILED, errno, "make %s read-only", paths[i]);
  return 0;
}

int
enter_root (const struct launch *launch, struct fault *fault)
{
  struct stat files;

  if (stat (DIR_FILES, &files) < 0)
    return fail (fault, FAULT_FAILED, errno, "look at the files");
  if (mount (NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
    return fail (fault, FAULT_FAILED, errno, "make mounts private");
  cleanup_close int rootfd = open (DIR_ROOT, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (rootfd < 0)
    return fail (fault, FAULT_FAILED, errno, "open the workload's root");
  if (launch->process->privileged && devices_add_all (fault) < 0)
    return -1;
  if (mount_kernel (rootfd, launch, fault) < 0)
    return -1;
  if (switch_root (rootfd, fault) < 0)
    return -1;
  if (set_sysctls (launch->sysctls, fault) < 0)
    return -1;
  for (char **path = launch->process->readonly; *path; path++)
    if (protect (*path, fault) < 0)
      return -1;
  for (char **path = launch->process->masked; *path; path++)
    if (hide (*path, fault) < 0)
      return -1;
  if (launch->read_only && mount (NULL, "/", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL) < 0)
    return fail (fault, FAULT_FAILED, errno, "make the root read-only");
  return launch->read_only ? protect_files (files.st_dev, fault) : 0;
}
