/* frame: the byte stream of the control port, cut into messages.  Pure: no system calls, fuzzed. */
#pragma once

#include "util.h"

enum
{
  FRAME_HEADER = 8,
  FRAME_PAYLOAD_MAX = 65536,
  MESSAGE_MAX = 4 << 20,
  SYNC_LEN = 16,
  FRAME_MORE = 1,
};

enum message_type
{
  MSG_HELLO = 1,
  MSG_OK,
  MSG_ERROR,
  MSG_PING,
  MSG_IDENTITY,
  MSG_CONFIGURE,
  MSG_WORKLOAD,
  MSG_SECCOMP,
  MSG_START,
  MSG_SIGNAL,
  MSG_EXITED,
  MSG_ATTACH,
  MSG_EXEC,
  MSG_STDIN,
  MSG_STDIN_END,
  MSG_STDOUT,
  MSG_STDERR,
  MSG_CREDIT,
  MSG_CLOSE,
  MSG_CLOSED,
  MSG_RESIZE,
  MSG_STATS,
  MSG_PS,
  MSG_STAT,
  MSG_GET,
  MSG_PUT,
  MSG_CHANGES,
  MSG_SYNC,
  MSG_FREEZE,
  MSG_POWEROFF,
  MSG_PAUSE,
  MSG_RESET,
  MSG_RENEW,
  MSG_LIMIT,
  MSG_NETWORK,
  MSG_PREMOUNT,
};

extern const uint8_t sync_bytes[SYNC_LEN];

struct message
{
  uint8_t type;
  uint16_t stream;
  const uint8_t *data; /* valid during the call only */
  size_t len;
};

struct parser_calls
{
  void (*message) (void *arg, const struct message *message);
  void (*sync) (void *arg, const uint8_t nonce[SYNC_LEN]);
  /* The bytes make no sense; everything is skipped until the host synchronises again. */
  void (*broken) (void *arg, const char *why);
};

enum parser_state
{
  PARSER_SKIP,
  PARSER_NONCE,
  PARSER_HEADER,
  PARSER_PAYLOAD,
};

struct parser
{
  enum parser_state state;
  size_t matched; /* of sync_bytes, at the end of what was read */
  size_t have;    /* of header, payload or nonce */
  uint8_t nonce[SYNC_LEN];
  uint8_t header[FRAME_HEADER];
  uint32_t len;
  uint8_t payload[FRAME_PAYLOAD_MAX];
  uint8_t *partial; /* of a message in several frames */
  size_t partial_len;
  uint8_t partial_type;
  uint16_t partial_stream;
};

void parser_feed (struct parser *parser, const uint8_t *data, size_t len, const struct parser_calls *calls,
                  void *arg);
/* Forget everything but a sync in progress; skip until the next one. */
void parser_reset (struct parser *parser);
void frame_header (uint8_t header[FRAME_HEADER], uint32_t len, uint8_t type, uint8_t flags, uint16_t stream);
