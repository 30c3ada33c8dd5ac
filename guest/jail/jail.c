/* jail: confines itself, then becomes another program.
 *
 *   jail STEP… -- PROGRAM ARGUMENT…
 *
 * A stage of its own, because this cannot be done between fork and exec of a program with threads and an event loop;
 * and not in Python, because it starts with every VM and Python's own start is most of what it would take.  It decides
 * nothing: src/insula/system/jail.py does, and says what to do in which order.  Steps:
 *
 *   keep FDS                          close every descriptor above 2 but these (1,2,3; may be empty)
 *   cgroup FILE                       join: write our pid to this file
 *   copy FD FD                        what is no hole of one memory file to another, which is as long; close the first
 *   cpus LIST                         run on these only
 *   namespaces WORDS                  new ones: any of mount,net,ipc,uts
 *   private                           mounts of ours are not seen outside
 *   tmpfs DIRECTORY WORDS OPTIONS     nosuid, and any of nodev,noexec
 *   bind SOURCE TARGET WORDS          any of ro,rec; what is missing of TARGET is made
 *   link PATH TEXT                    a symlink, and its directories
 *   node PATH MAJOR:MINOR UID         a character device for that user alone, and its directories
 *   bound                             no capability can be had again
 *   root DIRECTORY                    it is the root now, read-only, and nothing else is left
 *   user UID                          become it, and its group, for good
 *   set NAME VALUE                    in PROGRAM's environment, which else has PATH and LC_ALL only
 *
 * Synchronous; anything that fails ends it with 126 and a sentence. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define COUNT(a) (sizeof (a) / sizeof (*(a)))

enum
{
  FDS_MAX = 1024,
  STATUS = 126
};

/* mount_setattr(2), Linux 5.12; not in every libc's headers */
enum
{
  SYS_MOUNT_SETATTR = 442,
  ATTR_RDONLY = 1,
  RECURSIVE = 0x8000
};

struct attributes
{
  uint64_t set, clear, propagation, user;
};

static const char *program = "a program";

static _Noreturn void
give_up (const char *what, const char *which)
{
  fprintf (stderr, "insula: cannot confine %s: %s %s: %s\n", program, what, which, strerror (errno));
  exit (STATUS);
}

static _Noreturn void
refuse (const char *what, const char *which)
{
  fprintf (stderr, "insula: cannot confine %s: %s \"%s\"\n", program, what, which);
  exit (STATUS);
}

/* The number that `text` begins with; *text is behind it and one `after`. */
static long
take_number (const char **text, char after)
{
  char *end;
  const char *begin = *text;

  errno = 0;
  long value = strtol (begin, &end, 10);
  if (end == begin || errno || value < 0 || value > INT_MAX || (*end && *end != after))
    refuse ("not a number:", begin);
  *text = *end ? end + 1 : end;
  return value;
}

static bool
has_word (const char *words, const char *word)
{
  size_t len = strlen (word);

  for (const char *at = words; *at; at += strcspn (at, ","), at += *at == ',')
    if (strncmp (at, word, len) == 0 && (at[len] == ',' || !at[len]))
      return true;
  return false;
}

/* The directories above `path`, or with `all` that one too. */
static void
make_directories (const char *path, bool all)
{
  char part[PATH_MAX];
  size_t len = strlen (path);

  if (len >= sizeof part)
    refuse ("too long a path:", path);
  for (size_t i = 1; i <= len; i++)
    if (path[i] == '/' || (all && !path[i]))
      {
        memcpy (part, path, i);
        part[i] = 0;
        if (mkdir (part, 0777) < 0 && errno != EEXIST)
          give_up ("making", part);
      }
}

