/* main: PID 1 of the guest.  Boot, then one loop for everything. */
#include "channel.h"
#include "devices.h"
#include "jobs.h"
#include "logfile.h"
#include "loop.h"
#include "network.h"
#include "paths.h"
#include "ports.h"
#include "power.h"
#include "root.h"
#include "vmgenid.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/signalfd.h>
#include <sys/stat.h>

static int news = -1, children = -1;

static void
must (int result, const char *what)
{
  if (result < 0)
    say ("%s: %s", what, strerror (errno));
}

static void
mount_kernel (void)
{
  unsigned long safe = MS_NOSUID | MS_NODEV | MS_NOEXEC;

  mkdir ("/proc", 0755);
  mkdir ("/sys", 0755);
  mkdir ("/dev", 0755);
  must (mount ("dev", "/dev", "devtmpfs", MS_NOSUID, "mode=755"), "mount /dev");
  must (mount ("proc", "/proc", "proc", safe, NULL), "mount /proc");
  must (mount ("sysfs", "/sys", "sysfs", safe, NULL), "mount /sys");
}

static void
open_stdio (void)
{
  int fd = open ("/dev/null", O_RDWR);

  for (int i = 0; fd >= 0 && i < 3; i++)
    dup2 (fd, i);
  if (fd > 2)
    close (fd);
}

static void
remove_tree (int dirfd, const char *name)
{
  struct dirent *entry;
  cleanup_dir DIR *dir = NULL;
  int fd = openat (dirfd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

  if (fd < 0 || !(dir = fdopendir (fd)))
    return;
  while ((entry = readdir (dir)))
    if (strcmp (entry->d_name, ".") != 0 && strcmp (entry->d_name, "..") != 0
        && unlinkat (fd, entry->d_name, 0) < 0)
      remove_tree (fd, entry->d_name);
  unlinkat (dirfd, name, AT_REMOVEDIR);
}

/* The first root of a kernel cannot be pivoted away from, so the agent lives on a tmpfs over it.  What the
 * modules took is free again.  Memory is promised freely, as to a container whose limit is its cgroup's: what
 * runs out of it is killed, not refused. */
static void
move_root (void)
{
  static const char *const dirs[] = { "proc", "sys", "dev", "image", "upper", "root", "workload-dev", "files", "shares" };
  struct fault fault;

  mkdir ("/new", 0755);
  must (mount ("agent", "/new", "tmpfs", 0, "mode=755,size=16m"), "mount the agent's root");
  remove_tree (AT_FDCWD, "/modules");
  unlink ("/modules.load");
  unlink ("/init");
  must (chdir ("/new"), "enter the agent's root");
  for (size_t i = 0; i < COUNT (dirs); i++)
    mkdir (dirs[i], 0755);
  must (mount ("/proc", "proc", NULL, MS_MOVE, NULL), "move /proc");
  must (mount ("/sys", "sys", NULL, MS_MOVE, NULL), "move /sys");
  must (mount ("/dev", "dev", NULL, MS_MOVE, NULL), "move /dev");
  must (mount (".", "/", NULL, MS_MOVE, NULL), "move the root");
  must (chroot ("."), "enter the new root");
  must (chdir ("/"), "enter the new root");
  /* the workload can write to these, and must not fill our own */
  must (mount ("files", DIR_FILES, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=16m"), "mount the files");
  if (root_make_scaffold (&fault) < 0)
    say ("%s", fault.text);
  must (write_text ("/proc/sys/vm/overcommit_memory", "1", 0), "overcommit memory");
}

static void
make_cgroup (void)
{
  must (mount ("cgroup", CGROUP_ROOT, "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL), "mount cgroups");
  must (write_text (CGROUP_ROOT "/cgroup.subtree_control", "+cpu +memory +pids +io", 0), "cgroup controllers");
  must (mkdir (CGROUP_WORKLOAD, 0755), "the workload's cgroup");
}

static void
catch_signals (void)
{
  sigset_t all;

  signal (SIGPIPE, SIG_IGN);
  sigfillset (&all);
  for (int signum = 1; signum < 32; signum++)
    if (signum == SIGSEGV || signum == SIGBUS || signum == SIGILL || signum == SIGFPE || signum == SIGABRT)
      sigdelset (&all, signum);
  sigprocmask (SIG_SETMASK, &all, NULL);
  sigemptyset (&all);
  sigaddset (&all, SIGCHLD);
  children = signalfd (-1, &all, SFD_CLOEXEC | SFD_NONBLOCK);
  must (children, "signals");
  power_catch_crashes ();
}

static void
on_news (void *arg, short events)
{
  (void) arg, (void) events;
  devices_drain (news);
  ports_scan ();
}

static void
on_children (void *arg, short events)
{
  struct signalfd_siginfo info;

  (void) arg, (void) events;
  while (read (children, &info, sizeof info) > 0)
    ;
  jobs_reap ();
}

/* The workload of a rehearsal is this very file: it says a word, and ends with its input. */
static int
rehearse (void)
{
  char bytes[512];
  ssize_t got;

  if (write_all (1, "here\n", 5) < 0)
    return 1;
  while ((got = read (0, bytes, sizeof bytes)) > 0)
    if (write_all (1, bytes, (size_t) got) < 0)
      return 1;
  return got < 0;
}

int
main (int argc, char **argv)
{
  if (argc > 0 && strcmp (argv[0], "/rehearse") == 0)
    return rehearse ();
  mount_kernel ();
  open_stdio ();
  catch_signals ();
  news = devices_watch ();
  network_default ();
  devices_load_modules ();
  move_root ();
  make_cgroup ();
  network_loopback_up ();
  must (ports_open (), "ports");
  ports_scan ();
  for (;;)
    {
      channel_run ();
      jobs_settle ();
      logfile_run ();
      power_settle ();
      vmgenid_settle ();
      channel_run ();
      ports_watch ();
      jobs_watch ();
      loop_watch (children, POLLIN, on_children, NULL);
      if (news >= 0)
        loop_watch (news, POLLIN, on_news, NULL);
      loop_run_once ();
    }
}
