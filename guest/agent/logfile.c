#include "logfile.h"

#include "ports.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

size_t
logfile_format (char *to, const char *data, size_t len, bool is_stderr, int64_t time_ns)
{
  char prefix[LOG_PREFIX + 24];
  time_t seconds = (time_t) (time_ns / 1000000000);
  struct tm tm;
  size_t out = 0;

  gmtime_r (&seconds, &tm);
  size_t used = strftime (prefix, sizeof prefix, "%Y-%m-%dT%H:%M:%S", &tm);
  snprintf (prefix + used, sizeof prefix - used, ".%09ldZ %s F ", (long) (time_ns % 1000000000),
            is_stderr ? "stderr" : "stdout");
  while (len)
    {
      const char *newline = memchr (data, '\n', len);
      size_t line = newline ? (size_t) (newline - data) : len;
      prefix[LOG_PREFIX - 2] = newline ? 'F' : 'P';
      memcpy (to + out, prefix, LOG_PREFIX);
      memcpy (to + out + LOG_PREFIX, data, line);
      out += LOG_PREFIX + line;
      to[out++] = '\n';
      line += newline != NULL;
      data += line;
      len -= line;
    }
  return out;
}

bool
logfile_ready (void)
{
  return ports[PORT_LOG].fd < 0 || queue_room (&ports[PORT_LOG].out) >= LOG_RECORDS_MAX;
}

void
logfile_write (const char *data, size_t len, bool is_stderr)
{
  static char records[LOG_RECORDS_MAX];

  if (ports[PORT_LOG].fd < 0)
    return;
  queue_put (&ports[PORT_LOG].out, records, logfile_format (records, data, len, is_stderr, now_ns ()));
}

void
logfile_run (void)
{
  port_flush (&ports[PORT_LOG]);
}

bool
logfile_flushed (void)
{
  return ports[PORT_LOG].fd < 0 || ports[PORT_LOG].out.len == 0;
}