static void
keep (char **words)
{
  int kept[FDS_MAX];
  size_t count = 0;

  for (const char *at = words[0]; *at;)
    {
      if (count == FDS_MAX)
        refuse ("too many descriptors:", words[0]);
      kept[count++] = (int) take_number (&at, ',');
    }
  DIR *dir = opendir ("/proc/self/fd");
  if (!dir)
    give_up ("listing", "/proc/self/fd");
  for (struct dirent *entry; (entry = readdir (dir));)
    {
      int fd = atoi (entry->d_name);
      bool stays = fd <= 2 || fd == dirfd (dir);
      for (size_t i = 0; i < count && !stays; i++)
        stays = kept[i] == fd;
      if (!stays)
        close (fd);
    }
  closedir (dir);
}

static void
join_cgroup (char **words)
{
  int fd = open (words[0], O_WRONLY | O_CLOEXEC);

  if (fd < 0 || write (fd, "0", 1) != 1)
    give_up ("joining", words[0]);
  close (fd);
}

static void
copy (char **words)
{
  const char *first = words[0], *second = words[1];
  int from = (int) take_number (&first, 0), to = (int) take_number (&second, 0);
  off_t at = 0, end;

  while ((at = lseek (from, at, SEEK_DATA)) >= 0)
    {
      if ((end = lseek (from, at, SEEK_HOLE)) < 0 || lseek (to, at, SEEK_SET) < 0)
        give_up ("copying memory of", words[0]);
      while (at < end)
        {
          ssize_t done = sendfile (to, from, &at, (size_t) (end - at));
          if (done <= 0)
            give_up ("copying memory to", words[1]);
        }
    }
  if (errno != ENXIO) /* only a hole is left */
    give_up ("copying memory of", words[0]);
  close (from);
}

static void
run_on (char **words)
{
  cpu_set_t cpus;

  CPU_ZERO (&cpus);
  for (const char *at = words[0]; *at;)
    {
      long cpu = take_number (&at, ',');
      if (cpu >= CPU_SETSIZE)
        refuse ("no such CPU:", words[0]);
      CPU_SET ((size_t) cpu, &cpus);
    }
  if (sched_setaffinity (0, sizeof cpus, &cpus) < 0)
    give_up ("running on CPUs", words[0]);
}

static void
make_namespaces (char **words)
{
  static const struct
  {
    const char *word;
    int flag;
  } kinds[]
      = { { "mount", CLONE_NEWNS }, { "net", CLONE_NEWNET }, { "ipc", CLONE_NEWIPC }, { "uts", CLONE_NEWUTS } };
  int flags = 0;

  for (size_t i = 0; i < COUNT (kinds); i++)
    if (has_word (words[0], kinds[i].word))
      flags |= kinds[i].flag;
  if (unshare (flags) < 0)
    give_up ("making namespaces", words[0]);
}

