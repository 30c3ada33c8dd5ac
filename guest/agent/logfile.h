/* logfile: finished records of the main process's output, in the CRI format, to the log port. */
#pragma once

#include "util.h"

enum
{
  LOG_PIECE = 8192 /* the longest piece that logfile_write takes, as in conmon */
};

/* Make `len` bytes of output into records at `to` (room for LOG_RECORDS_MAX bytes); the length.  Pure. */
enum
{
  LOG_PREFIX = 40,
  LOG_RECORDS_MAX = LOG_PIECE * (LOG_PREFIX + 2)
};
size_t logfile_format (char *to, const char *data, size_t len, bool is_stderr, int64_t time_ns);

/* There is room for a piece (always, where nothing is logged). */
bool logfile_ready (void);
void logfile_write (const char *data, size_t len, bool is_stderr);
void logfile_run (void);
bool logfile_flushed (void);
