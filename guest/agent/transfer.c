/* transfer: GET, PUT and CHANGES, each in a child of its own that talks through a pipe. */
#include "archive.h"
#include "extract.h"
#include "files.h"
#include "jobs.h"
#include "overlay.h"
#include "paths.h"
#include "streams.h"
#include "user.h"
#include "workload.h"

#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>

struct transfer
{
  struct fields fields;
  const char *path, *form;
  struct extract_options extract;
  bool copy_owner;
};

static const struct field_rule get_rules[] = { { "seq", false }, { "path", false }, { "form", false }, { NULL, false } };
static const struct field_rule put_rules[] = { { "seq", false },
                                               { "path", false },
                                               { "no_overwrite_dir", false },
                                               { "copy_owner", false },
                                               { NULL, false } };
static const struct field_rule changes_rules[] = { { "seq", false }, { NULL, false } };

/* Deep trees are walked with a descriptor for each level. */
static void
raise_limits (void)
{
  struct rlimit limit = { 4096, 4096 };
  setrlimit (RLIMIT_NOFILE, &limit);
}

/* From here on no path leads out of the workload's root. */
static int
confine (struct fault *fault)
{
  if (chroot (DIR_ROOT) < 0 || chdir ("/") < 0)
    return fail (fault, FAULT_FAILED, errno, "enter the workload's root");
  return 0;
}

