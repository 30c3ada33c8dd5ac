#include "files.h"

#include "paths.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

int
files_stat (const char *path, struct answer *answer, struct fault *fault)
{
  char link[PATH_MAX] = "";
  struct stat st;
  const char *name;
  cleanup_close int root = open (DIR_ROOT, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  cleanup_close int fd = root < 0 ? -1 : open_in_root (root, path, O_PATH | O_NOFOLLOW);

  if (fd < 0 || fstat (fd, &st) < 0)
    return fail (fault,
                 errno == ENOENT || errno == ELOOP ? FAULT_NO_SUCH_PATH
                 : errno == ENOTDIR                ? FAULT_CONFLICT
                                                   : FAULT_FAILED,
                 errno, "%.300s", path);
  if (S_ISLNK (st.st_mode))
    {
      ssize_t got = readlinkat (fd, "", link, sizeof link - 1);
      link[got > 0 ? got : 0] = 0;
    }
  name = strrchr (path, '/');
  answer_add (answer, "name", "%s", name && name[1] ? name + 1 : name ? "/" : path);
  answer_add (answer, "size", "%lld", (long long) st.st_size);
  answer_add (answer, "st_mode", "%u", st.st_mode);
  answer_add (answer, "mtime_ns", "%lld", (long long) st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec);
  answer_add (answer, "link", "%s", link);
  return 0;
}
