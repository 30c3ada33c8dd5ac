#include "extract.h"

#include "tar.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

enum
{
  DIRS_MAX = 65536, /* whose times are set at the end */
};

struct dir_time
{
  char *name;
  struct timespec times[2];
};

struct extractor
{
  struct tar_reader reader;
  struct tar_entry entry;
  const struct extract_options *options;
  int dirfd;
  struct dir_time *dirs;
  size_t dir_count, dir_size;
};

bool
extract_clean_name (char *name)
{
  char *to = name, *from = name;

  while (*from)
    {
      size_t len;
      while (*from == '/')
        from++;
      len = strcspn (from, "/");
      if (len == 2 && from[0] == '.' && from[1] == '.')
        return false;
      if (len && !(len == 1 && from[0] == '.'))
        {
          if (to != name)
            *to++ = '/';
          memmove (to, from, len);
          to += len;
        }
      from += len;
    }
  *to = 0;
  return true;
}

/* rm -r, for what an entry replaces. */
static int
remove_tree (int dirfd, const char *name, unsigned depth)
{
  struct dirent *entry;
  cleanup_dir DIR *dir = NULL;

  if (unlinkat (dirfd, name, 0) == 0)
    return 0;
  if ((errno != EISDIR && errno != EPERM) || depth > 1000)
    return -1;
  int fd = openat (dirfd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (fd < 0 || !(dir = fdopendir (fd)))
    return -1;
  while ((entry = readdir (dir)))
    if (strcmp (entry->d_name, ".") != 0 && strcmp (entry->d_name, "..") != 0
        && remove_tree (fd, entry->d_name, depth + 1) < 0)
      return -1;
  return unlinkat (dirfd, name, AT_REMOVEDIR);
}

static int
make_parents (int dirfd, char *name, struct fault *fault)
{
  for (char *slash = strchr (name, '/'); slash; slash = strchr (slash + 1, '/'))
    {
      *slash = 0;
      int result = mkdirat (dirfd, name, 0755);
      *slash = '/';
      if (result < 0 && errno != EEXIST)
        return fail (fault, FAULT_FAILED, errno, "make the directory of %.200s", name);
    }
  return 0;
}

/* Make room for the entry.  1: a directory is there and stays; 2: a file that cannot go (a mount) is written over. */
static int
clear_way (struct extractor *x, struct fault *fault)
{
  struct tar_entry *entry = &x->entry;
  bool is_dir = entry->type == '5';
  struct stat st;

  if (fstatat (x->dirfd, entry->name, &st, AT_SYMLINK_NOFOLLOW) < 0)
    return errno == ENOENT ? 0 : fail (fault, FAULT_FAILED, errno, "look at %.200s", entry->name);
  if (x->options->no_overwrite_dir && S_ISDIR (st.st_mode) && !is_dir)
    return fail (fault, FAULT_CONFLICT, 0, "cannot overwrite directory \"%.200s\" with non-directory", entry->name);
  if (x->options->no_overwrite_dir && !S_ISDIR (st.st_mode) && is_dir)
    return fail (fault, FAULT_CONFLICT, 0, "cannot overwrite non-directory \"%.200s\" with directory", entry->name);
  if (S_ISDIR (st.st_mode) && is_dir)
    return 1;
  if (remove_tree (x->dirfd, entry->name, 0) == 0)
    return 0;
  if (errno == EBUSY && S_ISREG (st.st_mode) && entry->type == '0')
    return 2;
  return fail (fault, FAULT_FAILED, errno, "replace %.200s", entry->name);
}

static int
write_file (struct extractor *x, bool in_place, struct fault *fault)
{
  static uint8_t bytes[65536];
  ssize_t got;
  cleanup_close int fd
      = openat (x->dirfd, x->entry.name,
                O_WRONLY | O_CLOEXEC | O_NOFOLLOW | (in_place ? O_TRUNC : O_CREAT | O_EXCL), 0600);

  if (fd < 0)
    return fail (fault, FAULT_FAILED, errno, "make %.200s", x->entry.name);
  while ((got = tar_read (&x->reader, bytes, sizeof bytes, fault)) > 0)
    if (write_all (fd, bytes, (size_t) got) < 0)
      return fail (fault, FAULT_FAILED, errno, "write %.200s", x->entry.name);
  return got < 0 ? -1 : 0;
}

static int
make_entry (struct extractor *x, int way, struct fault *fault)
{
  struct tar_entry *entry = &x->entry;
  int result;

  switch (entry->type)
    {
    case '0':
      return write_file (x, way == 2, fault);
    case '1':
      if (!extract_clean_name (entry->link))
        return fail (fault, FAULT_INVALID, 0, "the link %.200s leads outside", entry->name);
      result = linkat (x->dirfd, entry->link, x->dirfd, entry->name, 0);
      break;
    case '2':
      result = symlinkat (entry->link, x->dirfd, entry->name);
      break;
    case '5':
      result = way == 1 ? 0 : mkdirat (x->dirfd, entry->name, 0700);
      break;
    default:
      result = mknodat (x->dirfd, entry->name,
                        (entry->type == '3'   ? S_IFCHR
                         : entry->type == '4' ? S_IFBLK
                                              : S_IFIFO)
                            | 0600,
                        makedev (entry->major, entry->minor));
    }
  return result < 0 ? fail (fault, FAULT_FAILED, errno, "make %.200s", entry->name) : 0;
}

static int
keep_dir_time (struct extractor *x, const struct timespec times[2])
{
  if (x->dir_count == DIRS_MAX)
    return -1;
  if (x->dir_count == x->dir_size)
    {
      size_t size = x->dir_size ? x->dir_size * 2 : 64;
      struct dir_time *grown = realloc (x->dirs, size * sizeof *grown);
      if (!grown)
        return -1;
      x->dirs = grown;
      x->dir_size = size;
    }
  struct dir_time *one = &x->dirs[x->dir_count];
  one->name = strdup (x->entry.name);
  memcpy (one->times, times, sizeof one->times);
  x->dir_count += one->name != NULL;
  return one->name ? 0 : -1;
}

static int
set_attributes (struct extractor *x, struct fault *fault)
{
  struct tar_entry *entry = &x->entry;
  const struct extract_options *options = x->options;
  struct timespec times[2] = { { .tv_nsec = UTIME_NOW }, { entry->mtime, entry->mtime_ns } };
  char path[64 + PATH_MAX];

  if (entry->type == '1')
    return 0; /* the first name has them */
  if (fchownat (x->dirfd, entry->name, options->own ? options->uid : entry->uid,
                options->own ? options->gid : entry->gid, AT_SYMLINK_NOFOLLOW)
      < 0)
    return fail (fault, FAULT_FAILED, errno, "give %.200s to its owner", entry->name);
  if (entry->type != '2' && fchmodat (x->dirfd, entry->name, entry->mode, 0) < 0)
    return fail (fault, FAULT_FAILED, errno, "set the mode of %.200s", entry->name);
  snprintf (path, sizeof path, "%s", entry->name); /* the working directory is dirfd */
  for (size_t i = 0; i < entry->xattr_count; i++)
    if (lsetxattr (path, entry->xattrs[i].name, entry->xattrs[i].value, entry->xattrs[i].len, 0) < 0
        && errno != ENOTSUP && errno != EPERM) /* Docker passes over these too */
      return fail (fault, FAULT_FAILED, errno, "set %.60s of %.200s", entry->xattrs[i].name, entry->name);
  if (entry->type == '5' && keep_dir_time (x, times) == 0)
    return 0;
  if (utimensat (x->dirfd, entry->name, times, AT_SYMLINK_NOFOLLOW) < 0)
    return fail (fault, FAULT_FAILED, errno, "set the time of %.200s", entry->name);
  return 0;
}

static int
extract_one (struct extractor *x, struct fault *fault)
{
  if (!extract_clean_name (x->entry.name))
    return fail (fault, FAULT_INVALID, 0, "\"%.200s\" leads outside of the directory", x->entry.name);
  if (!*x->entry.name)
    return 0; /* the directory itself */
  if (make_parents (x->dirfd, x->entry.name, fault) < 0)
    return -1;
  int way = clear_way (x, fault);
  if (way < 0 || make_entry (x, way, fault) < 0)
    return -1;
  return set_attributes (x, fault);
}

int
extract (int in, int dirfd, const struct extract_options *options, struct fault *fault)
{
  struct extractor *x = calloc (1, sizeof *x);
  int more = -1;

  if (!x)
    return fail (fault, FAULT_FAILED, errno, "memory for an archive");
  x->reader.fd = in;
  x->dirfd = dirfd;
  x->options = options;
  if (fchdir (dirfd) < 0)
    fail (fault, FAULT_FAILED, errno, "enter the directory");
  else
    while ((more = tar_next (&x->reader, &x->entry, fault)) > 0)
      if (extract_one (x, fault) < 0)
        {
          more = -1;
          break;
        }
  for (size_t i = x->dir_count; i-- > 0;)
    {
      if (more == 0 && utimensat (dirfd, x->dirs[i].name, x->dirs[i].times, 0) < 0)
        more = fail (fault, FAULT_FAILED, errno, "set the time of %.200s", x->dirs[i].name);
      free (x->dirs[i].name);
    }
  free (x->dirs);
  tar_reader_close (&x->reader);
  free (x);
  return more;
}
