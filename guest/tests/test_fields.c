/* Fields, answers, processes as the host writes them, and the small parsers of mounts. */
#include "mounts.h"
#include "process.h"
#include "queue.h"
#include "stats.h"
#include "test.h"

#include <sys/mount.h>

static const struct field_rule rules[] = { { "seq", false }, { "arg", true }, { NULL, false } };

#define OPEN(text) fields_open (&fields, (const uint8_t *) text, sizeof text - 1, rules, &fault)

static void
test_fields (void)
{
  struct fields fields;
  struct fault fault;
  long long n;

  EXPECT (OPEN ("") == 0);
  EXPECT (OPEN ("seq\0007\0arg\0a\0arg\0\0") == 0);
  EXPECT_TEXT ("7", field_text (&fields, "seq"));
  EXPECT (field_count (&fields, "arg") == 2);
  EXPECT (field_text (&fields, "none") == NULL);
  EXPECT (field_number (&fields, "seq", 0, 9, 0, &n, &fault) == 0 && n == 7);
  EXPECT (field_number (&fields, "seq", 0, 6, 0, &n, &fault) < 0 && fault.kind == FAULT_INVALID);
  EXPECT (field_number (&fields, "arg", 0, 6, 0, &n, &fault) < 0);
  EXPECT (field_number (&fields, "none", 0, 6, 5, &n, &fault) == 0 && n == 5);
  EXPECT (OPEN ("seq\0007") < 0);
  EXPECT (OPEN ("seq\0") < 0);
  EXPECT (OPEN ("seq\0007\0seq\0008\0") < 0);
  EXPECT (OPEN ("what\0007\0") < 0);
  EXPECT_TEXT ("unknown field \"what\"", fault.text);
}

static void
test_answer (void)
{
  cleanup_answer struct answer answer = { 0 };
  static char big[5000];

  answer_add (&answer, "seq", "%d", 5);
  answer_add (&answer, "text", "%s", "");
  EXPECT (answer.len == 12 && memcmp (answer.data, "seq\0005\0text\0\0", 12) == 0);
  memset (big, 'x', sizeof big - 1);
  for (int i = 0; i < 100; i++)
    answer_add (&answer, "row", "%s", big);
  EXPECT (answer.truncated && answer.len <= ANSWER_MAX && answer.data[answer.len - 1] == 0);
}

static void
test_process (void)
{
  static const char text[] = "arg\0sh\0env\0A=1\0env\0PATH=/x\0arg\0-c\0cap\0CAP_CHOWN\0cap\0CAP_BPF\0rlimit\0nofile 10 -1\0"
                             "tty\0001\0rows\00024\0masked\0/proc/kcore";
  struct process process;
  struct fault fault;

  EXPECT (process_open (&process, (const uint8_t *) text, sizeof text, &fault) == 0);
  EXPECT_TEXT ("sh", process.args[0]);
  EXPECT_TEXT ("-c", process.args[1]);
  EXPECT (process.args[2] == NULL && process.env[2] == NULL && process.groups[0] == NULL);
  EXPECT_TEXT ("/x", process_env (&process, "PATH"));
  EXPECT (process_env (&process, "PAT") == NULL);
  EXPECT_TEXT ("/", process.cwd);
  EXPECT (process.caps == (1ULL | 1ULL << 39));
  EXPECT (process.limits[RLIMIT_NOFILE].rlim_cur == 10 && process.limits[RLIMIT_NOFILE].rlim_max == RLIM_INFINITY);
  EXPECT (process.tty && !process.init && process.rows == 24);
  EXPECT_TEXT ("/proc/kcore", process.masked[0]);
  process_close (&process);
  static const struct
  {
    const char *text;
    size_t len;
  } wrong[] = {
#define WRONG(text) { text, sizeof text }
    WRONG ("env\0A=1"),
    WRONG ("arg\0x\0cap\0CAP_NONE"),
    WRONG ("arg\0x\0rlimit\0nofile 1"),
    WRONG ("arg\0x\0cwd\0rel"),
    WRONG ("arg\0x\0tty\0002"),
    WRONG ("arg\0x\0masked\0rel"),
  };
  for (size_t i = 0; i < COUNT (wrong); i++)
    EXPECT (process_open (&process, (const uint8_t *) wrong[i].text, wrong[i].len, &fault) < 0
            && fault.kind == FAULT_INVALID);
}

static void
test_mount_words (void)
{
  unsigned long flags = 0;
  char data[64] = "", text[] = "a\\tb\\n\\\\n", wrong[] = "a\\x", cut[] = "a\\";

  EXPECT (mounts_flags ("nosuid,nodev,noexec", &flags, data, sizeof data));
  EXPECT (mounts_flags ("exec,ro,size=64m,mode=1777,-", &flags, data, sizeof data));
  EXPECT (flags == (MS_NOSUID | MS_NODEV | MS_RDONLY));
  EXPECT_TEXT ("size=64m,mode=1777", data);
  EXPECT (!mounts_flags ("0123456789012345678901234567890123456789012345678901234567890123", &flags, data, sizeof data));
  EXPECT (mounts_unescape (text));
  EXPECT_TEXT ("a\tb\n\\n", text);
  EXPECT (!mounts_unescape (wrong) && !mounts_unescape (cut));
}

static void
test_queue (void)
{
  struct queue queue;
  size_t len;

  EXPECT (queue_open (&queue, 8) == 0);
  EXPECT (queue_put (&queue, "abcdef", 6) && !queue_put (&queue, "xyz", 3) && queue_room (&queue) == 2);
  queue_drop (&queue, 4);
  EXPECT (queue_put (&queue, "ghijk", 5) && queue.len == 7);
  EXPECT (memcmp (queue_peek (&queue, &len), "efgh", 4) == 0 && len == 4);
  queue_drop (&queue, 4);
  EXPECT (memcmp (queue_peek (&queue, &len), "ijk", 3) == 0 && len == 3);
  queue_drop (&queue, 3);
  EXPECT (queue.head == 0 && queue.len == 0 && queue_put (&queue, "", 0));
  queue_close (&queue);
}

static void
test_stats (void)
{
  struct process_row row;

  EXPECT (stats_parse ("42 (a) b) S 7 42 42 34817 42 4194304 1 0 0 0 5 6 0 0 20 0 1 0 900 4096 33 1844 1 2 3 4 5 6 7 8 9 10 0 0 17 1 0", &row));
  EXPECT (row.pid == 42 && row.ppid == 7 && row.tty == 34817 && row.cpu_ticks == 11 && row.start_ticks == 900);
  EXPECT (row.rss_pages == 33 && row.state == 'S' && row.pgid == 42 && row.sid == 42 && row.tpgid == 42);
  EXPECT (row.flags == 4194304 && row.priority == 20 && row.nice == 0 && row.threads == 1 && row.cpu == 1);
  EXPECT (row.virtual_bytes == 4096);
  EXPECT_TEXT ("a) b", row.name);
  EXPECT (!stats_parse ("42", &row) && !stats_parse ("42 (a) S", &row));
}

int
main (void)
{
  test_fields ();
  test_answer ();
  test_process ();
  test_mount_words ();
  test_queue ();
  test_stats ();
  return failures;
}
