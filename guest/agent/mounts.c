#include "mounts.h"

#include "paths.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>

enum
{
  TEXT_MAX = 1 << 20,
  OPTIONS_MAX = 1024,
  FILES_MAX = 32,
};

static int
mount_at (int fd, const char *source, const char *target, const char *type, unsigned long flags, const char *data,
          struct fault *fault)
{
  char path[64];

  snprintf (path, sizeof path, "/proc/self/fd/%d", fd);
  if (mount (source, path, type, flags, data) < 0)
    return fail (fault, FAULT_FAILED, errno, "mount %.200s", target);
  return 0;
}

static int
open_root (struct fault *fault)
{
  int fd = open (DIR_ROOT, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

  return fd < 0 ? fail (fault, FAULT_FAILED, errno, "open the workload's root") : fd;
}

/* The root, or for what is below /dev the workload's own /dev, which will be mounted over the root's. */
static int
open_root_of (const char **target, struct fault *fault)
{
  if (strncmp (*target, "/dev/", 5) != 0)
    return open_root (fault);
  int fd = open (DIR_DEV, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  *target += strlen ("/dev");
  return fd < 0 ? fail (fault, FAULT_FAILED, errno, "open the workload's /dev") : fd;
}

int
mounts_make_points (struct fault *fault)
{
  static const char *const points[] = { "/proc", "/sys", "/dev" };
  cleanup_close int root = open_root (fault);

  if (root < 0)
    return -1;
  for (size_t i = 0; i < COUNT (points); i++)
    {
      cleanup_close int fd = make_in_root (root, points[i], true, 0755);
      if (fd < 0)
        return fail (fault, FAULT_FAILED, errno, "make %s", points[i]);
    }
  return 0;
}

static const struct
{
  const char *word;
  unsigned long set, clear;
} flag_words[] = {
  { "ro", MS_RDONLY, 0 },         { "rw", 0, MS_RDONLY },          { "nosuid", MS_NOSUID, 0 },
  { "suid", 0, MS_NOSUID },       { "nodev", MS_NODEV, 0 },        { "dev", 0, MS_NODEV },
  { "noexec", MS_NOEXEC, 0 },     { "exec", 0, MS_NOEXEC },        { "sync", MS_SYNCHRONOUS, 0 },
  { "noatime", MS_NOATIME, 0 },   { "nodiratime", MS_NODIRATIME, 0 }, { "relatime", MS_RELATIME, 0 },
  { "strictatime", MS_STRICTATIME, 0 }, { "-", 0, 0 }, { "", 0, 0 },
};

bool
mounts_flags (const char *words, unsigned long *flags, char *data, size_t size)
{
  while (*words)
    {
      size_t len = strcspn (words, ","), i;
      for (i = 0; i < COUNT (flag_words); i++)
        if (strlen (flag_words[i].word) == len && memcmp (flag_words[i].word, words, len) == 0)
          break;
      if (i < COUNT (flag_words))
        *flags = (*flags & ~flag_words[i].clear) | flag_words[i].set;
      else
        {
          size_t used = strlen (data);
          if (used + len + 2 > size)
            return false;
          snprintf (data + used, size - used, "%s%.*s", used ? "," : "", (int) len, words);
        }
      words += len + (words[len] == ',');
    }
  return true;
}

/* A share is mounted itself, or a part of it (`tag:path`, which may be a file). */
static int
mount_share (int root, const char *source, const char *target, unsigned long flags, const char *data,
             struct fault *fault)
{
  static unsigned count;
  char tag[64], place[64];
  const char *part = strchr (source, ':');
  struct stat st;

  if (!part)
    {
      cleanup_close int fd = make_in_root (root, target, true, 0755);
      if (fd < 0)
        return fail (fault, FAULT_FAILED, errno, "make mount point %.200s", target);
      return mount_at (fd, source, target, "virtiofs", flags, data, fault);
    }
  snprintf (tag, sizeof tag, "%.*s", (int) (part - source), source);
  snprintf (place, sizeof place, DIR_SHARES "/%u", count++);
  if (mkdir (place, 0700) < 0 || mount (tag, place, "virtiofs", flags, data) < 0)
    return fail (fault, FAULT_FAILED, errno, "mount share %s", tag);
  cleanup_close int share = open (place, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  cleanup_close int from = open_in_root (share, part + 1, O_PATH);
  if (from < 0 || fstat (from, &st) < 0)
    return fail (fault, FAULT_FAILED, errno, "open %.200s in share %s", part + 1, tag);
  cleanup_close int fd = make_in_root (root, target, S_ISDIR (st.st_mode), S_ISDIR (st.st_mode) ? 0755 : 0644);
  if (fd < 0)
    return fail (fault, FAULT_FAILED, errno, "make mount point %.200s", target);
  snprintf (place, sizeof place, "/proc/self/fd/%d", from);
  return mount_at (fd, place, target, NULL, MS_BIND, NULL, fault);
}

int
mounts_add (const char *text, struct fault *fault)
{
  cleanup_free char *copy = strdup (text);
  char *rest = copy, *parts[5], data[OPTIONS_MAX] = "";
  unsigned long flags = 0;
  size_t count = 0;

  if (!copy)
    return fail (fault, FAULT_FAILED, errno, "memory for a mount");
  while (count < COUNT (parts) && (parts[count] = strsep (&rest, "\t")))
    count++;
  if (count != COUNT (parts) || rest || parts[2][0] != '/')
    return fail (fault, FAULT_INVALID, 0, "mount \"%.100s\" is not kind, source, target, flags and options", text);
  if (!mounts_flags (parts[3], &flags, data, sizeof data) || !mounts_flags (parts[4], &flags, data, sizeof data))
    return fail (fault, FAULT_INVALID, 0, "mount %.200s: options are too long", parts[2]);
  const char *target = parts[2];
  cleanup_close int root = open_root_of (&target, fault);
  if (root < 0)
    return -1;
  if (strcmp (parts[0], "virtiofs") == 0)
    return mount_share (root, parts[1], target, flags, data, fault);
  if (strcmp (parts[0], "tmpfs") != 0)
    return fail (fault, FAULT_INVALID, 0, "mount kind \"%.40s\" is unknown", parts[0]);
  cleanup_close int fd = make_in_root (root, target, true, 0755);
  if (fd < 0)
    return fail (fault, FAULT_FAILED, errno, "make mount point %.200s", parts[2]);
  return mount_at (fd, "tmpfs", parts[2], "tmpfs", flags, data, fault);
}

bool
mounts_unescape (char *text)
{
  char *to = text;

  for (; *text; text++)
    {
      if (*text != '\\')
        {
          *to++ = *text;
          continue;
        }
      switch (*++text)
        {
        case '\\':
          *to++ = '\\';
          break;
        case 't':
          *to++ = '\t';
          break;
        case 'n':
          *to++ = '\n';
          break;
        default:
          return false;
        }
    }
  *to = 0;
  return true;
}

/* Which of our files lies over which of the workload's. */
static struct
{
  char target[256];
} known[FILES_MAX];
static unsigned files_count;
/* So many of them lie there already, ahead of CONFIGURE, without their text. */
static unsigned files_ahead;

static void
name_place (char place[64], unsigned number)
{
  snprintf (place, 64, DIR_FILES "/%u", number);
}

/* `target TAB text`, unescaped; `copy` is cut in two. */
static int
split_file (char *copy, char **content, struct fault *fault)
{
  *content = strchr (copy, '\t');
  if (!*content || copy[0] != '/' || strlen (*content) > TEXT_MAX)
    return fail (fault, FAULT_INVALID, 0, "file \"%.100s\" is not target and text", copy);
  *(*content)++ = 0;
  if (!mounts_unescape (*content) || !mounts_unescape (copy))
    return fail (fault, FAULT_INVALID, 0, "file %.200s: unknown escape", copy);
  return 0;
}

/* In place: the workload has this very file mounted. */
static int
fill_file (unsigned number, const char *content, struct fault *fault)
{
  char place[64];

  name_place (place, number);
  if (write_text (place, content, O_TRUNC) < 0)
    return fail (fault, FAULT_FAILED, errno, "keep file %.200s", known[number].target);
  return 0;
}

int
mounts_add_file (const char *text, struct fault *fault)
{
  cleanup_free char *copy = strdup (text);
  char place[64], *content;

  if (!copy)
    return fail (fault, FAULT_FAILED, errno, "memory for a file");
  if (split_file (copy, &content, fault) < 0)
    return -1;
  for (unsigned i = 0; i < files_ahead; i++)
    if (strcmp (known[i].target, copy) == 0)
      return fill_file (i, content, fault);
  if (files_count == COUNT (known) || strlen (copy) >= sizeof known->target)
    return fail (fault, FAULT_INVALID, 0, "file %.200s: too many files, or too long a name", copy);
  name_place (place, files_count);
  if (write_text (place, content, O_CREAT | O_TRUNC) < 0)
    return fail (fault, FAULT_FAILED, errno, "keep file %.200s", copy);
  cleanup_close int root = open_root (fault);
  if (root < 0)
    return -1;
  cleanup_close int fd = make_in_root (root, copy, false, 0644);
  if (fd < 0)
    return fail (fault, FAULT_FAILED, errno, "make mount point %.200s", copy);
  if (mount_at (fd, place, copy, NULL, MS_BIND, NULL, fault) < 0)
    return -1;
  strcpy (known[files_count++].target, copy);
  return 0;
}

int
mounts_renew_file (const char *text, struct fault *fault)
{
  cleanup_free char *copy = strdup (text);
  char *content;

  if (!copy)
    return fail (fault, FAULT_FAILED, errno, "memory for a file");
  if (split_file (copy, &content, fault) < 0)
    return -1;
  for (unsigned i = 0; i < files_count; i++)
    if (strcmp (known[i].target, copy) == 0)
      return fill_file (i, content, fault);
  return fail (fault, FAULT_INVALID, 0, "file %.200s is not one that was given before", copy);
}

void
mounts_drop_line (char *text, const char *line)
{
  size_t len = strlen (line);

  for (char *at = text; *at; at += strcspn (at, "\n"), at += *at == '\n')
    if (strncmp (at, line, len) == 0 && (at[len] == '\n' || !at[len]))
      {
        char *rest = at + len + (at[len] == '\n');
        memmove (at, rest, strlen (rest) + 1);
        return;
      }
}

int
mounts_edit_file (const char *text, struct fault *fault)
{
  cleanup_free char *copy = strdup (text), *content = malloc (2 * TEXT_MAX);
  struct stat st;

  if (!copy || !content)
    return fail (fault, FAULT_FAILED, errno, "memory for a line");
  char *line = strchr (copy, '\t');
  if (!line || (copy[0] != '+' && copy[0] != '-') || copy[1] != '/' || strlen (line) > TEXT_MAX / 2)
    return fail (fault, FAULT_INVALID, 0, "line \"%.100s\" is not a sign, target and text", text);
  *line++ = 0;
  if (!mounts_unescape (line) || !mounts_unescape (copy))
    return fail (fault, FAULT_INVALID, 0, "line of %.200s: unknown escape", copy);
  cleanup_close int root = open_root (fault);
  if (root < 0)
    return -1;
  cleanup_close int fd = open_in_root (root, copy + 1, O_RDWR);
  if (fd < 0 || fstat (fd, &st) < 0 || !S_ISREG (st.st_mode))
    return fail (fault, FAULT_FAILED, errno, "open %.200s", copy + 1);
  if (st.st_size > TEXT_MAX)
    return 0; /* the workload has made something else of it */
  ssize_t got = read_all (fd, content, TEXT_MAX);
  if (got < 0)
    return fail (fault, FAULT_FAILED, errno, "read %.200s", copy + 1);
  content[got] = 0;
  if (copy[0] == '-')
    mounts_drop_line (content, line);
  else
    snprintf (content + got, 2 * TEXT_MAX - (size_t) got, "%s%s\n", got && content[got - 1] != '\n' ? "\n" : "", line);
  if (ftruncate (fd, 0) < 0 || lseek (fd, 0, SEEK_SET) < 0 || write_all (fd, content, strlen (content)) < 0)
    return fail (fault, FAULT_FAILED, errno, "write %.200s", copy + 1);
  return 0;
}

int
mounts_keep_ahead (struct fault *fault)
{
  if (mounts_make_points (fault) < 0 || (files_count && mounts_add_machine_id (fault) < 0))
    return -1;
  files_ahead = files_count;
  return 0;
}

bool
mounts_have_ahead (void)
{
  return files_ahead > 0;
}

int
mounts_add_machine_id (struct fault *fault)
{
  struct stat st;
  cleanup_close int root = open_root (fault);

  if (root < 0)
    return -1;
  if (access (FILE_MACHINE_ID, F_OK) < 0 && write_text (FILE_MACHINE_ID, "", O_CREAT) < 0)
    return fail (fault, FAULT_FAILED, errno, "keep the machine id");
  cleanup_close int fd = open_in_root (root, "/etc/machine-id", O_PATH);
  if (fd < 0 || fstat (fd, &st) < 0 || !S_ISREG (st.st_mode))
    return 0; /* the image does not want one */
  return mount_at (fd, FILE_MACHINE_ID, "/etc/machine-id", NULL, MS_BIND, NULL, fault);
}

/* The next IDENTITY writes over them. */
static bool
is_identity (const char *name)
{
  static const char *const kept[] = { FILE_BOOT_ID, FILE_MACHINE_ID };

  for (size_t i = 0; i < COUNT (kept); i++)
    if (strcmp (name, kept[i] + strlen (DIR_FILES "/")) == 0)
      return true;
  return false;
}

void
mounts_forget_files (void)
{
  struct dirent *entry;
  cleanup_dir DIR *dir = opendir (DIR_FILES);

  while (dir && (entry = readdir (dir)))
    if (entry->d_name[0] != '.' && !is_identity (entry->d_name) && unlinkat (dirfd (dir), entry->d_name, 0) < 0)
      say ("remove %s: %s", entry->d_name, strerror (errno));
  files_count = files_ahead = 0;
}
