#include "channel.h"

#include "loop.h"
#include "ports.h"

#include <stdio.h>
#include <string.h>

enum
{
  OUTPUT_MAX = 256 << 10, /* of the port's queue: beyond it neither output nor requests are taken */
  OPENING_MS = 5000,      /* for the driver to learn that a host is there which was heard already */
};

static struct parser parser;
static bool connected;
static bool confirmed;     /* by the driver: somebody is there, since the last synchronising */
static int64_t opening_ms; /* until then the driver may not know yet */

static void
take_message (void *arg, const struct message *message)
{
  (void) arg;
  on_message (message);
}

static void
cut (void)
{
  if (!connected)
    return;
  connected = false;
  queue_clear (&ports[PORT_CONTROL].out);
  on_cut ();
}

static void
take_sync (void *arg, const uint8_t nonce[SYNC_LEN])
{
  (void) arg;
  cut ();
  connected = true;
  confirmed = false;
  opening_ms = now_ms () + OPENING_MS;
  queue_put (&ports[PORT_CONTROL].out, sync_bytes, SYNC_LEN);
  queue_put (&ports[PORT_CONTROL].out, nonce, SYNC_LEN);
  on_synchronised ();
}

static void
take_nonsense (void *arg, const char *why)
{
  struct fault fault;

  (void) arg;
  fail (&fault, FAULT_INVALID, 0, "protocol violation: %s", why);
  say ("%s", fault.text);
  channel_error (0, -1, &fault);
}

static const struct parser_calls calls = { take_message, take_sync, take_nonsense };

/* The driver gets the bytes of a host by one queue and the news that it has connected by another, so a host
 * may be heard first.  Until the news is in, a read says that nobody is there, and a write would block. */
static bool
opening (void)
{
  return connected && !confirmed && now_ms () < opening_ms;
}

void
channel_run (void)
{
  struct port *port = &ports[PORT_CONTROL];
  static uint8_t bytes[65536];

  port_flush (port);
  if (opening ())
    loop_wake_at (opening_ms);
  else if (connected && !confirmed)
    port->readable = true; /* look again: if the news never came, that host has gone */
  if (port->fd < 0 || !port->readable || port->out.len > OUTPUT_MAX)
    return;
  size_t have = 0;
  ssize_t got;
  /* the driver gives one page at a time */
  while ((got = read (port->fd, bytes + have, sizeof bytes - have)) > 0 && (have += (size_t) got) < sizeof bytes)
    ;
  if (have)
    parser_feed (&parser, bytes, have, &calls, NULL);
  if (got == 0 || (got < 0 && errno != EINTR))
    {
      port->readable = false;
      if (got < 0)
        confirmed = true;
      else if (!opening ()) /* no host there */
        {
          parser_reset (&parser);
          cut ();
        }
    }
  port_flush (port);
  if (port->readable && port->out.len <= OUTPUT_MAX)
    loop_wake_at (0);
}

bool
channel_connected (void)
{
  return connected;
}

bool
channel_flushed (void)
{
  return ports[PORT_CONTROL].out.len == 0;
}

size_t
channel_room (void)
{
  size_t used = ports[PORT_CONTROL].out.len;
  return used < OUTPUT_MAX ? OUTPUT_MAX - used : 0;
}

void
channel_send (uint8_t type, uint16_t stream, const void *data, size_t len)
{
  uint8_t header[FRAME_HEADER];
  const uint8_t *at = data;
  struct queue *out = &ports[PORT_CONTROL].out;

  if (!connected)
    return;
  if (queue_room (out) < len + (len / FRAME_PAYLOAD_MAX + 1) * FRAME_HEADER)
    {
      /* a host that asks and does not listen: start over */
      say ("the host does not read its answers");
      parser_reset (&parser);
      cut ();
      return;
    }
  do
    {
      size_t piece = len < FRAME_PAYLOAD_MAX ? len : FRAME_PAYLOAD_MAX;
      frame_header (header, (uint32_t) piece, type, len > piece ? FRAME_MORE : 0, stream);
      queue_put (out, header, sizeof header);
      if (piece)
        queue_put (out, at, piece);
      at += piece;
      len -= piece;
    }
  while (len);
}

void
channel_ok (uint16_t stream, long long seq, struct answer *answer)
{
  cleanup_answer struct answer own = { 0 };

  if (!answer)
    answer = &own;
  if (seq >= 0)
    answer_add (answer, "seq", "%lld", seq);
  channel_send (MSG_OK, stream, answer->data, answer->len);
}

void
channel_error (uint16_t stream, long long seq, const struct fault *fault)
{
  cleanup_answer struct answer answer = { 0 };

  if (seq >= 0)
    answer_add (&answer, "seq", "%lld", seq);
  answer_add (&answer, "kind", "%s", fault_kind_name (fault->kind));
  answer_add (&answer, "errno", "%d", fault->err);
  answer_add (&answer, "text", "%.500s", fault->text);
  channel_send (MSG_ERROR, stream, answer.data, answer.len);
}
