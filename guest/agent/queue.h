/* queue: a bounded ring of bytes.  Pure. */
#pragma once

#include "util.h"

struct queue
{
  uint8_t *data;
  size_t size, head, len;
};

int queue_open (struct queue *queue, size_t size);
void queue_close (struct queue *queue);
static inline size_t
queue_room (const struct queue *queue)
{
  return queue->size - queue->len;
}
/* All or nothing; false when there is no room. */
bool queue_put (struct queue *queue, const void *data, size_t len);
/* The longest run at the head without a wrap. */
const uint8_t *queue_peek (const struct queue *queue, size_t *len);
void queue_drop (struct queue *queue, size_t len);
static inline void
queue_clear (struct queue *queue)
{
  queue->head = queue->len = 0;
}
/* Write as much of the head as `fd` takes, at most `piece` at a time.  0, or -1 with errno (EAGAIN too). */
int queue_write (struct queue *queue, int fd, size_t piece);
