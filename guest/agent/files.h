/* files: STAT, and transfers (GET, PUT, CHANGES), each in a child of its own, chrooted to the workload's root. */
#pragma once

#include "fields.h"

int files_stat (const char *path, struct answer *answer, struct fault *fault);
/* Start a transfer on a new stream. */
int files_get (uint16_t stream, const uint8_t *data, size_t len, struct fault *fault);
int files_put (uint16_t stream, const uint8_t *data, size_t len, struct fault *fault);
int files_changes (uint16_t stream, const uint8_t *data, size_t len, struct fault *fault);
