/* overlay: how overlayfs writes down in an upper directory what differs from the image. */
#pragma once

#include "util.h"

#include <sys/stat.h>

/* A removed file: a character device 0:0. */
bool overlay_is_whiteout (const struct stat *st);
/* A directory that hides the image's. */
bool overlay_is_opaque (int fd);
/* An empty thing that the agent itself made as a mount point (`path` without a leading slash). */
bool overlay_is_scaffold (int dirfd, const char *name, const char *path);
/* Records `kind path NUL` (`A`, `C`, `D`) of what differs between an upper directory and its image. */
int overlay_changes (int out, int upperfd, int imagefd, struct fault *fault);
