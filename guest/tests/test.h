/* test: the least that a unit test needs.  Each test program is one file and exits with the number of failures. */
#pragma once

#include "util.h"

#include <stdio.h>
#include <string.h>

static int failures;

#define EXPECT(condition)                                                                                             \
  do                                                                                                                  \
    if (!(condition))                                                                                                 \
      {                                                                                                               \
        failures++;                                                                                                   \
        fprintf (stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                              \
      }                                                                                                               \
  while (0)

#define EXPECT_TEXT(expected, actual)                                                                                 \
  do                                                                                                                  \
    if (strcmp ((expected), (actual)) != 0)                                                                           \
      {                                                                                                               \
        failures++;                                                                                                   \
        fprintf (stderr, "%s:%d: expected \"%s\", got \"%s\"\n", __FILE__, __LINE__, (expected), (actual));           \
      }                                                                                                               \
  while (0)