static int
get_path (const struct transfer *t, struct fault *fault)
{
  static const struct archive_options options = { 0 };
  char dir[PATH_MAX], name[NAME_MAX + 1];
  size_t len = strlen (t->path);
  bool follow = false;

  while (len > 1 && t->path[len - 1] == '/')
    {
      len--;
      follow = true;
    }
  if (len >= sizeof dir)
    return fail (fault, FAULT_FAILED, ENAMETOOLONG, "path");
  memcpy (dir, t->path, len);
  dir[len] = 0;
  char *slash = strrchr (dir, '/');
  const char *last = slash ? slash + 1 : dir;
  if (strlen (last) > NAME_MAX)
    return fail (fault, FAULT_NO_SUCH_PATH, ENAMETOOLONG, "path");
  strcpy (name, last);
  follow |= !*name || strcmp (name, ".") == 0 || strcmp (name, "..") == 0;
  if (follow)
    {
      /* the directory behind a symlink; the archive keeps the name that was asked for */
      cleanup_close int fd = open (dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
      if (fd < 0)
        return fail (fault, FAULT_NO_SUCH_PATH, errno, "%.300s", t->path);
      /* of the root as Docker's: `docker cp x:/ y` puts y in the place of the first slash */
      return archive_write (1, fd, ".", *name ? name : "/", &options, fault);
    }
  if (slash)
    *slash = 0;
  cleanup_close int fd = open (slash ? (*dir ? dir : "/") : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0 || faccessat (fd, name, F_OK, AT_SYMLINK_NOFOLLOW) < 0)
    return fail (fault, FAULT_NO_SUCH_PATH, errno, "%.300s", t->path);
  return archive_write (1, fd, name, name, &options, fault);
}

/* The whole root without what is mounted on it: a bind of it alone does not bring that along. */
static int
get_root (struct fault *fault)
{
  static const struct archive_options options = { 0 };

  if (unshare (CLONE_NEWNS) < 0 || mount (NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0
      || mount (DIR_ROOT, DIR_SHARES, NULL, MS_BIND, NULL) < 0)
    return fail (fault, FAULT_FAILED, errno, "look at the root without its mounts");
  cleanup_close int fd = open (DIR_SHARES, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0)
    return fail (fault, FAULT_FAILED, errno, "open the root");
  return archive_write (1, fd, NULL, "", &options, fault);
}

static int
get_layer (struct fault *fault)
{
  static const struct archive_options options = { .layer = true };
  cleanup_close int fd = open (DIR_UPPER "/upper", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

  if (fd < 0)
    return fail (fault, FAULT_FAILED, errno, "open the upper layer");
  return archive_write (1, fd, NULL, "", &options, fault);
}

static int
work_get (void *arg, struct fault *fault)
{
  const struct transfer *t = arg;

  raise_limits ();
  if (strcmp (t->form, "root") == 0)
    return get_root (fault);
  if (strcmp (t->form, "layer") == 0)
    return get_layer (fault);
  return confine (fault) < 0 ? -1 : get_path (t, fault);
}

static int
work_put (void *arg, struct fault *fault)
{
  struct transfer *t = arg;
  const char *spec = workload_user ();
  struct user user;

  raise_limits ();
  if (confine (fault) < 0)
    return -1;
  cleanup_close int dirfd = open (t->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (dirfd < 0)
    return fail (fault, errno == ENOTDIR ? FAULT_CONFLICT : FAULT_NO_SUCH_PATH, errno, "%.300s", t->path);
  if (t->copy_owner && *spec)
    {
      if (user_look_up (spec, NULL, &user, fault) < 0)
        return -1;
      t->extract.own = true;
      t->extract.uid = user.uid;
      t->extract.gid = user.gid;
    }
  umask (0);
  return extract (0, dirfd, &t->extract, fault);
}

static int
work_changes (void *arg, struct fault *fault)
{
  cleanup_close int upper = open (DIR_UPPER "/upper", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  cleanup_close int image = open (DIR_IMAGE, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

  (void) arg;
  raise_limits ();
  if (upper < 0 || image < 0)
    return fail (fault, FAULT_FAILED, errno, "open the layers");
  return overlay_changes (1, upper, image, fault);
}

static int
start (uint16_t stream, work_fn *work, struct transfer *t, bool is_put, struct fault *fault)
{
  struct launch launch = { 0 };
  struct job *job = job_new (JOB_FILES, fault);

  if (!job)
    return -1;
  if (!stream_open (stream, job, fault)
      || job_open_stdio (job, false, is_put, 0, 0, &launch, fault) < 0)
    {
      job_free (job);
      return -1;
    }
  job->stream = stream;
  job->answers_ok = is_put;
  job->pid = launch_work (work, t, launch.stdio, &job->reports, fault);
  for (int i = 0; i < 3; i++)
    close_fd (&launch.stdio[i]);
  if (job->pid > 0)
    return 0;
  job_free (job);
  return -1;
}

int
files_get (uint16_t stream, const uint8_t *data, size_t len, struct fault *fault)
{
  struct transfer t = { 0 };

  if (fields_open (&t.fields, data, len, get_rules, fault) < 0)
    return -1;
  t.path = field_text (&t.fields, "path");
  t.form = field_text (&t.fields, "form");
  if (!t.form)
    t.form = "path";
  if (strcmp (t.form, "path") != 0 && strcmp (t.form, "root") != 0 && strcmp (t.form, "layer") != 0)
    return fail (fault, FAULT_INVALID, 0, "form \"%.40s\" is not path, root or layer", t.form);
  if (strcmp (t.form, "path") == 0 && (!t.path || t.path[0] != '/'))
    return fail (fault, FAULT_INVALID, 0, "path is not absolute");
  return start (stream, work_get, &t, false, fault);
}

int
files_put (uint16_t stream, const uint8_t *data, size_t len, struct fault *fault)
{
  struct transfer t = { 0 };
  long long no_overwrite, copy_owner;

  if (fields_open (&t.fields, data, len, put_rules, fault) < 0
      || field_number (&t.fields, "no_overwrite_dir", 0, 1, 0, &no_overwrite, fault) < 0
      || field_number (&t.fields, "copy_owner", 0, 1, 0, &copy_owner, fault) < 0)
    return -1;
  t.path = field_text (&t.fields, "path");
  t.extract.no_overwrite_dir = no_overwrite;
  t.copy_owner = copy_owner;
  if (!t.path || t.path[0] != '/')
    return fail (fault, FAULT_INVALID, 0, "path is not absolute");
  return start (stream, work_put, &t, true, fault);
}

int
files_changes (uint16_t stream, const uint8_t *data, size_t len, struct fault *fault)
{
  struct transfer t = { 0 };

  if (fields_open (&t.fields, data, len, changes_rules, fault) < 0)
    return -1;
  return start (stream, work_changes, &t, false, fault);
}
