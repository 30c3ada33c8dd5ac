#include "streams.h"

#include "channel.h"

#include <string.h>

enum
{
  GRANT_AT = 65536,
};

static struct stream streams[STREAMS_MAX];

struct stream *
stream_find (uint16_t id)
{
  for (size_t i = 0; id && i < STREAMS_MAX; i++)
    if (streams[i].id == id)
      return &streams[i];
  return NULL;
}

struct stream *
stream_any (void)
{
  for (size_t i = 0; i < STREAMS_MAX; i++)
    if (streams[i].id)
      return &streams[i];
  return NULL;
}

struct stream *
stream_open (uint16_t id, struct job *job, struct fault *fault)
{
  if (id == 0 || stream_find (id))
    {
      fail (fault, FAULT_INVALID, 0, "stream %u is in use", id);
      return NULL;
    }
  for (size_t i = 0; i < STREAMS_MAX; i++)
    if (!streams[i].id)
      {
        streams[i] = (struct stream){ .id = id, .job = job, .credit = STREAM_CREDIT, .feeds = true };
        return &streams[i];
      }
  fail (fault, FAULT_BUSY, 0, "more than %d streams", STREAMS_MAX);
  return NULL;
}

void
stream_drop (struct stream *stream)
{
  queue_close (&stream->in);
  *stream = (struct stream){ 0 };
}

void
stream_end (struct stream *stream)
{
  channel_send (MSG_CLOSED, stream->id, NULL, 0);
  stream_drop (stream);
}

struct stream *
stream_next (const struct job *job, struct stream *last)
{
  for (struct stream *one = last ? last + 1 : streams; one < streams + STREAMS_MAX; one++)
    if (one->id && one->job == job)
      return one;
  return NULL;
}

uint64_t
stream_credit (const struct job *job)
{
  uint64_t least = UINT64_MAX;

  for (struct stream *one = NULL; (one = stream_next (job, one));)
    if (one->credit < least)
      least = one->credit;
  return least;
}

void
stream_output (const struct job *job, uint8_t type, const void *data, size_t len)
{
  for (struct stream *one = NULL; (one = stream_next (job, one));)
    {
      one->credit -= len;
      channel_send (type, one->id, data, len);
    }
}

static void
grant (struct stream *stream)
{
  uint32_t n = (uint32_t) stream->consumed;
  uint8_t bytes[4] = { (uint8_t) n, (uint8_t) (n >> 8), (uint8_t) (n >> 16), (uint8_t) (n >> 24) };

  stream->consumed = 0;
  channel_send (MSG_CREDIT, stream->id, bytes, sizeof bytes);
}

bool
stream_input (struct stream *stream, const void *data, size_t len)
{
  if (stream->in_end)
    return true; /* after its own end: nobody reads it */
  if (!stream->in.data && queue_open (&stream->in, STREAM_CREDIT) < 0)
    return false;
  if (stream->consumed + stream->in.len + len > STREAM_CREDIT)
    return false;
  return queue_put (&stream->in, data, len);
}

bool
stream_feed (struct stream *stream, int fd)
{
  size_t before = stream->in.len;
  bool alive = true;

  if (fd < 0)
    queue_clear (&stream->in);
  else if (queue_write (&stream->in, fd, STREAM_CREDIT) < 0 && errno != EAGAIN)
    {
      queue_clear (&stream->in);
      alive = false;
    }
  stream->consumed += before - stream->in.len;
  if (stream->consumed >= GRANT_AT)
    grant (stream);
  return alive;
}
