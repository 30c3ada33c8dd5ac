/* fuzz: drives a target without libFuzzer: seeds, then random changes of them, the same ones in every run.
 * A target's main is `return fuzz_run (argc, argv, target, seeds, count)`; argv[1] is the number of rounds. */
#pragma once

#include "util.h"

#include <string.h>

struct seed
{
  const void *data;
  size_t len;
};

static uint64_t fuzz_state = 0x9e3779b97f4a7c15;

static inline size_t
fuzz_below (size_t n)
{
  fuzz_state ^= fuzz_state << 13;
  fuzz_state ^= fuzz_state >> 7;
  fuzz_state ^= fuzz_state << 17;
  return n ? (size_t) (fuzz_state % n) : 0;
}

static inline size_t
fuzz_mutate (uint8_t *data, size_t len, size_t size)
{
  static const uint8_t likely[] = { 0, 1, 4, 14, 0xff, 0xf1, '0', '7', ' ', '\n', '=', '/', '.', 'x', 'L', 0x80 };

  for (size_t i = fuzz_below (6); i > 0 && len; i--)
    switch (fuzz_below (5))
      {
      case 0:
        data[fuzz_below (len)] = (uint8_t) fuzz_below (256);
        break;
      case 1:
        data[fuzz_below (len)] = likely[fuzz_below (sizeof likely)];
        break;
      case 2:
        len = fuzz_below (8) ? len : fuzz_below (len + 1);
        break;
      case 3:
        if (len * 2 < size)
          {
            size_t at = fuzz_below (len), n = fuzz_below (len - at) + 1;
            memmove (data + at + n, data + at, len - at);
            len += n;
          }
        break;
      case 4:
        data[fuzz_below (len)] ^= (uint8_t) (1 << fuzz_below (8));
        break;
      }
  return len;
}

typedef void fuzz_fn (const uint8_t *data, size_t len);

static inline int
fuzz_run (int argc, char **argv, fuzz_fn *target, const struct seed *seeds, size_t count)
{
  static uint8_t work[1 << 16];
  long rounds = argc > 1 ? strtol (argv[1], NULL, 10) : 10000;

  for (long i = 0; i < rounds; i++)
    {
      const struct seed *seed = &seeds[fuzz_below (count)];
      memcpy (work, seed->data, seed->len);
      size_t len = fuzz_mutate (work, seed->len, sizeof work);
      /* of its own size, so that the sanitizer sees a read beyond the end */
      uint8_t *exact = malloc (len ? len : 1);
      memcpy (exact, work, len);
      target (exact, len);
      free (exact);
    }
  return 0;
}
