/* archive: a tree of files as a tar, on a descriptor. */
#pragma once

#include "util.h"

struct archive_options
{
  bool layer; /* an overlay's upper directory: whiteouts become `.wh.` files */
};

/* What is at `path` below `rootfd` (NULL: the directory `rootfd` itself), named `name` in the archive. */
int archive_write (int out, int rootfd, const char *path, const char *name, const struct archive_options *options,
                   struct fault *fault);
