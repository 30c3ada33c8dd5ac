/* discard: preloaded into QEMU, so that a guest whose memory is a template's, mapped copy on write, gives memory back.
 *
 * When a guest reports free pages QEMU punches a hole into the file behind its memory, then drops its own pages of
 * that place (softmmu/physmem.c, ram_block_discard_range, of every version from 2.8 to 10).  The file is sealed, so
 * the first step fails, and QEMU leaves out the second.  A hole in what all clones start from would be wrong, but
 * the second step alone is right: the pages that this guest has written go, and if it reads there again, it finds
 * what the template has.  That is as good as anything to a guest that has called these pages free.
 *
 * So a hole in a file that is sealed against writing is said to be made.  Everything else goes to the kernel. */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/syscall.h>
#include <unistd.h>

int fallocate64 (int fd, int mode, off64_t offset, off64_t length);

int
fallocate64 (int fd, int mode, off64_t offset, off64_t length)
{
  if (mode & FALLOC_FL_PUNCH_HOLE)
    {
      int saved = errno, seals = fcntl (fd, F_GET_SEALS);
      errno = saved;
      if (seals >= 0 && (seals & F_SEAL_WRITE))
        return 0;
    }
  return (int) syscall (SYS_fallocate, fd, mode, offset, length);
}
