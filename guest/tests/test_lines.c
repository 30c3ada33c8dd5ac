/* Taking a line out of a text. */
#include "mounts.h"
#include "test.h"

static void
check (const char *before, const char *line, const char *expected)
{
  char text[64];

  snprintf (text, sizeof text, "%s", before);
  mounts_drop_line (text, line);
  EXPECT_TEXT (expected, text);
}

int
main (void)
{
  check ("a\nb\nc\n", "b", "a\nc\n");
  check ("a\nb\nb\n", "b", "a\nb\n");
  check ("ab\nb", "b", "ab\n");
  check ("ab\nbc\n", "b", "ab\nbc\n");
  check ("", "b", "");
  check ("\n\na\n", "a", "\n\n");
  return failures;
}
