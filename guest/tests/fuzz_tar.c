/* Any bytes into the tar reader.  Checksums of headers are made right, so that damage gets further in. */
#include "fuzz.h"
#include "tar.h"

#include <stdio.h>
#include <sys/mman.h>

static void
mend_checksums (uint8_t *data, size_t len)
{
  for (size_t at = 0; at + TAR_BLOCK <= len; at += TAR_BLOCK)
    {
      unsigned sum = 0;
      char text[8];
      if (memcmp (data + at + 257, "ustar", 5) != 0)
        continue;
      memset (data + at + 148, ' ', 8);
      for (size_t i = 0; i < TAR_BLOCK; i++)
        sum += data[at + i];
      snprintf (text, sizeof text, "%06o", sum & 0777777);
      memcpy (data + at + 148, text, 7);
    }
}

static void
target (const uint8_t *data, size_t len)
{
  static struct tar_entry entry;
  static int fd = -1;
  struct tar_reader reader = { 0 };
  struct fault fault;
  uint8_t *copy = malloc (len ? len : 1), bytes[100];
  volatile size_t used = 0;

  if (fd < 0)
    fd = memfd_create ("fuzz", MFD_CLOEXEC);
  memcpy (copy, data, len);
  if (fuzz_below (8))
    mend_checksums (copy, len);
  if (ftruncate (fd, 0) < 0 || pwrite (fd, copy, len, 0) != (ssize_t) len || lseek (fd, 0, SEEK_SET) < 0)
    abort ();
  reader.fd = fd;
  while (tar_next (&reader, &entry, &fault) == 1)
    {
      used += strlen (entry.name) + strlen (entry.link);
      for (size_t i = 0; i < entry.xattr_count; i++)
        for (size_t j = 0; j < entry.xattrs[i].len; j++)
          used += entry.xattrs[i].value[j];
      if (fuzz_below (2) && tar_read (&reader, bytes, sizeof bytes, &fault) < 0)
        break;
    }
  tar_reader_close (&reader);
  free (copy);
}

int
main (int argc, char **argv)
{
  static uint8_t seed[16384];
  static struct tar_entry entry = { .type = '0', .mode = 0644, .size = 5, .uid = 3000000 };
  struct fault fault;
  int fd = memfd_create ("seed", MFD_CLOEXEC);

  memset (entry.name, 'n', 200);
  entry.xattrs[0] = (struct tar_xattr){ "user.x", (const uint8_t *) "value", 5 };
  entry.xattr_count = 1;
  tar_write_header (fd, &entry, &fault);
  write_all (fd, "hello", 5);
  tar_pad (fd, 5, &fault);
  entry = (struct tar_entry){ .type = '2', .name = "link", .link = "to" };
  tar_write_header (fd, &entry, &fault);
  tar_write_end (fd, &fault);
  lseek (fd, 0, SEEK_SET);
  const struct seed seeds[] = { { seed, (size_t) read_all (fd, seed, sizeof seed) } };
  return fuzz_run (argc, argv, target, seeds, COUNT (seeds));
}
