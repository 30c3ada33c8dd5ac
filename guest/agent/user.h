/* user: Docker's rules for `user` against the workload's /etc/passwd and /etc/group.  user_find is pure. */
#pragma once

#include "util.h"

enum
{
  USER_GROUPS_MAX = 256
};

struct user
{
  uid_t uid;
  gid_t gid;
  gid_t groups[USER_GROUPS_MAX];
  size_t group_count;
  char home[512];
};

/* `spec` is "", name, uid, name:group, uid:gid; `more` are additional groups, ended by NULL. */
int user_find (const char *spec, char *const *more, const char *passwd, const char *group, struct user *user,
               struct fault *fault);
/* The same with the files of the current root; a missing file is an empty one. */
int user_look_up (const char *spec, char *const *more, struct user *user, struct fault *fault);
