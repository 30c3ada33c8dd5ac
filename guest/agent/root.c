#include "root.h"

#include "devices.h"
#include "paths.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>

enum
{
  DISK_WAIT_MS = 10000,
  READ_PIECE = 1 << 16,
  READ_MOST = 1 << 22 /* of one file; a multiple of the piece */
};

int
root_make_scaffold (struct fault *fault)
{
  static const char *const dirs[] = { DIR_SCAFFOLD, DIR_SCAFFOLD "/proc", DIR_SCAFFOLD "/sys", DIR_SCAFFOLD "/dev",
                                      DIR_SCAFFOLD "/etc" };
  static const char *const files[] = { DIR_SCAFFOLD "/etc/hosts", DIR_SCAFFOLD "/etc/hostname",
                                       DIR_SCAFFOLD "/etc/resolv.conf", DIR_SCAFFOLD "/.dockerenv" };

  for (size_t i = 0; i < COUNT (dirs); i++)
    if (mkdir (dirs[i], 0755) < 0)
      return fail (fault, FAULT_FAILED, errno, "make %s", dirs[i]);
  for (size_t i = 0; i < COUNT (files); i++)
    if (write_text (files[i], "", O_CREAT) < 0)
      return fail (fault, FAULT_FAILED, errno, "make %s", files[i]);
  /* as in Docker's containers: what programs look for to know where they are, and what old ones read */
  if (chmod (DIR_SCAFFOLD "/.dockerenv", 0755) < 0 || symlink ("/proc/mounts", DIR_SCAFFOLD "/etc/mtab") < 0)
    return fail (fault, FAULT_FAILED, errno, "make the scaffold");
  return 0;
}

static int
mount_disk (const char *serial, const char *target, const char *type, unsigned long flags, const char *data,
            struct fault *fault)
{
  char path[64];

  if (devices_find_disk (serial, path, DISK_WAIT_MS, fault) < 0)
    return -1;
  if (mount (path, target, type, flags, data) < 0)
    return fail (fault, FAULT_FAILED, errno, "mount disk \"%.40s\" (%s)", serial, type);
  return 0;
}

/* The root directory of an overlay is the upper one's: a new one looks like the image's. */
static int
make_upper (struct fault *fault)
{
  struct stat st, made;

  if (mkdir (DIR_UPPER "/work", 0700) < 0 && errno != EEXIST)
    return fail (fault, FAULT_FAILED, errno, "make the overlay's work directory");
  if (mkdir (DIR_UPPER "/upper", 0755) < 0)
    return errno == EEXIST ? 0 : fail (fault, FAULT_FAILED, errno, "make the upper layer");
  if (stat (DIR_IMAGE, &st) < 0 || stat (DIR_UPPER "/upper", &made) < 0
      || ((st.st_mode ^ made.st_mode) & 07777 && chmod (DIR_UPPER "/upper", st.st_mode & 07777) < 0)
      || ((st.st_uid || st.st_gid) && chown (DIR_UPPER "/upper", st.st_uid, st.st_gid) < 0))
    return fail (fault, FAULT_FAILED, errno, "set up the upper layer");
  return 0;
}

static int
mount_upper (const char *serial, unsigned long flags, struct fault *fault)
{
  /* its file is full of holes: to write zeros over them in the background costs the host disk space; and a thread
   * that does so, or reads bitmaps ahead, costs each clone time */
  return mount_disk (serial, DIR_UPPER, "ext4", MS_NOATIME | flags, "noinit_itable,no_prefetch_block_bitmaps", fault);
}

/* What is mounted ahead of CONFIGURE. */
static enum { AHEAD_NOTHING, AHEAD_UPPER, AHEAD_ROOT } ahead;

/* What a kernel does to mount an ext4 is a tenth of all that an emulated CPU translates until a clone's program runs.
 * Only what is read-only may be mounted while the disk below it changes: whoever has another disk than the template's
 * takes it away, and a file system that was never writable writes nothing when it goes (ext4_put_super; its journal
 * is empty, so jbd2_journal_destroy leaves it alone). */
int
root_premount_upper (const char *upper_serial, struct fault *fault)
{
  if (mount_upper (upper_serial, MS_RDONLY, fault) < 0)
    return -1;
  ahead = AHEAD_UPPER;
  return 0;
}

