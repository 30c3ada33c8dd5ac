/* extract: a tar unpacked into a directory, with Docker's rules for what is there already. */
#pragma once

#include "util.h"

struct extract_options
{
  bool no_overwrite_dir; /* refuse a directory for a file, and the reverse */
  bool own;              /* everything gets this owner */
  uid_t uid;
  gid_t gid;
};

/* The process must be confined already (chroot): symlinks that are there are followed, as Docker does. */
int extract (int in, int dirfd, const struct extract_options *options, struct fault *fault);
/* Clean a member's name in place: no leading slashes, no `.`; false when it has a `..`.  Pure. */
bool extract_clean_name (char *name);
