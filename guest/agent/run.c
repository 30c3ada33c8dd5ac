#include "run.h"

#include "caps.h"
#include "rlimits.h"
#include "seccomp.h"
#include "user.h"

#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

/* So that a program that is not root can open /dev/stdout again. */
static void
give_stdio (uid_t uid, gid_t gid)
{
  struct stat st, null;

  if (stat ("/dev/null", &null) < 0)
    return;
  for (int fd = 0; fd < 3; fd++)
    if (fstat (fd, &st) == 0 && st.st_rdev != null.st_rdev && st.st_uid != uid)
      if (fchown (fd, uid, S_ISCHR (st.st_mode) ? (gid_t) -1 : gid) < 0)
        return; /* it can still use what it has open */
}

static int
set_oom_score (int score, struct fault *fault)
{
  char text[16];

  if (score == 0) /* as the agent's own, which it has from its birth */
    return 0;
  snprintf (text, sizeof text, "%d", score);
  if (write_text ("/proc/self/oom_score_adj", text, 0) < 0)
    return fail (fault, FAULT_FAILED, errno, "set oom_score_adj to %d", score);
  return 0;
}

/* Docker makes a missing working directory, root's, for the main process and not for an exec. */
static int
enter_cwd (const char *cwd, bool make, struct fault *fault)
{
  char part[PATH_MAX];
  size_t len = strlen (cwd);

  if (chdir (cwd) == 0)
    return 0;
  if (errno != ENOENT || !make)
    return fail (fault, FAULT_NOT_EXECUTABLE, errno, "chdir to cwd (\"%.200s\")", cwd);
  if (len >= sizeof part)
    return fail (fault, FAULT_FAILED, ENAMETOOLONG, "cwd");
  for (size_t i = 1; i <= len; i++)
    if (cwd[i] == '/' || cwd[i] == 0)
      {
        memcpy (part, cwd, i);
        part[i] = 0;
        if (mkdir (part, 0755) < 0 && errno != EEXIST)
          return fail (fault, FAULT_FAILED, errno, "make directory \"%.200s\"", part);
      }
  if (chdir (cwd) < 0)
    return fail (fault, FAULT_FAILED, errno, "chdir to cwd (\"%.200s\")", cwd);
  return 0;
}

static int
become (struct process *process, const struct user *user, struct fault *fault)
{
  if (process->no_new_privs && prctl (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
    return fail (fault, FAULT_FAILED, errno, "no_new_privs");
  /* without no_new_privs a filter needs CAP_SYS_ADMIN, so before the rights go; the profile allows the rest */
  if (!process->no_new_privs && seccomp_apply (process->filter, process->filter_len, fault) < 0)
    return -1;
  if (caps_bound (process->caps, fault) < 0)
    return -1;
  if (setgroups (user->group_count, user->groups) < 0)
    return fail (fault, FAULT_FAILED, errno, "set groups");
  if (setresgid (user->gid, user->gid, user->gid) < 0 || setresuid (user->uid, user->uid, user->uid) < 0)
    return fail (fault, FAULT_FAILED, errno, "become user %u:%u", user->uid, user->gid);
  if (caps_apply (process->caps, user->uid, fault) < 0)
    return -1;
  if (process->no_new_privs && seccomp_apply (process->filter, process->filter_len, fault) < 0)
    return -1;
  return 0;
}

static bool
is_program (const char *path)
{
  struct stat st;

  return stat (path, &st) == 0 && S_ISREG (st.st_mode) && faccessat (AT_FDCWD, path, X_OK, AT_EACCESS) == 0;
}

static int
find_program (const struct process *process, char path[PATH_MAX], struct fault *fault)
{
  const char *name = process->args[0];
  const char *dirs = process_env (process, "PATH");
  struct stat st;

  if (strchr (name, '/'))
    {
      if (stat (name, &st) < 0)
        return fail (fault, errno == EACCES ? FAULT_NOT_EXECUTABLE : FAULT_NOT_FOUND, errno, "exec: \"%.200s\": stat %.200s",
                     name, name);
      if (S_ISDIR (st.st_mode))
        return fail (fault, FAULT_NOT_EXECUTABLE, 0, "exec: \"%.200s\": is a directory", name);
      if (!is_program (name))
        return fail (fault, FAULT_NOT_EXECUTABLE, 0, "exec: \"%.200s\": permission denied", name);
      if (snprintf (path, PATH_MAX, "%s", name) >= PATH_MAX)
        return fail (fault, FAULT_NOT_FOUND, ENAMETOOLONG, "exec");
      return 0;
    }
  for (const char *dir = dirs ? dirs : DEFAULT_PATH; *name && dir;)
    {
      size_t len = strcspn (dir, ":");
      int used = snprintf (path, PATH_MAX, "%.*s/%s", len ? (int) len : 1, len ? dir : ".", name);
      if (used > 0 && used < PATH_MAX && is_program (path))
        return 0;
      dir = dir[len] ? dir + len + 1 : NULL;
    }
  return fail (fault, FAULT_NOT_FOUND, 0, "exec: \"%.200s\": executable file not found in $PATH", name);
}

int
run_process (struct process *process, bool make_cwd, struct fault *fault)
{
  char path[PATH_MAX], home[600];
  const char *given_home;
  struct user user;

  if (user_look_up (process->user, process->groups, &user, fault) < 0)
    return -1;
  give_stdio (user.uid, user.gid);
  if (set_oom_score (process->oom_score_adj, fault) < 0)
    return -1;
  if (rlimits_apply (process->limits, process->limits_set, fault) < 0)
    return -1;
  if (enter_cwd (process->cwd, make_cwd, fault) < 0)
    return -1;
  umask (0022);
  if (become (process, &user, fault) < 0)
    return -1;
  given_home = process_env (process, "HOME");
  if (!given_home || !*given_home)
    {
      char **entry = process->env;
      while (*entry && strncmp (*entry, "HOME=", 5) != 0)
        entry++;
      if (!*entry)
        entry[1] = NULL;
      snprintf (home, sizeof home, "HOME=%s", user.home);
      entry[0] = home;
    }
  if (find_program (process, path, fault) < 0)
    return -1;
  execve (path, process->args, process->env);
  return fail (fault, errno == ENOENT ? FAULT_NOT_FOUND : FAULT_NOT_EXECUTABLE, errno, "exec %.200s", path);
}