/* What every start looks up, and what most programs are loaded with: clones have it in memory, one for all. */
static void
read_ahead (void)
{
  static const char *const paths[] = { "etc/hosts",
                                       "etc/hostname",
                                       "etc/resolv.conf",
                                       "etc/machine-id",
                                       "etc/passwd",
                                       "etc/group",
                                       "etc/ld.so.cache",
                                       "bin/sh",
                                       "lib64/ld-linux-x86-64.so.2",
                                       "lib/x86_64-linux-gnu/libc.so.6",
                                       "lib64/libc.so.6",
                                       "lib/ld-musl-x86_64.so.1",
                                       "lib/ld-linux-aarch64.so.1",
                                       "lib/aarch64-linux-gnu/libc.so.6",
                                       "lib/ld-musl-aarch64.so.1" };
  cleanup_close int root = open (DIR_ROOT, O_PATH | O_DIRECTORY | O_CLOEXEC);
  cleanup_free char *buffer = malloc (READ_PIECE);
  struct stat st;

  for (size_t i = 0; buffer && i < COUNT (paths); i++)
    {
      cleanup_close int place = open_in_root (root, paths[i], O_PATH);
      if (place < 0 || fstat (place, &st) < 0 || !S_ISREG (st.st_mode)) /* a device does something when it is opened */
        continue;
      cleanup_close int fd = open_in_root (root, paths[i], O_RDONLY);
      for (size_t most = READ_MOST; fd >= 0 && most && read (fd, buffer, READ_PIECE) > 0;)
        most -= READ_PIECE;
    }
}

/* The overlay's own checks of its upper layer are two tenths more.  It is writable from here on, so a clone must have
 * the disk of this very instant. */
int
root_premount (const char *image_serial, const char *upper_serial, struct fault *fault)
{
  if (root_mount (image_serial, upper_serial, true, fault) < 0)
    {
      root_unmount ();
      return -1;
    }
  read_ahead ();
  ahead = AHEAD_ROOT;
  return 0;
}

int
root_sync (struct fault *fault)
{
  cleanup_close int fd = open (DIR_UPPER, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

  return fd < 0 || syncfs (fd) < 0 ? fail (fault, FAULT_FAILED, errno, "sync the upper disk") : 0;
}

/* 1: the upper disk is mounted now; 0: nothing is. */
static int
take_premounted (bool fresh, struct fault *fault)
{
  if (ahead == AHEAD_NOTHING)
    return 0;
  ahead = AHEAD_NOTHING;
  if (fresh && mount (NULL, DIR_UPPER, NULL, MS_REMOUNT | MS_NOATIME, NULL) == 0)
    return 1;
  if (umount2 (DIR_UPPER, UMOUNT_NOFOLLOW) < 0)
    return fail (fault, FAULT_FAILED, errno, "take away the template's upper disk");
  return 0;
}

int
root_mount (const char *image_serial, const char *upper_serial, bool fresh, struct fault *fault)
{
  if (!image_serial)
    return fail (fault, FAULT_INVALID, 0, "image_serial is missing");
  if (ahead == AHEAD_ROOT)
    {
      if (!fresh || !upper_serial)
        return fail (fault, FAULT_CONFLICT, 0, "the root that is mounted is on another upper disk");
      ahead = AHEAD_NOTHING;
      return 0;
    }
  if (mount_disk (image_serial, DIR_IMAGE, "erofs", MS_RDONLY, NULL, fault) < 0)
    return -1;
  int mounted = take_premounted (fresh && upper_serial, fault);
  if (mounted < 0 || (!mounted && upper_serial && mount_upper (upper_serial, 0, fault) < 0))
    return -1;
  if (!upper_serial && mount ("tmpfs", DIR_UPPER, "tmpfs", 0, NULL) < 0)
    return fail (fault, FAULT_FAILED, errno, "mount a tmpfs as the upper layer");
  if (make_upper (fault) < 0)
    return -1;
  if (mount ("overlay", DIR_ROOT, "overlay", MS_NOATIME,
             "lowerdir=" DIR_IMAGE ":" DIR_SCAFFOLD ",upperdir=" DIR_UPPER "/upper,workdir=" DIR_UPPER
             "/work,redirect_dir=off,index=off,metacopy=off")
      < 0)
    return fail (fault, FAULT_FAILED, errno, "mount the overlay");
  return 0;
}

void
root_unmount (void)
{
  /* most often the first is enough; a busy one is cut off and goes when its last user does */
  static const char *const points[] = { DIR_ROOT, DIR_DEV, DIR_SHARES, DIR_UPPER, DIR_IMAGE };

  ahead = AHEAD_NOTHING;
  for (size_t i = 0; i < COUNT (points); i++)
    for (int tries = 0; tries < 64; tries++)
      {
        if (umount2 (points[i], UMOUNT_NOFOLLOW) < 0
            && (errno != EBUSY || umount2 (points[i], MNT_DETACH | UMOUNT_NOFOLLOW) < 0))
          break;
      }
}

int
root_freeze (bool on, struct fault *fault)
{
  cleanup_close int fd = open (DIR_UPPER, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

  if (fd < 0 || ioctl (fd, on ? FIFREEZE : FITHAW, 0) < 0)
    return fail (fault, errno == EBUSY || errno == EINVAL ? FAULT_CONFLICT : FAULT_FAILED, errno, "%s the upper disk",
                 on ? "freeze" : "thaw");
  return 0;
}
