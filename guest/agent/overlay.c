#include "overlay.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

enum
{
  DEPTH_MAX = 1000
};

bool
overlay_is_whiteout (const struct stat *st)
{
  return S_ISCHR (st->st_mode) && st->st_rdev == makedev (0, 0);
}

bool
overlay_is_opaque (int fd)
{
  char value = 0;

  return fgetxattr (fd, "trusted.overlay.opaque", &value, 1) == 1 && value == 'y';
}

bool
overlay_is_scaffold (int dirfd, const char *name, const char *path)
{
  static const char *const paths[] = { "proc",       "sys",             "dev",         "etc/hosts",
                                       "etc/hostname", "etc/resolv.conf" };
  struct stat st;

  for (size_t i = 0; i < COUNT (paths); i++)
    {
      if (strcmp (path, paths[i]) != 0 || fstatat (dirfd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        continue;
      if (S_ISREG (st.st_mode))
        return st.st_size == 0;
      if (!S_ISDIR (st.st_mode))
        return false;
      cleanup_close int fd = openat (dirfd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
      cleanup_dir DIR *dir = fd < 0 ? NULL : fdopendir (fd);
      if (!dir)
        return false;
      fd = -1; /* the DIR's now */
      struct dirent *entry;
      while ((entry = readdir (dir)))
        if (strcmp (entry->d_name, ".") != 0 && strcmp (entry->d_name, "..") != 0)
          return false;
      return true;
    }
  return false;
}

struct differ
{
  FILE *out;
  char path[PATH_MAX];
  size_t told; /* this much of `path` is a directory that is written already */
};

static void
tell (struct differ *d, char kind)
{
  fprintf (d->out, "%c /%s", kind, d->path);
  fputc (0, d->out);
}

/* The directory of what was added or removed counts as changed even if it looks the same; that of a file which was
 * only changed does not (moby: pkg/archive/changes.go). */
static void
tell_parent (struct differ *d)
{
  char *slash = strrchr (d->path, '/');

  if (!slash || (size_t) (slash - d->path) <= d->told)
    return;
  *slash = 0;
  tell (d, 'C');
  *slash = '/';
  d->told = (size_t) (slash - d->path);
}

static bool
looks_the_same (const char *path, const struct stat *a, const struct stat *b)
{
  bool times = a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;

  /* the engine's own files in /etc change its time */
  return a->st_mode == b->st_mode && a->st_uid == b->st_uid && a->st_gid == b->st_gid
         && (times || strcmp (path, "etc") == 0);
}

static int walk (struct differ *d, int upper, int lower, size_t len, unsigned depth, struct fault *fault);

static int
open_dir (int dirfd, const char *name)
{
  return dirfd < 0 ? -1 : openat (dirfd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

static int
compare_one (struct differ *d, int upper, int lower, const char *name, size_t len, unsigned depth, struct fault *fault)
{
  struct stat st, before;

  if (fstatat (upper, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
    return errno == ENOENT ? 0 : fail (fault, FAULT_FAILED, errno, "read /%.200s", d->path);
  bool existed = lower >= 0 && fstatat (lower, name, &before, AT_SYMLINK_NOFOLLOW) == 0;
  if (overlay_is_scaffold (upper, name, d->path))
    return 0;
  bool is_whiteout = overlay_is_whiteout (&st);
  bool both_dirs = existed && S_ISDIR (st.st_mode) && S_ISDIR (before.st_mode);
  if (is_whiteout && !existed)
    return 0;
  if (!both_dirs || !looks_the_same (d->path, &st, &before))
    {
      if (is_whiteout || !existed)
        tell_parent (d);
      tell (d, is_whiteout ? 'D' : existed ? 'C' : 'A');
      d->told = len;
    }
  int result = 0;
  if (S_ISDIR (st.st_mode))
    {
      cleanup_close int up = open_dir (upper, name);
      cleanup_close int low = existed ? open_dir (lower, name) : -1;
      if (up < 0)
        return fail (fault, FAULT_FAILED, errno, "open /%.200s", d->path);
      result = walk (d, up, low, len, depth + 1, fault);
    }
  return result;
}

static int
for_each (struct differ *d, int dirfd, size_t len, int upper, int lower, bool gone_only, unsigned depth,
          struct fault *fault)
{
  struct dirent *entry;
  struct stat st;
  int own = fcntl (dirfd, F_DUPFD_CLOEXEC, 3);
  cleanup_dir DIR *dir = own < 0 ? NULL : fdopendir (own);

  if (!dir || depth > DEPTH_MAX)
    return fail (fault, FAULT_FAILED, dir ? ELOOP : errno, "list /%.200s", d->path);
  while ((entry = readdir (dir)))
    {
      size_t more = strlen (entry->d_name), slash = len > 0;
      int result = 0;
      if (strcmp (entry->d_name, ".") == 0 || strcmp (entry->d_name, "..") == 0)
        continue;
      if (len + more + 3 > PATH_MAX)
        return fail (fault, FAULT_FAILED, ENAMETOOLONG, "/%.200s", d->path);
      if (slash)
        d->path[len] = '/';
      memcpy (d->path + len + slash, entry->d_name, more + 1);
      if (!gone_only)
        result = compare_one (d, upper, lower, entry->d_name, len + slash + more, depth, fault);
      else if (fstatat (upper, entry->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0 && errno == ENOENT)
        {
          tell_parent (d);
          tell (d, 'D');
        }
      d->path[len] = 0;
      if (d->told > len)
        d->told = len;
      if (result < 0)
        return -1;
    }
  return 0;
}

static int
walk (struct differ *d, int upper, int lower, size_t len, unsigned depth, struct fault *fault)
{
  bool opaque = lower >= 0 && overlay_is_opaque (upper);

  /* in an opaque directory whatever is not there any more was removed */
  if (opaque && for_each (d, lower, len, upper, lower, true, depth, fault) < 0)
    return -1;
  return for_each (d, upper, len, upper, lower, false, depth, fault);
}

int
overlay_changes (int out, int upperfd, int imagefd, struct fault *fault)
{
  struct differ d = { .out = fdopen (out, "w") };

  if (!d.out)
    return fail (fault, FAULT_FAILED, errno, "list changes");
  if (walk (&d, upperfd, imagefd, 0, 0, fault) < 0)
    return -1;
  if (fflush (d.out) != 0)
    return fail (fault, FAULT_FAILED, errno, "write the list of changes");
  return 0;
}
