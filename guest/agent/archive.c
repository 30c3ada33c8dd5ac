#include "archive.h"

#include "overlay.h"
#include "tar.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

enum
{
  LINKS_MAX = 1 << 20,
  LINKS_BYTES_MAX = 32 << 20,
  XATTR_BYTES = 65536,
  DEPTH_MAX = 1000,
};

struct link_name
{
  dev_t dev;
  ino_t ino;
  char *name;
};

struct writer
{
  int out;
  const struct archive_options *options;
  struct link_name *links;
  size_t link_count, link_size, link_bytes;
  uint8_t *xattrs; /* XATTR_BYTES */
  struct tar_entry entry;
};

/* The name under which an inode with several went in before; else NULL, and this one is remembered.  Beyond
 * the limits a hard link becomes a second file. */
static const char *
find_link (struct writer *w, const struct stat *st, const char *name)
{
  size_t len = strlen (name) + 1;

  if (w->link_count * 2 >= w->link_size && w->link_size < LINKS_MAX)
    {
      size_t size = w->link_size ? w->link_size * 2 : 1024;
      struct link_name *table = calloc (size, sizeof *table);
      if (!table)
        return NULL;
      for (size_t i = 0; i < w->link_size; i++)
        if (w->links[i].name)
          {
            size_t at = (w->links[i].ino ^ w->links[i].dev) % size;
            while (table[at].name)
              at = (at + 1) % size;
            table[at] = w->links[i];
          }
      free (w->links);
      w->links = table;
      w->link_size = size;
    }
  size_t at = (st->st_ino ^ st->st_dev) % w->link_size;
  for (; w->links[at].name; at = (at + 1) % w->link_size)
    if (w->links[at].ino == st->st_ino && w->links[at].dev == st->st_dev)
      return w->links[at].name;
  if (w->link_count * 2 >= w->link_size || w->link_bytes + len > LINKS_BYTES_MAX)
    return NULL;
  w->links[at] = (struct link_name){ st->st_dev, st->st_ino, strdup (name) };
  w->link_count += w->links[at].name != NULL;
  w->link_bytes += len;
  return NULL;
}

static bool
is_kept (const char *name)
{
  return strncmp (name, "user.", 5) == 0 || strcmp (name, "security.capability") == 0;
}

static void
collect_xattrs (struct writer *w, int fd)
{
  char list[4096];
  struct tar_entry *entry = &w->entry;
  size_t used = 0;
  ssize_t len = flistxattr (fd, list, sizeof list);

  for (char *key = list; len > 0 && key < list + len; key += strlen (key) + 1)
    {
      if (!is_kept (key) || entry->xattr_count == TAR_XATTRS_MAX)
        continue;
      ssize_t got = fgetxattr (fd, key, w->xattrs + used, XATTR_BYTES - used);
      if (got < 0)
        continue; /* gone meanwhile */
      /* the name is kept beside its value */
      size_t key_len = strlen (key) + 1;
      if (used + (size_t) got + key_len > XATTR_BYTES)
        return;
      memcpy (w->xattrs + used + got, key, key_len);
      entry->xattrs[entry->xattr_count++]
          = (struct tar_xattr){ (char *) w->xattrs + used + got, w->xattrs + used, (size_t) got };
      used += (size_t) got + key_len;
    }
}

static int
copy_bytes (struct writer *w, int fd, uint64_t size, struct fault *fault)
{
  static uint8_t bytes[65536];
  uint64_t left = size;

  while (left)
    {
      size_t want = left < sizeof bytes ? (size_t) left : sizeof bytes;
      ssize_t got = read (fd, bytes, want);
      if (got < 0 && errno == EINTR)
        continue;
      if (got < 0)
        return fail (fault, FAULT_FAILED, errno, "read %.200s", w->entry.name);
      if (got == 0) /* it shrank meanwhile: the size is promised */
        memset (bytes, 0, (size_t) (got = (ssize_t) want));
      if (write_all (w->out, bytes, (size_t) got) < 0)
        return fail (fault, FAULT_FAILED, errno, "write the archive");
      left -= (uint64_t) got;
    }
  return tar_pad (w->out, size, fault);
}

static char
type_of (mode_t mode)
{
  switch (mode & S_IFMT)
    {
    case S_IFREG:
      return '0';
    case S_IFLNK:
      return '2';
    case S_IFCHR:
      return '3';
    case S_IFBLK:
      return '4';
    case S_IFDIR:
      return '5';
    case S_IFIFO:
      return '6';
    }
  return 0; /* a socket has no place in an archive */
}

static int write_dir (struct writer *w, int fd, char *path, size_t len, unsigned depth, struct fault *fault);

/* `.wh.name` for a whiteout. */
static int
write_whiteout (struct writer *w, const char *path, const char *name, struct fault *fault)
{
  struct tar_entry *entry = &w->entry;
  const char *last = strrchr (path, '/');
  int used = snprintf (entry->name, PATH_MAX, "%.*s.wh.%s", last ? (int) (last + 1 - path) : 0, path, name);

  if (used >= PATH_MAX)
    return fail (fault, FAULT_FAILED, ENAMETOOLONG, "%.200s", path);
  entry->type = '0';
  entry->link[0] = 0;
  entry->size = 0;
  entry->mode = 0600;
  entry->uid = entry->gid = 0;
  entry->xattr_count = 0;
  return tar_write_header (w->out, entry, fault);
}

