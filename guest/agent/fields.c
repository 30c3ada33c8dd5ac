#include "fields.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const struct field_rule *
find_rule (const struct field_rule *rules, const char *key)
{
  for (; rules->key; rules++)
    if (strcmp (rules->key, key) == 0)
      return rules;
  return NULL;
}

int
fields_open (struct fields *fields, const uint8_t *data, size_t len, const struct field_rule *rules,
             struct fault *fault)
{
  const char *key, *value;
  size_t at = 0, nuls = 0;
  uint64_t seen = 0;

  fields->data = (const char *) data;
  fields->len = len;
  if (len && data[len - 1] != 0)
    return fail (fault, FAULT_INVALID, 0, "message does not end with NUL");
  for (size_t i = 0; i < len; i++)
    nuls += data[i] == 0;
  if (nuls % 2)
    return fail (fault, FAULT_INVALID, 0, "message has a key without a value");
  while (fields_next (fields, &at, &key, &value))
    {
      const struct field_rule *rule = find_rule (rules, key);
      if (!rule)
        return fail (fault, FAULT_INVALID, 0, "unknown field \"%.100s\"", key);
      uint64_t bit = (uint64_t) 1 << (rule - rules);
      if (!rule->repeats && (seen & bit))
        return fail (fault, FAULT_INVALID, 0, "field \"%s\" given twice", key);
      seen |= bit;
    }
  return 0;
}

bool
fields_next (const struct fields *fields, size_t *at, const char **key, const char **value)
{
  if (*at >= fields->len)
    return false;
  *key = fields->data + *at;
  *at += strlen (*key) + 1;
  *value = fields->data + *at;
  *at += strlen (*value) + 1;
  return true;
}

const char *
field_text (const struct fields *fields, const char *key)
{
  const char *k, *value;
  size_t at = 0;

  while (fields_next (fields, &at, &k, &value))
    if (strcmp (k, key) == 0)
      return value;
  return NULL;
}

int
field_number (const struct fields *fields, const char *key, long long low, long long high, long long missing,
              long long *value, struct fault *fault)
{
  const char *text = field_text (fields, key);

  *value = missing;
  if (text && !parse_number (text, low, high, value))
    return fail (fault, FAULT_INVALID, 0, "field \"%s\": \"%.40s\" is not a number from %lld to %lld", key, text, low,
                 high);
  return 0;
}

size_t
field_count (const struct fields *fields, const char *key)
{
  const char *k, *value;
  size_t at = 0, count = 0;

  while (fields_next (fields, &at, &k, &value))
    count += strcmp (k, key) == 0;
  return count;
}

void
answer_free (struct answer *answer)
{
  free (answer->data);
  *answer = (struct answer){ 0 };
}

static bool
make_room (struct answer *answer, size_t more)
{
  size_t size = answer->size ? answer->size : 512;

  if (answer->len + more > ANSWER_MAX)
    return false;
  while (size < answer->len + more)
    size *= 2;
  if (size == answer->size)
    return true;
  uint8_t *grown = realloc (answer->data, size);
  if (!grown)
    return false;
  answer->data = grown;
  answer->size = size;
  return true;
}

void
answer_add (struct answer *answer, const char *key, const char *format, ...)
{
  char value[4608];
  size_t key_len = strlen (key) + 1;
  va_list args;
  int used;

  va_start (args, format);
  used = vsnprintf (value, sizeof value, format, args);
  va_end (args);
  size_t value_len = used < 0 ? 0 : (size_t) used < sizeof value ? (size_t) used : sizeof value - 1;
  value[value_len] = 0;
  if (!make_room (answer, key_len + value_len + 1))
    {
      answer->truncated = true;
      return;
    }
  memcpy (answer->data + answer->len, key, key_len);
  memcpy (answer->data + answer->len + key_len, value, value_len + 1);
  answer->len += key_len + value_len + 1;
}
