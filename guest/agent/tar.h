/* tar: archives as streams of entries: POSIX ustar with PAX records written, those and GNU's long names read.
 * tar_next knows nothing of files: it is fuzzed. */
#pragma once

#include "util.h"

#include <limits.h>

enum
{
  TAR_BLOCK = 512,
  TAR_PAX_MAX = 256 << 10, /* of one extended header */
  TAR_XATTRS_MAX = 32,
};

struct tar_xattr
{
  const char *name;
  const uint8_t *value;
  size_t len;
};

struct tar_entry
{
  char type; /* '0' file, '1' hard link, '2' symlink, '3' char, '4' block, '5' directory, '6' fifo */
  char name[PATH_MAX];
  char link[PATH_MAX];
  mode_t mode;
  uid_t uid;
  gid_t gid;
  uint64_t size;
  int64_t mtime;
  long mtime_ns;
  unsigned major, minor;
  struct tar_xattr xattrs[TAR_XATTRS_MAX];
  size_t xattr_count;
};

struct tar_reader
{
  int fd;
  uint64_t left;  /* of the entry's bytes */
  size_t padding; /* after them */
  uint8_t *pax;   /* records of the next entry; xattr values point here */
};

/* 1: an entry; 0: the end; -1: a fault. */
int tar_next (struct tar_reader *reader, struct tar_entry *entry, struct fault *fault);
/* Up to `len` bytes of the current entry; 0 at its end. */
ssize_t tar_read (struct tar_reader *reader, void *data, size_t len, struct fault *fault);
void tar_reader_close (struct tar_reader *reader);

/* The entry's headers.  The caller then writes `size` bytes and calls tar_pad. */
int tar_write_header (int fd, const struct tar_entry *entry, struct fault *fault);
int tar_pad (int fd, uint64_t size, struct fault *fault);
int tar_write_end (int fd, struct fault *fault);
