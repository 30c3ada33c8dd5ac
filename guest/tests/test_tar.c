/* Archives: what is written can be read; foreign ones; trees there and back; nothing gets outside. */
#include "archive.h"
#include "extract.h"
#include "overlay.h"
#include "tar.h"
#include "test.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/xattr.h>

static struct fault fault;

static int
memory_file (void)
{
  return memfd_create ("tar", MFD_CLOEXEC);
}

static void
test_entries (void)
{
  struct tar_entry *entry = calloc (1, sizeof *entry), *back = calloc (1, sizeof *back);
  int fd = memory_file ();
  struct tar_reader reader = { .fd = fd };
  char bytes[16];

  memset (entry->name, 'n', 300);
  entry->type = '0';
  entry->mode = 04755;
  entry->uid = 3000000;
  entry->gid = 5;
  entry->size = 3;
  entry->mtime = 1234567890;
  entry->xattrs[0] = (struct tar_xattr){ "user.x", (const uint8_t *) "a\0\n=b", 5 };
  entry->xattr_count = 1;
  EXPECT (tar_write_header (fd, entry, &fault) == 0 && write (fd, "abc", 3) == 3 && tar_pad (fd, 3, &fault) == 0);
  *entry = (struct tar_entry){ .type = '2', .name = "plain", .mode = 0777 };
  memset (entry->link, 'l', 150);
  EXPECT (tar_write_header (fd, entry, &fault) == 0);
  *entry = (struct tar_entry){ .type = '3', .name = "ü", .major = 1, .minor = 300, .size = 0 };
  EXPECT (tar_write_header (fd, entry, &fault) == 0 && tar_write_end (fd, &fault) == 0);
  EXPECT (lseek (fd, 0, SEEK_END) % 512 == 0);
  lseek (fd, 0, SEEK_SET);
  EXPECT (tar_next (&reader, back, &fault) == 1);
  EXPECT (strlen (back->name) == 300 && back->type == '0' && back->mode == 04755 && back->uid == 3000000);
  EXPECT (back->gid == 5 && back->size == 3 && back->mtime == 1234567890 && back->xattr_count == 1);
  EXPECT_TEXT ("user.x", back->xattrs[0].name);
  EXPECT (back->xattrs[0].len == 5 && memcmp (back->xattrs[0].value, "a\0\n=b", 5) == 0);
  EXPECT (tar_read (&reader, bytes, 2, &fault) == 2 && memcmp (bytes, "ab", 2) == 0);
  EXPECT (tar_next (&reader, back, &fault) == 1 && back->type == '2' && strlen (back->link) == 150);
  EXPECT_TEXT ("plain", back->name);
  EXPECT (tar_next (&reader, back, &fault) == 1 && back->type == '3' && back->minor == 300 && back->xattr_count == 0);
  EXPECT_TEXT ("ü", back->name);
  EXPECT (tar_next (&reader, back, &fault) == 0);
  tar_reader_close (&reader);
  close (fd);
  free (entry);
  free (back);
}

static void
test_names (void)
{
  char names[][40] = { "/a//b/./c/", "./", "a/../b", "..", "...", "a/..b" };

  EXPECT (extract_clean_name (names[0]) && extract_clean_name (names[1]));
  EXPECT_TEXT ("a/b/c", names[0]);
  EXPECT_TEXT ("", names[1]);
  EXPECT (!extract_clean_name (names[2]) && !extract_clean_name (names[3]));
  EXPECT (extract_clean_name (names[4]) && extract_clean_name (names[5]));
}

