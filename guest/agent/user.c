#include "user.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

enum
{
  FILE_MAX = 1 << 20,
  LINE_MAX_LEN = 8192,
  FIELDS_MAX = 7,
};

/* Copy the next line into `line`, cut it at its colons; false at the end.  Longer lines are cut off. */
static bool
next_line (const char **at, char line[LINE_MAX_LEN], char *parts[FIELDS_MAX], size_t *count)
{
  if (!**at)
    return false;
  size_t len = strcspn (*at, "\n");
  size_t kept = len < LINE_MAX_LEN ? len : LINE_MAX_LEN - 1;
  memcpy (line, *at, kept);
  line[kept] = 0;
  *at += len + ((*at)[len] == '\n');
  *count = 0;
  for (char *part = line; part && *count < FIELDS_MAX;)
    {
      char *colon = strchr (part, ':');
      parts[(*count)++] = part;
      if (colon)
        *colon++ = 0;
      part = colon;
    }
  return true;
}

static bool
parse_id (const char *text, unsigned *id)
{
  long long value;

  if (*text == '-' || !parse_number (text, 0, 0xfffffffe, &value))
    return false;
  *id = (unsigned) value;
  return true;
}

static bool
find_group (const char *group, const char *want, gid_t *gid)
{
  char line[LINE_MAX_LEN], *parts[FIELDS_MAX];
  unsigned number, id;
  bool numeric = parse_id (want, &number);
  size_t count;

  while (next_line (&group, line, parts, &count))
    if (count >= 3 && parse_id (parts[2], &id) && (strcmp (parts[0], want) == 0 || (numeric && id == number)))
      {
        *gid = id;
        return true;
      }
  if (numeric)
    *gid = number;
  return numeric;
}

static void
add_group (struct user *user, gid_t gid)
{
  for (size_t i = 0; i < user->group_count; i++)
    if (user->groups[i] == gid)
      return;
  if (user->group_count < USER_GROUPS_MAX)
    user->groups[user->group_count++] = gid;
}

static void
add_memberships (struct user *user, const char *name, const char *group)
{
  char line[LINE_MAX_LEN], *parts[FIELDS_MAX];
  unsigned gid;
  size_t count;

  while (next_line (&group, line, parts, &count))
    {
      if (count < 4 || !parse_id (parts[2], &gid))
        continue;
      char *save, *member = strtok_r (parts[3], ",", &save);
      for (; member; member = strtok_r (NULL, ",", &save))
        if (strcmp (member, name) == 0)
          add_group (user, gid);
    }
}

int
user_find (const char *spec, char *const *more, const char *passwd, const char *group, struct user *user,
           struct fault *fault)
{
  char line[LINE_MAX_LEN], *parts[FIELDS_MAX], want[256], name[256] = "";
  const char *colon = strchr (spec, ':');
  const char *want_group = colon ? colon + 1 : "";
  size_t count, len = colon ? (size_t) (colon - spec) : strlen (spec);
  unsigned number = 0, uid, gid;
  bool found = false;

  *user = (struct user){ .home = "/" };
  if (len >= sizeof want)
    return fail (fault, FAULT_INVALID, 0, "user name is too long");
  memcpy (want, spec, len);
  want[len] = 0;
  bool numeric = !len || parse_id (want, &number);
  while (!found && next_line (&passwd, line, parts, &count))
    if (count >= 4 && parse_id (parts[2], &uid) && parse_id (parts[3], &gid)
        && ((len && strcmp (parts[0], want) == 0) || (numeric && uid == number)))
      {
        found = true;
        user->uid = uid;
        user->gid = gid;
        snprintf (name, sizeof name, "%s", parts[0]);
        if (count >= 6 && *parts[5])
          snprintf (user->home, sizeof user->home, "%s", parts[5]);
      }
  if (!found && !numeric)
    return fail (fault, FAULT_INVALID, 0, "unable to find user %s: no matching entries in passwd file", want);
  if (!found)
    user->uid = number;
  if (*want_group)
    {
      if (!find_group (group, want_group, &user->gid))
        return fail (fault, FAULT_INVALID, 0, "unable to find group %.200s: no matching entries in group file",
                     want_group);
    }
  else if (found)
    add_memberships (user, name, group);
  for (; more && *more; more++)
    {
      gid_t extra;
      if (!find_group (group, *more, &extra))
        return fail (fault, FAULT_INVALID, 0, "unable to find group %.200s: no matching entries in group file", *more);
      add_group (user, extra);
    }
  return 0;
}

/* An empty text for a file that is not there. */
static void
read_file (const char *path, char text[FILE_MAX])
{
  struct stat st;
  /* the workload owns the file: not a fifo that blocks */
  cleanup_close int fd = open (path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  ssize_t got = -1;

  if (fd >= 0 && fstat (fd, &st) == 0 && S_ISREG (st.st_mode))
    got = read_all (fd, text, FILE_MAX - 1);
  text[got > 0 ? got : 0] = 0;
}

int
user_look_up (const char *spec, char *const *more, struct user *user, struct fault *fault)
{
  static char passwd[FILE_MAX], group[FILE_MAX]; /* so much from malloc would be mapped and unmapped */

  read_file ("/etc/passwd", passwd);
  read_file ("/etc/group", group);
  if (user_find (spec, more, passwd, group, user, fault) < 0)
    return -1;
  add_group (user, user->gid); /* or a file that denies this group something would not: CVE-2022-36109 */
  return 0;
}