static void
fill_entry (struct tar_entry *entry, const struct stat *st, const char *path, bool layer)
{
  entry->type = type_of (st->st_mode);
  entry->mode = layer ? st->st_mode & 07777 : st->st_mode; /* as the host's own archives */
  entry->uid = st->st_uid;
  entry->gid = st->st_gid;
  entry->mtime = st->st_mtime;
  entry->major = major (st->st_rdev);
  entry->minor = minor (st->st_rdev);
  entry->size = entry->type == '0' ? (uint64_t) st->st_size : 0;
  entry->link[0] = 0;
  bool slash = entry->type == '5' && strcmp (path, "/") != 0;
  snprintf (entry->name, PATH_MAX, "%s%s", path, slash ? "/" : "");
}

/* One thing: `name` in `dirfd`, `path` (a buffer of PATH_MAX, `len` used) in the archive. */
static int
write_one (struct writer *w, int dirfd, const char *name, char *path, size_t len, unsigned depth, struct fault *fault)
{
  struct tar_entry *entry = &w->entry;
  struct stat st;
  cleanup_close int fd = -1;

  if (fstatat (dirfd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
    return errno == ENOENT ? 0 : fail (fault, FAULT_FAILED, errno, "read %.200s", path);
  if (w->options->layer && overlay_is_whiteout (&st))
    return write_whiteout (w, path, name, fault);
  if (!type_of (st.st_mode))
    return 0;
  fill_entry (entry, &st, path, w->options->layer);
  if (entry->type == '2')
    {
      ssize_t got = readlinkat (dirfd, name, entry->link, PATH_MAX - 1);
      if (got < 0)
        return fail (fault, FAULT_FAILED, errno, "read link %.200s", path);
      entry->link[got] = 0;
    }
  if (entry->type != '5' && st.st_nlink > 1)
    {
      const char *first = find_link (w, &st, path);
      if (first)
        {
          entry->type = '1';
          entry->size = 0;
          entry->xattr_count = 0;
          snprintf (entry->link, PATH_MAX, "%s", first);
          return tar_write_header (w->out, entry, fault);
        }
    }
  entry->xattr_count = 0;
  if (entry->type == '0' || entry->type == '5')
    {
      fd = openat (dirfd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC
                                    | (entry->type == '5' ? O_DIRECTORY : 0));
      if (fd < 0)
        return errno == ENOENT ? 0 : fail (fault, FAULT_FAILED, errno, "open %.200s", path);
      collect_xattrs (w, fd);
    }
  if (tar_write_header (w->out, entry, fault) < 0)
    return -1;
  if (entry->type == '0')
    return copy_bytes (w, fd, entry->size, fault);
  return entry->type == '5' ? write_dir (w, fd, path, len, depth, fault) : 0;
}

static int
write_dir (struct writer *w, int fd, char *path, size_t len, unsigned depth, struct fault *fault)
{
  struct dirent *dirent;
  int own = fcntl (fd, F_DUPFD_CLOEXEC, 3);
  cleanup_dir DIR *dir = own < 0 ? NULL : fdopendir (own);

  if (!dir || depth > DEPTH_MAX)
    return fail (fault, FAULT_FAILED, dir ? ELOOP : errno, "list %.200s", path);
  if (w->options->layer && overlay_is_opaque (fd))
    {
      char marker[PATH_MAX + 8];
      snprintf (marker, sizeof marker, "%s/x", path);
      if (write_whiteout (w, marker, ".wh..opq", fault) < 0)
        return -1;
    }
  while ((dirent = readdir (dir)))
    {
      const char *name = dirent->d_name;
      size_t more = strlen (name);
      if (strcmp (name, ".") == 0 || strcmp (name, "..") == 0)
        continue;
      if (len + more + 3 > PATH_MAX)
        return fail (fault, FAULT_FAILED, ENAMETOOLONG, "%.200s", path);
      size_t slash = len && path[len - 1] != '/';
      if (slash)
        path[len] = '/';
      memcpy (path + len + slash, name, more + 1);
      int result = w->options->layer && overlay_is_scaffold (fd, name, path) ? 0
                   : write_one (w, fd, name, path, len + slash + more, depth + 1, fault);
      path[len] = 0;
      if (result < 0)
        return -1;
    }
  return 0;
}

static void
close_writer (struct writer *w)
{
  for (size_t i = 0; i < w->link_size; i++)
    free (w->links[i].name);
  free (w->links);
  free (w->xattrs);
  free (w);
}

int
archive_write (int out, int rootfd, const char *path, const char *name, const struct archive_options *options,
               struct fault *fault)
{
  char buffer[PATH_MAX];
  struct writer *w = calloc (1, sizeof *w);
  int result;

  if (!w)
    return fail (fault, FAULT_FAILED, errno, "memory for an archive");
  w->out = out;
  w->options = options;
  w->xattrs = malloc (XATTR_BYTES);
  snprintf (buffer, sizeof buffer, "%s", name);
  if (!w->xattrs)
    result = fail (fault, FAULT_FAILED, errno, "memory for an archive");
  else if (path)
    result = write_one (w, rootfd, path, buffer, strlen (buffer), 0, fault);
  else
    result = write_dir (w, rootfd, buffer, strlen (buffer), 0, fault);
  close_writer (w);
  return result < 0 ? -1 : tar_write_end (out, fault);
}
