#include "queue.h"

#include <string.h>

int
queue_open (struct queue *queue, size_t size)
{
  *queue = (struct queue){ .data = malloc (size), .size = size };
  if (!queue->data)
    queue->size = 0;
  return queue->data ? 0 : -1;
}

void
queue_close (struct queue *queue)
{
  free (queue->data);
  *queue = (struct queue){ 0 };
}

bool
queue_put (struct queue *queue, const void *data, size_t len)
{
  if (len > queue_room (queue))
    return false;
  if (len == 0)
    return true;
  size_t tail = (queue->head + queue->len) % queue->size;
  size_t first = queue->size - tail < len ? queue->size - tail : len;
  memcpy (queue->data + tail, data, first);
  memcpy (queue->data, (const uint8_t *) data + first, len - first);
  queue->len += len;
  return true;
}

const uint8_t *
queue_peek (const struct queue *queue, size_t *len)
{
  *len = queue->size - queue->head < queue->len ? queue->size - queue->head : queue->len;
  return queue->data + queue->head;
}

void
queue_drop (struct queue *queue, size_t len)
{
  queue->len -= len;
  queue->head = queue->len ? (queue->head + len) % queue->size : 0;
}

int
queue_write (struct queue *queue, int fd, size_t piece)
{
  while (queue->len)
    {
      size_t len;
      const uint8_t *data = queue_peek (queue, &len);
      ssize_t put = write (fd, data, len < piece ? len : piece);
      if (put < 0 && errno == EINTR)
        continue;
      if (put <= 0)
        return -1;
      queue_drop (queue, (size_t) put);
    }
  return 0;
}
