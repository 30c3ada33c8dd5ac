/* Any bytes into the frame parser, cut anywhere; what comes out goes on to the field and process parsers. */
#include "frame.h"
#include "fuzz.h"
#include "process.h"

static void
on_message (void *arg, const struct message *message)
{
  struct process process;
  struct fault fault;
  (void) arg;
  if (message->len > MESSAGE_MAX)
    abort ();
  if (process_open (&process, message->data, message->len, &fault) == 0)
    process_close (&process);
}

static void
on_sync (void *arg, const uint8_t nonce[SYNC_LEN])
{
  (void) arg, (void) nonce;
}

static void
on_broken (void *arg, const char *why)
{
  (void) arg, (void) why;
}

static void
target (const uint8_t *data, size_t len)
{
  static const struct parser_calls calls = { on_message, on_sync, on_broken };
  struct parser *parser = calloc (1, sizeof *parser);
  size_t at = 0;

  while (at < len)
    {
      size_t n = fuzz_below (len - at) + 1;
      parser_feed (parser, data + at, n, &calls, NULL);
      at += n;
    }
  parser_reset (parser);
  free (parser);
}

int
main (int argc, char **argv)
{
  static uint8_t seed[256];
  static const char fields[] = "arg\0sh\0env\0A=b\0cap\0CAP_CHOWN\0rlimit\0nofile 1 2\0tty\0001\0cwd\0/";
  size_t len = 0;

  memcpy (seed, sync_bytes, SYNC_LEN);
  len = 2 * SYNC_LEN;
  frame_header (seed + len, sizeof fields, MSG_WORKLOAD, 0, 0);
  memcpy (seed + len + FRAME_HEADER, fields, sizeof fields);
  len += FRAME_HEADER + sizeof fields;
  frame_header (seed + len, 4, MSG_EXEC, FRAME_MORE, 1);
  memcpy (seed + len + FRAME_HEADER, "arg", 4);
  len += FRAME_HEADER + 4;
  frame_header (seed + len, 2, MSG_EXEC, 0, 1);
  memcpy (seed + len + FRAME_HEADER, "x", 2);
  len += FRAME_HEADER + 2;
  const struct seed seeds[] = { { seed, len }, { seed, 2 * SYNC_LEN } };
  return fuzz_run (argc, argv, target, seeds, COUNT (seeds));
}
