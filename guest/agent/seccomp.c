#include "seccomp.h"

#include <linux/seccomp.h>
#include <sys/syscall.h>

int
seccomp_apply (struct sock_filter *filter, size_t count, struct fault *fault)
{
  struct sock_fprog program = { .len = (unsigned short) count, .filter = filter };

  if (count && syscall (SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) < 0)
    return fail (fault, FAULT_FAILED, errno, "install the seccomp filter");
  return 0;
}