static int
make_dir (const char *parent, const char *name)
{
  char path[4096];
  snprintf (path, sizeof path, "%s/%s", parent, name);
  mkdir (path, 0755);
  return open (path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

static void
put_file (int dirfd, const char *name, const char *text)
{
  int fd = openat (dirfd, name, O_WRONLY | O_CREAT | O_TRUNC, 0640);
  EXPECT (fd >= 0 && write (fd, text, strlen (text)) == (ssize_t) strlen (text));
  close (fd);
}

static void
test_tree (const char *temporary)
{
  static const struct archive_options plain = { 0 };
  struct extract_options own = { .own = true, .uid = getuid (), .gid = getgid () };
  int from = make_dir (temporary, "from"), to = make_dir (temporary, "to"), tar = memory_file ();
  struct stat a, b;
  char text[32] = "", link[32] = "";

  close (make_dir (temporary, "from/sub"));
  put_file (from, "sub/file", "content");
  EXPECT (linkat (from, "sub/file", from, "hard", 0) == 0 && symlinkat ("sub/file", from, "soft") == 0);
  EXPECT (mkfifoat (from, "pipe", 0600) == 0);
  EXPECT (utimensat (from, "sub", (struct timespec[2]){ { 5, 0 }, { 7, 0 } }, 0) == 0);
  EXPECT (archive_write (tar, from, NULL, "", &plain, &fault) == 0);
  lseek (tar, 0, SEEK_SET);
  int result = extract (tar, to, &own, &fault);
  EXPECT (result == 0 || (fprintf (stderr, "%s\n", fault.text), false));
  EXPECT (read_text_at (to, "sub/file", text, sizeof text) == 7);
  EXPECT_TEXT ("content", text);
  EXPECT (fstatat (to, "hard", &a, 0) == 0 && fstatat (to, "sub/file", &b, 0) == 0 && a.st_ino == b.st_ino);
  EXPECT ((a.st_mode & 07777) == 0640);
  EXPECT (readlinkat (to, "soft", link, sizeof link) == 8);
  EXPECT (fstatat (to, "pipe", &a, 0) == 0 && S_ISFIFO (a.st_mode));
  EXPECT (fstatat (to, "sub", &a, 0) == 0 && a.st_mtime == 7);
  /* again, over what is there now */
  lseek (tar, 0, SEEK_SET);
  EXPECT (extract (tar, to, &own, &fault) == 0);
  /* a file for a directory only where that is allowed */
  int other = memory_file ();
  EXPECT (unlinkat (from, "hard", 0) == 0);
  put_file (from, "flat", "x");
  EXPECT (archive_write (other, from, "flat", "sub", &plain, &fault) == 0);
  own.no_overwrite_dir = true;
  lseek (other, 0, SEEK_SET);
  EXPECT (extract (other, to, &own, &fault) < 0 && fault.kind == FAULT_CONFLICT);
  own.no_overwrite_dir = false;
  lseek (other, 0, SEEK_SET);
  EXPECT (extract (other, to, &own, &fault) == 0 && fstatat (to, "sub", &a, 0) == 0 && S_ISREG (a.st_mode));
  close (tar);
  close (other);
  close (from);
  close (to);
}

static void
test_changes (const char *temporary)
{
  int image = make_dir (temporary, "image"), upper = make_dir (temporary, "upper"), out = memory_file ();
  struct timespec same[2] = { { 9, 9 }, { 9, 9 } };
  char text[512] = "", expected[] = "C /d\nA /d/new\nA /e\n";

  close (make_dir (temporary, "image/d"));
  close (make_dir (temporary, "upper/d"));
  close (make_dir (temporary, "upper/etc"));
  close (make_dir (temporary, "image/etc"));
  put_file (upper, "d/new", "x");
  put_file (upper, "etc/hosts", "");
  close (make_dir (temporary, "upper/e"));
  utimensat (image, "d", same, 0);
  utimensat (upper, "d", same, 0);
  utimensat (image, "etc", same, 0);
  utimensat (upper, "etc", same, 0);
  EXPECT (overlay_changes (dup (out), upper, image, &fault) == 0);
  lseek (out, 0, SEEK_SET);
  ssize_t got = read_all (out, text, sizeof text - 1);
  for (ssize_t i = 0; i < got; i++)
    if (text[i] == 0)
      text[i] = '\n';
  /* the order within a directory is the file system's */
  EXPECT (strlen (text) == strlen (expected) && strstr (text, "C /d\nA /d/new\n") && strstr (text, "A /e\n"));
  close (image);
  close (upper);
  close (out);
}

int
main (int argc, char **argv)
{
  if (argc != 2)
    return 2; /* a temporary directory */
  test_entries ();
  test_names ();
  test_tree (argv[1]);
  test_changes (argv[1]);
  return failures;
}
