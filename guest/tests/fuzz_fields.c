/* Any bytes as messages of fields, users, mounts and rows. */
#include "extract.h"
#include "fuzz.h"
#include "logfile.h"
#include "mounts.h"
#include "process.h"
#include "stats.h"
#include "user.h"

static void
target (const uint8_t *data, size_t len)
{
  static struct user user;
  static char records[LOG_RECORDS_MAX];
  struct process process;
  struct process_row row;
  struct fault fault;
  unsigned long flags = 0;
  char options[64] = "";

  if (process_open (&process, data, len, &fault) == 0)
    process_close (&process);
  char *text = malloc (len + 1);
  memcpy (text, data, len);
  text[len] = 0;
  user_find ("joe:staff", NULL, text, text, &user, &fault);
  user_find (text, NULL, "joe:x:1:2::/:/bin/sh", "staff:x:3:joe", &user, &fault);
  mounts_flags (text, &flags, options, sizeof options);
  stats_parse (text, &row);
  logfile_format (records, text, len < LOG_PIECE ? len : LOG_PIECE, false, 0);
  mounts_unescape (text);
  extract_clean_name (text);
  free (text);
}

int
main (int argc, char **argv)
{
  static const char fields[] = "arg\0sh\0env\0A=b\0cap\0CAP_CHOWN\0rlimit\0nofile 1 2\0tty\0001\0cwd\0/";
  static const char lines[] = "joe:x:1000:1000::/home/joe:/bin/sh\nstaff:x:50:joe,ann\n";
  static const char stat[] = "42 (a) b) S 7 42 42 34817 42 4194304 1 0 0 0 5 6 0 0 20 0 1 0 900 4096 33 1844";
  static const char words[] = "ro,nosuid,size=64m,\\t\\n\\\\,/a/../b";
  const struct seed seeds[]
      = { { fields, sizeof fields }, { lines, sizeof lines }, { stat, sizeof stat }, { words, sizeof words } };
  return fuzz_run (argc, argv, target, seeds, COUNT (seeds));
}
