#include "util.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>

int
fail (struct fault *fault, enum fault_kind kind, int err, const char *format, ...)
{
  va_list args;
  int used;

  fault->kind = kind;
  fault->err = err;
  va_start (args, format);
  used = vsnprintf (fault->text, sizeof fault->text, format, args);
  va_end (args);
  if (err && used >= 0 && (size_t) used < sizeof fault->text)
    snprintf (fault->text + used, sizeof fault->text - (size_t) used, ": %s", strerror (err));
  return -1;
}

const char *
fault_kind_name (int kind)
{
  static const char *const names[] = {
    [FAULT_FAILED] = "failed",   [FAULT_NOT_FOUND] = "not-found", [FAULT_NOT_EXECUTABLE] = "not-executable",
    [FAULT_INVALID] = "invalid", [FAULT_BUSY] = "busy",           [FAULT_NO_SUCH_PATH] = "no-such-path",
    [FAULT_CONFLICT] = "conflict",
  };
  return kind >= 0 && (size_t) kind < COUNT (names) ? names[kind] : "failed";
}

void
say (const char *format, ...)
{
  char line[600] = "<5>insula-agent: ";
  size_t prefix = strlen (line);
  va_list args;
  int used;
  cleanup_close int fd = open ("/dev/kmsg", O_WRONLY | O_CLOEXEC | O_NOCTTY);

  va_start (args, format);
  used = vsnprintf (line + prefix, sizeof line - prefix - 1, format, args);
  va_end (args);
  if (used < 0)
    return;
  strcat (line, "\n");
  if (write (fd >= 0 ? fd : STDERR_FILENO, line, strlen (line)) < 0)
    return; /* nowhere else to say it */
}

ssize_t
read_all (int fd, void *data, size_t len)
{
  size_t have = 0;

  while (have < len)
    {
      ssize_t got = read (fd, (char *) data + have, len - have);
      if (got < 0 && errno == EINTR)
        continue;
      if (got < 0)
        return -1;
      if (got == 0)
        break;
      have += (size_t) got;
    }
  return (ssize_t) have;
}

ssize_t
read_text_at (int dirfd, const char *path, char *text, size_t size)
{
  ssize_t got;
  cleanup_close int fd = openat (dirfd, path, O_RDONLY | O_CLOEXEC | O_NOCTTY);

  if (fd < 0)
    return -1;
  got = read_all (fd, text, size - 1);
  if (got < 0)
    return -1;
  text[got] = 0;
  return got;
}

ssize_t
read_text (const char *path, char *text, size_t size)
{
  return read_text_at (AT_FDCWD, path, text, size);
}

int
write_all (int fd, const void *data, size_t len)
{
  const char *at = data;

  while (len)
    {
      ssize_t put = write (fd, at, len);
      if (put < 0 && errno == EINTR)
        continue;
      if (put < 0)
        return -1;
      at += put;
      len -= (size_t) put;
    }
  return 0;
}

int
write_text (const char *path, const char *text, int flags)
{
  cleanup_close int fd = open (path, O_WRONLY | O_CLOEXEC | O_NOCTTY | flags, 0644);

  if (fd < 0)
    return -1;
  return write_all (fd, text, strlen (text));
}

bool
parse_number (const char *text, long long low, long long high, long long *value)
{
  char *end;

  if (!(*text == '-' || (*text >= '0' && *text <= '9')))
    return false;
  errno = 0;
  *value = strtoll (text, &end, 10);
  return errno == 0 && end != text && *end == 0 && *value >= low && *value <= high;
}

long long
number_after (const char *text, const char *key)
{
  const char *at = strstr (text, key);
  return at ? strtoll (at + strlen (key), NULL, 10) : 0;
}

