/* util: what every subject of the agent uses: cleanup attributes, faults, small file helpers.
 *
 * Error convention: a function that can fail in a way the host must hear of takes a `struct fault *`,
 * fills it with `fail` and returns -1.  Others return 0 or a descriptor, or -1 with errno set. */
#pragma once

#include <dirent.h>
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/types.h>
#include <unistd.h>

#define cleanup_close __attribute__ ((cleanup (cleanup_closep)))
#define cleanup_free __attribute__ ((cleanup (cleanup_freep)))
#define cleanup_dir __attribute__ ((cleanup (cleanup_dirp)))
#define COUNT(a) (sizeof (a) / sizeof (*(a)))

static inline void
cleanup_closep (int *fd)
{
  int saved = errno;
  if (*fd >= 0)
    close (*fd);
  errno = saved;
}

static inline void
cleanup_freep (void *p)
{
  free (*(void **) p);
}

static inline void
cleanup_dirp (DIR **dir)
{
  if (*dir)
    closedir (*dir);
}

static inline int
steal_fd (int *fd)
{
  int value = *fd;
  *fd = -1;
  return value;
}

static inline void
close_fd (int *fd)
{
  cleanup_closep (fd);
  *fd = -1;
}

enum fault_kind
{
  FAULT_FAILED,
  FAULT_NOT_FOUND,
  FAULT_NOT_EXECUTABLE,
  FAULT_INVALID,
  FAULT_BUSY,
  FAULT_NO_SUCH_PATH,
  FAULT_CONFLICT,
};

/* Small enough to go through a pipe in one piece. */
struct fault
{
  int32_t kind;
  int32_t err;
  char text[504];
};

/* Fill `fault` (errno value `err`, 0 for none) and return -1. */
int fail (struct fault *fault, enum fault_kind kind, int err, const char *format, ...)
    __attribute__ ((format (printf, 4, 5)));
const char *fault_kind_name (int kind);

/* To the kernel's log, and so to the guest's console. */
void say (const char *format, ...) __attribute__ ((format (printf, 1, 2)));

/* Whole text of a small file, NUL-terminated, at most size-1 bytes; its length, or -1. */
ssize_t read_text (const char *path, char *text, size_t size);
ssize_t read_text_at (int dirfd, const char *path, char *text, size_t size);
/* Write to an existing file (sysfs, proc) or, with O_CREAT in `flags`, a new one. */
int write_text (const char *path, const char *text, int flags);
int write_all (int fd, const void *data, size_t len);
/* Read until `len` bytes or the end; how many, or -1. */
ssize_t read_all (int fd, void *data, size_t len);

/* A decimal number that is all of `text` and within [low, high]. */
bool parse_number (const char *text, long long low, long long high, long long *value);
/* What follows the first `key`, in what the kernel has written; 0 when it is not there. */
long long number_after (const char *text, const char *key);
bool parse_hex (const char *text, uint8_t *bytes, size_t len);

int64_t now_ms (void); /* monotonic */
int64_t now_ns (void); /* of the wall clock */

/* Open `path` with every symlink kept inside `rootfd`. */
int open_in_root (int rootfd, const char *path, int flags);
/* As open_in_root with O_PATH, after making what is missing: directories, what links lead to, and at the end a
 * directory or an empty file. */
int make_in_root (int rootfd, const char *path, bool directory, mode_t mode);
