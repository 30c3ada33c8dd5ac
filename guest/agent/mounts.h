/* mounts: what lies over the workload's root: its mount points, volumes, tmpfs and files. */
#pragma once

#include "util.h"

/* /proc, /sys and /dev exist. */
int mounts_make_points (struct fault *fault);
/* `kind TAB source TAB target TAB flags TAB options` */
int mounts_add (const char *text, struct fault *fault);
/* `target TAB text`, escaped */
int mounts_add_file (const char *text, struct fault *fault);
/* The files that were added, mount points and the machine id stay for the CONFIGURE to come, which gives the same files
 * and no mounts that might lie between. */
int mounts_keep_ahead (struct fault *fault);
bool mounts_have_ahead (void);
/* As mounts_add_file, for one that was given before: its new text. */
int mounts_renew_file (const char *text, struct fault *fault);
/* `+target TAB line` or `-target TAB line`, escaped: put a line at the end of a file, or take its first such
 * line out. */
int mounts_edit_file (const char *text, struct fault *fault);
/* Take the first line that is this one out of a text. */
void mounts_drop_line (char *text, const char *line);
/* Over the image's /etc/machine-id, if it has one. */
int mounts_add_machine_id (struct fault *fault);
/* `\\`, `\t`, `\n` → the bytes, in place; false for any other escape.  Pure. */
bool mounts_unescape (char *text);
/* Words between commas: those that are mount flags set or clear bits, the rest stays in `data`.  Pure. */
bool mounts_flags (const char *words, unsigned long *flags, char *data, size_t size);
/* The texts that were mounted over files, the identity's included. */
void mounts_forget_files (void);