static int
hex_digit (char c)
{
  if (c >= '0' && c <= '9')
    return c - '0';
  if (c >= 'a' && c <= 'f')
    return c - 'a' + 10;
  return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

bool
parse_hex (const char *text, uint8_t *bytes, size_t len)
{
  if (strlen (text) != 2 * len)
    return false;
  for (size_t i = 0; i < len; i++)
    {
      int high = hex_digit (text[2 * i]), low = hex_digit (text[2 * i + 1]);
      if (high < 0 || low < 0)
        return false;
      bytes[i] = (uint8_t) (high << 4 | low);
    }
  return true;
}

int64_t
now_ms (void)
{
  struct timespec t;
  clock_gettime (CLOCK_MONOTONIC, &t);
  return (int64_t) t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

int64_t
now_ns (void)
{
  struct timespec t;
  clock_gettime (CLOCK_REALTIME, &t);
  return (int64_t) t.tv_sec * 1000000000 + t.tv_nsec;
}

int
open_in_root (int rootfd, const char *path, int flags)
{
  struct open_how how = { .flags = (uint64_t) (flags | O_CLOEXEC), .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS };
  int fd;

  do
    fd = (int) syscall (SYS_openat2, rootfd, *path ? path : ".", &how, sizeof how);
  while (fd < 0 && (errno == EINTR || errno == EAGAIN)); /* EAGAIN: a rename raced with `..` */
  return fd;
}

enum
{
  LINKS_MAX = 40, /* the kernel's own */
};

static int make_at_most (int rootfd, const char *path, bool directory, mode_t mode, int links);

/* What the link `name` in the directory `parent` leads to, which is not there: made too, as runc and crun do. */
static int
make_target (int rootfd, int dirfd, const char *parent, const char *name, bool directory, mode_t mode, int links)
{
  char target[PATH_MAX], path[2 * PATH_MAX];
  ssize_t len = readlinkat (dirfd, name, target, sizeof target - 1);

  if (len < 0 || !links)
    {
      errno = len < 0 ? EEXIST : ELOOP;
      return -1;
    }
  target[len] = 0;
  snprintf (path, sizeof path, "%s%s", *target == '/' ? "" : parent, target);
  return make_at_most (rootfd, path, directory, mode, links - 1);
}

/* Open `path`; where its last component is missing, make it through its parent. */
static int
open_or_make (int rootfd, const char *path, bool directory, mode_t mode, int links)
{
  char parent[PATH_MAX];
  const char *name = strrchr (path, '/');
  struct stat before;
  int fd = open_in_root (rootfd, path, O_PATH);

  if (fd >= 0 || errno != ENOENT)
    return fd;
  name = name ? name + 1 : path;
  snprintf (parent, sizeof parent, "%.*s", (int) (name - path), path);
  cleanup_close int dirfd = open_in_root (rootfd, *parent ? parent : "/", O_RDONLY | O_DIRECTORY);
  if (dirfd < 0 || fstat (dirfd, &before) < 0)
    return -1;
  if (directory && mkdirat (dirfd, name, mode) < 0)
    return errno == EEXIST ? make_target (rootfd, dirfd, parent, name, directory, mode, links) : -1;
  if (!directory)
    {
      cleanup_close int file = openat (dirfd, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode);
      if (file < 0)
        return errno == EEXIST ? make_target (rootfd, dirfd, parent, name, directory, mode, links) : -1;
    }
  /* our mount points should not make their directories look changed */
  futimens (dirfd, (struct timespec[2]){ before.st_atim, before.st_mtim });
  return open_in_root (rootfd, path, O_PATH);
}

static int
make_at_most (int rootfd, const char *path, bool directory, mode_t mode, int links)
{
  char part[PATH_MAX];
  size_t len = strlen (path);

  while (len > 1 && path[len - 1] == '/')
    len--;
  if (len >= sizeof part)
    {
      errno = ENAMETOOLONG;
      return -1;
    }
  for (size_t i = 1; i < len; i++)
    if (path[i] == '/' && path[i - 1] != '/')
      {
        memcpy (part, path, i);
        part[i] = 0;
        int fd = open_or_make (rootfd, part, true, 0755, links);
        if (fd < 0)
          return -1;
        close (fd);
      }
  memcpy (part, path, len);
  part[len] = 0;
  return open_or_make (rootfd, part, directory, mode, links);
}

int
make_in_root (int rootfd, const char *path, bool directory, mode_t mode)
{
  return make_at_most (rootfd, path, directory, mode, LINKS_MAX);
}
