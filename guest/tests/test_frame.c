/* The frame parser: messages, pieces, synchronising, nonsense; whole and byte by byte. */
#include "frame.h"
#include "test.h"

struct seen
{
  char text[4096];
  size_t longest;
};

static void
on_message (void *arg, const struct message *message)
{
  struct seen *seen = arg;
  size_t used = strlen (seen->text);
  if (message->len > seen->longest)
    seen->longest = message->len;
  snprintf (seen->text + used, sizeof seen->text - used, "%u/%u:%.*s;", message->type, message->stream,
            message->len > 40 ? 3 : (int) message->len, (const char *) message->data);
}

static void
on_sync (void *arg, const uint8_t nonce[SYNC_LEN])
{
  struct seen *seen = arg;
  size_t used = strlen (seen->text);
  snprintf (seen->text + used, sizeof seen->text - used, "sync %.*s;", SYNC_LEN, (const char *) nonce);
}

static bool broken_is_fine;

static void
on_broken (void *arg, const char *why)
{
  struct seen *seen = arg;
  (void) why;
  if (!broken_is_fine)
    strcat (seen->text, "broken;");
}

static const struct parser_calls calls = { on_message, on_sync, on_broken };

struct bytes
{
  uint8_t data[1 << 20];
  size_t len;
};
static struct bytes in;

static void
add (const void *data, size_t len)
{
  memcpy (in.data + in.len, data, len);
  in.len += len;
}

static void
add_frame (uint8_t type, uint8_t flags, uint16_t stream, const char *payload)
{
  uint8_t header[FRAME_HEADER];
  frame_header (header, (uint32_t) strlen (payload), type, flags, stream);
  add (header, sizeof header);
  add (payload, strlen (payload));
}

static void
add_sync (void)
{
  add (sync_bytes, SYNC_LEN);
  add ("0123456789abcdef", SYNC_LEN);
}

/* Every way of cutting the input must give the same. */
static void
expect_all (const char *expected)
{
  static const size_t steps[] = { 1, 2, 3, 7, 15, 16, 17, 33, 1 << 20 };
  for (size_t i = 0; i < COUNT (steps); i++)
    {
      struct parser *parser = calloc (1, sizeof *parser);
      struct seen seen = { 0 };
      for (size_t at = 0; at < in.len; at += steps[i])
        parser_feed (parser, in.data + at, in.len - at < steps[i] ? in.len - at : steps[i], &calls, &seen);
      EXPECT_TEXT (expected, seen.text);
      parser_reset (parser);
      free (parser);
    }
  in.len = 0;
}

int
main (void)
{
  /* nothing is understood before the first sync */
  add_frame (4, 0, 0, "a");
  expect_all ("");

  add_sync ();
  add_frame (4, 0, 0, "a");
  add_frame (15, 0, 65535, "");
  expect_all ("sync 0123456789abcdef;4/0:a;15/65535:;");

  /* a message in pieces, another one between them, and stdin which is never put together */
  add_sync ();
  add_frame (6, FRAME_MORE, 0, "one ");
  add_frame (4, 0, 0, "ping");
  add_frame (6, FRAME_MORE, 0, "two ");
  add_frame (14, FRAME_MORE, 3, "raw");
  add_frame (6, 0, 0, "three");
  expect_all ("sync 0123456789abcdef;4/0:ping;14/3:raw;6/0:one two three;");

  /* two of them at a time are too many; after that only a sync helps */
  add_sync ();
  add_frame (6, FRAME_MORE, 0, "one ");
  add_frame (13, FRAME_MORE, 1, "two ");
  add_frame (4, 0, 0, "lost");
  add_sync ();
  add_frame (4, 0, 0, "b");
  expect_all ("sync 0123456789abcdef;broken;sync 0123456789abcdef;4/0:b;");

  /* cut in the middle of a payload, and of a header; the beginning of a sync may complete a header, to no effect */
  broken_is_fine = true;
  add_sync ();
  add_frame (6, 0, 0, "0123456789012345678901234567890123456789");
  in.len -= 25;
  add_sync ();
  add_frame (4, 0, 0, "c");
  in.len -= 4;
  add_sync ();
  add_frame (4, 0, 0, "d");
  expect_all ("sync 0123456789abcdef;sync 0123456789abcdef;sync 0123456789abcdef;4/0:d;");

  /* a sync that begins like one: f1 0d f1 0d 9a … */
  add_sync ();
  add ("\xf1\x0d\x9a", 3);
  add_sync ();
  expect_all ("sync 0123456789abcdef;sync 0123456789abcdef;");
  broken_is_fine = false;

  /* too long, unknown flags */
  add_sync ();
  add ("\x01\x00\x01\x00\x04\x00\x00\x00", 8);
  add_frame (4, 0, 0, "lost");
  expect_all ("sync 0123456789abcdef;broken;");
  add_sync ();
  add ("\x01\x00\x00\x00\x04\x02\x00\x00", 8);
  expect_all ("sync 0123456789abcdef;broken;");

  /* 4 MiB is the most */
  struct parser *parser = calloc (1, sizeof *parser);
  struct seen seen = { 0 };
  uint8_t header[FRAME_HEADER];
  static uint8_t full[FRAME_PAYLOAD_MAX];
  add_sync ();
  parser_feed (parser, in.data, in.len, &calls, &seen);
  frame_header (header, FRAME_PAYLOAD_MAX, 6, FRAME_MORE, 0);
  for (int i = 0; i < MESSAGE_MAX / FRAME_PAYLOAD_MAX; i++)
    {
      parser_feed (parser, header, sizeof header, &calls, &seen);
      parser_feed (parser, full, sizeof full, &calls, &seen);
    }
  EXPECT (strstr (seen.text, "broken") == NULL);
  frame_header (header, 1, 6, 0, 0);
  parser_feed (parser, header, sizeof header, &calls, &seen);
  parser_feed (parser, full, 1, &calls, &seen);
  EXPECT (strstr (seen.text, "broken") != NULL);
  parser_reset (parser);
  free (parser);
  return failures;
}