static void
make_private (char **words)
{
  (void) words;
  if (mount (NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
    give_up ("making mounts", "private");
}

static void
mount_tmpfs (char **words)
{
  unsigned long flags = MS_NOSUID | (has_word (words[1], "nodev") ? MS_NODEV : 0)
                        | (has_word (words[1], "noexec") ? MS_NOEXEC : 0);

  make_directories (words[0], true);
  if (mount ("tmpfs", words[0], "tmpfs", flags, words[2]) < 0)
    give_up ("mounting a tmpfs at", words[0]);
}

/* Every mount below it, where the kernel can. */
static void
make_read_only (const char *path, bool recursive)
{
  struct attributes attributes = { .set = ATTR_RDONLY };

  if (syscall (SYS_MOUNT_SETATTR, AT_FDCWD, path, recursive ? RECURSIVE : 0, &attributes, sizeof attributes) == 0)
    return;
  if (recursive)
    give_up ("making read-only, with all that is mounted below,", path);
  if (mount (NULL, path, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL) < 0)
    give_up ("making read-only", path);
}

static void
bind (char **words)
{
  const char *source = words[0], *target = words[1];
  bool recursive = has_word (words[2], "rec");
  struct stat st;

  if (stat (source, &st) < 0)
    give_up ("looking at", source);
  make_directories (target, S_ISDIR (st.st_mode));
  if (!S_ISDIR (st.st_mode))
    {
      int fd = open (target, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
      if (fd < 0)
        give_up ("making", target);
      close (fd);
    }
  if (mount (source, target, NULL, MS_BIND | (recursive ? MS_REC : 0), NULL) < 0)
    give_up ("mounting at", target);
  if (has_word (words[2], "ro"))
    make_read_only (target, recursive);
}

static void
make_link (char **words)
{
  make_directories (words[0], false);
  if (symlink (words[1], words[0]) < 0)
    give_up ("making", words[0]);
}

static void
make_node (char **words)
{
  const char *at = words[1], *owner = words[2];
  long major = take_number (&at, ':'), minor = take_number (&at, 0), uid = take_number (&owner, 0);

  make_directories (words[0], false);
  if (mknod (words[0], S_IFCHR | 0600, makedev ((unsigned) major, (unsigned) minor)) < 0
      || chown (words[0], (uid_t) uid, (gid_t) uid) < 0)
    give_up ("making", words[0]);
}

static void
bound (char **words)
{
  (void) words;
  /* as many as the kernel knows; one who may not (without CAP_SETPCAP) is kept from them by no_new_privs alone */
  for (unsigned long capability = 0; prctl (PR_CAPBSET_READ, capability, 0, 0, 0) >= 0; capability++)
    prctl (PR_CAPBSET_DROP, capability, 0, 0, 0);
}

static void
enter_root (char **words)
{
  if (chdir (words[0]) < 0 || syscall (SYS_pivot_root, ".", ".") < 0)
    give_up ("changing the root to", words[0]);
  if (umount2 (".", MNT_DETACH) < 0 || chdir ("/") < 0)
    give_up ("leaving", "the old root");
  make_read_only ("/", false);
}

static void
become_user (char **words)
{
  const char *at = words[0];
  uid_t uid = (uid_t) take_number (&at, 0);

  if (setgroups (0, NULL) < 0 || setresgid (uid, uid, uid) < 0 || setresuid (uid, uid, uid) < 0)
    give_up ("becoming user", words[0]);
  if (prctl (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
    give_up ("giving up", "new privileges");
}

static void
set_variable (char **words)
{
  if (setenv (words[0], words[1], 1) < 0)
    give_up ("setting", words[0]);
}

static const struct
{
  const char *name;
  int words;
  void (*act) (char **words);
} steps[] = {
  { "keep", 1, keep },          { "cgroup", 1, join_cgroup },   { "copy", 2, copy },
  { "cpus", 1, run_on },        { "namespaces", 1, make_namespaces }, { "private", 0, make_private },
  { "tmpfs", 3, mount_tmpfs },  { "bind", 3, bind },            { "link", 2, make_link },
  { "node", 3, make_node },     { "bound", 0, bound },          { "root", 1, enter_root },
  { "user", 1, become_user },   { "set", 2, set_variable },
};

/* Where the next step begins. */
static char **
take_step (char **words, char **end)
{
  for (size_t i = 0; i < COUNT (steps); i++)
    if (strcmp (steps[i].name, words[0]) == 0)
      {
        if (end - words <= steps[i].words)
          refuse ("too few words after", words[0]);
        steps[i].act (words + 1);
        return words + 1 + steps[i].words;
      }
  refuse ("no such step:", words[0]);
}

int
main (int argc, char **argv)
{
  char **end = argv + 1, **at = argv + 1;

  while (end < argv + argc && strcmp (*end, "--") != 0)
    end++;
  if (end + 1 >= argv + argc)
    refuse ("no program after", "--");
  program = end[1];
  umask (022);
  if (clearenv () < 0 || setenv ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin", 1) < 0 || setenv ("LC_ALL", "C.UTF-8", 1) < 0)
    give_up ("setting", "the environment");
  while (at < end)
    at = take_step (at, end);
  umask (077);
  execv (program, end + 1);
  give_up ("becoming", program);
}
