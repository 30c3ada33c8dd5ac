/* requests: what is done for each message that is answered, as a table. */
#pragma once

#include "fields.h"
#include "frame.h"

/* The answer's fields go into `answer`; 1: the answer comes later, or is none. */
typedef int handle_fn (const struct message *message, const struct fields *fields, long long seq,
                       struct answer *answer, struct fault *fault);

enum
{
  ON_CONNECTION = 1, /* stream 0 */
  ON_NEW_STREAM = 2, /* a fault ends the stream */
  ON_STREAM = 4,
};

struct request
{
  handle_fn *handle;
  const struct field_rule *rules; /* NULL: the handler takes the payload apart */
  int where;
};

/* NULL: this message is no request. */
const struct request *request_of (uint8_t type);
