/* root: the workload's root: an overlay of the image's erofs disk and an ext4 upper disk. */
#pragma once

#include "util.h"

/* What lies below every image: empty mount points, so that none has to be made on its upper disk.  Once. */
int root_make_scaffold (struct fault *fault);
/* Of a guest that is to be a template: mount its empty upper disk, read-only, so that nothing is written. */
int root_premount_upper (const char *upper_serial, struct fault *fault);
/* Of a clone that is to be an image's template: the whole root, on an upper disk that is still empty. */
int root_premount (const char *image_serial, const char *upper_serial, struct fault *fault);
/* What was written to the upper disk is on it. */
int root_sync (struct fault *fault);
/* A NULL upper serial: what is written stays in memory.  `fresh`: the upper disk is, byte for byte, what it was when
 * the last of the above had returned; if none was called, it means nothing. */
int root_mount (const char *image_serial, const char *upper_serial, bool fresh, struct fault *fault);
/* Everything below DIR_ROOT too; idempotent. */
void root_unmount (void);
int root_freeze (bool on, struct fault *fault);
