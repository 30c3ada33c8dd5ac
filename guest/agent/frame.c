#include "frame.h"

#include <string.h>

const uint8_t sync_bytes[SYNC_LEN]
    = { 0xf1, 0x0d, 0x9a, 0x6e, 0x53, 0x79, 0x6e, 0x43, 0x2d, 0x69, 0x6e, 0x73, 0x75, 0x6c, 0x61, 0x0a };

static void
forget_partial (struct parser *parser)
{
  free (parser->partial);
  parser->partial = NULL;
  parser->partial_len = 0;
}

void
parser_reset (struct parser *parser)
{
  forget_partial (parser);
  parser->state = PARSER_SKIP;
  parser->have = 0;
}

static void
break_off (struct parser *parser, const char *why, const struct parser_calls *calls, void *arg)
{
  parser_reset (parser);
  calls->broken (arg, why);
}

/* A whole frame is in header and payload. */
static void
take_frame (struct parser *parser, const struct parser_calls *calls, void *arg)
{
  struct message message = {
    .type = parser->header[4],
    .stream = (uint16_t) (parser->header[6] | parser->header[7] << 8),
    .data = parser->payload,
    .len = parser->len,
  };
  /* bytes for a stdin need no putting together */
  bool more = (parser->header[5] & FRAME_MORE) && message.type != MSG_STDIN;
  bool continues = parser->partial && parser->partial_type == message.type && parser->partial_stream == message.stream;

  if (!more && !continues)
    {
      calls->message (arg, &message);
      return;
    }
  if (parser->partial && !continues)
    {
      break_off (parser, "two messages in pieces at the same time", calls, arg);
      return;
    }
  if (parser->partial_len + parser->len > MESSAGE_MAX)
    {
      break_off (parser, "message longer than 4 MiB", calls, arg);
      return;
    }
  uint8_t *grown = realloc (parser->partial, parser->partial_len + parser->len + 1);
  if (!grown)
    {
      break_off (parser, "out of memory for a message", calls, arg);
      return;
    }
  memcpy (grown + parser->partial_len, parser->payload, parser->len);
  parser->partial = grown;
  parser->partial_len += parser->len;
  parser->partial_type = message.type;
  parser->partial_stream = message.stream;
  if (more)
    return;
  message.data = parser->partial;
  message.len = parser->partial_len;
  /* the call may reset the parser: let go of the bytes first */
  cleanup_free uint8_t *whole = parser->partial;
  parser->partial = NULL;
  parser->partial_len = 0;
  calls->message (arg, &message);
}

static uint32_t
get_u32 (const uint8_t *at)
{
  return (uint32_t) at[0] | (uint32_t) at[1] << 8 | (uint32_t) at[2] << 16 | (uint32_t) at[3] << 24;
}

static size_t
take_some (const uint8_t *data, size_t len, uint8_t *to, size_t *have, size_t want)
{
  size_t n = want - *have < len ? want - *have : len;
  memcpy (to + *have, data, n);
  *have += n;
  return n;
}

/* Bytes that hold no complete sync. */
static void
take_bytes (struct parser *parser, const uint8_t *data, size_t len, const struct parser_calls *calls, void *arg)
{
  while (len)
    {
      size_t n = len;
      switch (parser->state)
        {
        case PARSER_SKIP:
          break;
        case PARSER_NONCE:
          n = take_some (data, len, parser->nonce, &parser->have, SYNC_LEN);
          if (parser->have == SYNC_LEN)
            {
              parser->state = PARSER_HEADER;
              parser->have = 0;
              calls->sync (arg, parser->nonce);
            }
          break;
        case PARSER_HEADER:
          n = take_some (data, len, parser->header, &parser->have, FRAME_HEADER);
          if (parser->have < FRAME_HEADER)
            break;
          parser->have = 0;
          parser->len = get_u32 (parser->header);
          if (parser->len > FRAME_PAYLOAD_MAX || (parser->header[5] & ~FRAME_MORE))
            break_off (parser, "frame longer than 65536 bytes or with unknown flags", calls, arg);
          else if (parser->len)
            parser->state = PARSER_PAYLOAD;
          else
            take_frame (parser, calls, arg);
          break;
        case PARSER_PAYLOAD:
          n = take_some (data, len, parser->payload, &parser->have, parser->len);
          if (parser->have < parser->len)
            break;
          parser->have = 0;
          parser->state = PARSER_HEADER;
          take_frame (parser, calls, arg);
          break;
        }
      data += n;
      len -= n;
    }
}

/* The sync's first byte appears in it once, so matching needs no going back. */
void
parser_feed (struct parser *parser, const uint8_t *data, size_t len, const struct parser_calls *calls, void *arg)
{
  size_t start = 0;

  for (size_t i = 0; i < len; i++)
    {
      /* The nonce is random and may hold anything. */
      if (parser->state == PARSER_NONCE && start == i)
        {
          size_t n = SYNC_LEN - parser->have < len - i ? SYNC_LEN - parser->have : len - i;
          take_bytes (parser, data + i, n, calls, arg);
          i += n - 1;
          start = i + 1;
          continue;
        }
      if (parser->matched == 0)
        { /* what cannot be its beginning is most of all that comes */
          const uint8_t *next = memchr (data + i, sync_bytes[0], len - i);
          if (!next)
            break;
          i = (size_t) (next - data);
        }
      if (data[i] == sync_bytes[parser->matched])
        parser->matched++;
      else
        parser->matched = data[i] == sync_bytes[0];
      if (parser->matched < SYNC_LEN)
        continue;
      size_t end = i + 1 - start > SYNC_LEN ? i + 1 - SYNC_LEN : start;
      take_bytes (parser, data + start, end - start, calls, arg);
      parser->matched = 0;
      parser_reset (parser);
      parser->state = PARSER_NONCE;
      start = i + 1;
    }
  take_bytes (parser, data + start, len - start, calls, arg);
}

void
frame_header (uint8_t header[FRAME_HEADER], uint32_t len, uint8_t type, uint8_t flags, uint16_t stream)
{
  header[0] = (uint8_t) len;
  header[1] = (uint8_t) (len >> 8);
  header[2] = (uint8_t) (len >> 16);
  header[3] = (uint8_t) (len >> 24);
  header[4] = type;
  header[5] = flags;
  header[6] = (uint8_t) stream;
  header[7] = (uint8_t) (stream >> 8);
}
