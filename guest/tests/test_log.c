/* Log records: whole lines, parts of lines, their time. */
#include "logfile.h"
#include "test.h"

static char out[LOG_RECORDS_MAX];

static void
expect (const char *expected, const char *data, bool is_stderr)
{
  size_t len = logfile_format (out, data, strlen (data), is_stderr, 1700000000000000042);
  EXPECT (len == strlen (expected));
  out[len] = 0;
  EXPECT_TEXT (expected, out);
}

int
main (void)
{
#define AT "2023-11-14T22:13:20.000000042Z "
  expect (AT "stdout F hello\n", "hello\n", false);
  expect (AT "stderr P part\n", "part", true);
  expect (AT "stdout F a\n" AT "stdout F \n" AT "stdout P b\n", "a\n\nb", false);
  expect ("", "", false);
  static char newlines[LOG_PIECE + 1];
  memset (newlines, '\n', LOG_PIECE);
  EXPECT (logfile_format (out, newlines, LOG_PIECE, false, 0) <= LOG_RECORDS_MAX);
  return failures;
}
