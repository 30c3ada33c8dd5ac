/* fields: messages of `key NUL value NUL …`, read and written.  Pure, fuzzed. */
#pragma once

#include "util.h"

struct fields
{
  const char *data;
  size_t len;
};

/* What a message may carry; a table of these ends with a NULL key. */
struct field_rule
{
  const char *key;
  bool repeats;
};

/* Whole pairs only, only known keys, once unless they repeat. */
int fields_open (struct fields *fields, const uint8_t *data, size_t len, const struct field_rule *rules,
                 struct fault *fault);
/* Walk: start with *at = 0. */
bool fields_next (const struct fields *fields, size_t *at, const char **key, const char **value);
/* First value of `key`, or NULL. */
const char *field_text (const struct fields *fields, const char *key);
/* Number of `key`; `missing` when it is not there. */
int field_number (const struct fields *fields, const char *key, long long low, long long high, long long missing,
                  long long *value, struct fault *fault);
size_t field_count (const struct fields *fields, const char *key);

/* Fields being written.  Grows up to ANSWER_MAX; beyond that `truncated` is set and the field left out. */
enum
{
  ANSWER_MAX = 256 << 10
};
struct answer
{
  uint8_t *data;
  size_t len, size;
  bool truncated;
};
#define cleanup_answer __attribute__ ((cleanup (answer_free)))
void answer_free (struct answer *answer);
void answer_add (struct answer *answer, const char *key, const char *format, ...)
    __attribute__ ((format (printf, 3, 4)));
