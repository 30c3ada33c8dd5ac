/* Paths inside a root: symlinks stay in it, what is missing is made. */
#include "test.h"

#include <fcntl.h>
#include <sys/stat.h>

static bool
is_inside (int root, int fd, const char *path)
{
  struct stat a, b;
  return fd >= 0 && fstat (fd, &a) == 0 && fstatat (root, path, &b, AT_SYMLINK_NOFOLLOW) == 0 && a.st_ino == b.st_ino;
}

int
main (int argc, char **argv)
{
  uint8_t bytes[2];
  long long n;
  struct stat before, after;

  if (argc != 2)
    return 2;
  int root = open (argv[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  mkdirat (root, "run", 0755);
  symlinkat ("/run", root, "abs");
  symlinkat ("../../../..", root, "up");
  int fd = make_in_root (root, "/abs/a/b", true, 0700);
  EXPECT (is_inside (root, fd, "run/a/b"));
  close (fd);
  fd = make_in_root (root, "/up/file", false, 0644);
  EXPECT (is_inside (root, fd, "file"));
  close (fd);
  EXPECT (make_in_root (root, "/file/x", true, 0755) < 0 && errno == ENOTDIR);
  /* as /etc/resolv.conf of many an image: what a link leads to is made, in the root */
  symlinkat ("../../not/there", root, "run/dangling");
  fd = make_in_root (root, "/run/dangling", false, 0644);
  EXPECT (is_inside (root, fd, "not/there"));
  close (fd);
  symlinkat ("/nowhere", root, "way");
  fd = make_in_root (root, "/way/x", true, 0755);
  EXPECT (is_inside (root, fd, "nowhere/x"));
  close (fd);
  symlinkat ("circle", root, "circle");
  EXPECT (make_in_root (root, "/circle", false, 0644) < 0 && errno == ELOOP);
  symlinkat ("/circle/x", root, "tocircle");
  EXPECT (make_in_root (root, "/tocircle", true, 0755) < 0 && errno == ELOOP);
  EXPECT (open_in_root (root, "/none", O_PATH) < 0 && errno == ENOENT);
  fd = open_in_root (root, "", O_PATH);
  EXPECT (is_inside (root, fd, "."));
  close (fd);
  /* a mount point does not make its directory look changed */
  EXPECT (fstatat (root, "run", &before, 0) == 0);
  close (make_in_root (root, "/run/point", true, 0755));
  EXPECT (fstatat (root, "run", &after, 0) == 0 && before.st_mtim.tv_nsec == after.st_mtim.tv_nsec);
  close (root);
  EXPECT (parse_hex ("00fF", bytes, 2) && bytes[1] == 0xff && !parse_hex ("0g", bytes, 1) && !parse_hex ("0", bytes, 1));
  EXPECT (parse_number ("-5", -5, 5, &n) && n == -5 && !parse_number ("6", -5, 5, &n));
  EXPECT (!parse_number ("", 0, 5, &n) && !parse_number (" 1", 0, 5, &n) && !parse_number ("1x", 0, 5, &n));
  EXPECT (!parse_number ("99999999999999999999", 0, INT64_MAX, &n));
  return failures;
}
