/* streams: the host's numbered streams, their credit both ways, and what goes into a job's stdin. */
#pragma once

#include "queue.h"

struct job;

enum
{
  STREAMS_MAX = 256,
  STREAM_CREDIT = 262144,
};

struct stream
{
  uint16_t id; /* 0: free */
  struct job *job;
  bool attached;   /* one of several on the main process */
  bool feeds;      /* its end may be the end of stdin */
  bool in_end;
  uint64_t credit; /* bytes that we may send */
  size_t consumed; /* bytes taken and not yet granted anew */
  struct queue in;
};

struct stream *stream_find (uint16_t id);
/* NULL with a fault: the number is in use, or there are too many. */
struct stream *stream_open (uint16_t id, struct job *job, struct fault *fault);
/* Tell the host and forget. */
void stream_end (struct stream *stream);
/* Forget without a word: the connection is gone. */
void stream_drop (struct stream *stream);
/* Any stream, for as long as there is one; NULL then. */
struct stream *stream_any (void);
/* The next stream of a job after `last` (NULL to begin). */
struct stream *stream_next (const struct job *job, struct stream *last);
/* The least that all streams of a job may get now. */
uint64_t stream_credit (const struct job *job);
void stream_output (const struct job *job, uint8_t type, const void *data, size_t len);
/* Bytes of stdin have come; false when the host sent more than it may. */
bool stream_input (struct stream *stream, const void *data, size_t len);
/* Move what is queued into `fd` (-1: throw it away).  False when the reader has gone. */
bool stream_feed (struct stream *stream, int fd);
