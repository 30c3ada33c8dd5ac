/* channel: messages over the control port. */
#pragma once

#include "fields.h"
#include "frame.h"

#include <stdarg.h>

/* Called for what comes in; the dispatcher provides them. */
void on_message (const struct message *message);
void on_synchronised (void);
/* The host is gone, or began anew: its streams are no more. */
void on_cut (void);

/* Read and write what is possible now. */
void channel_run (void);
bool channel_connected (void);
/* Nothing is waiting to be taken by the host. */
bool channel_flushed (void);
/* Bytes of output that may be queued now (answers have their own reserve). */
size_t channel_room (void);

void channel_send (uint8_t type, uint16_t stream, const void *data, size_t len);
void channel_ok (uint16_t stream, long long seq, struct answer *answer); /* answer may be NULL; seq -1: none */
void channel_error (uint16_t stream, long long seq, const struct fault *fault);
