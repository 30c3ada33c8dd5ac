/* Docker's rules for `user`. */
#include "test.h"
#include "user.h"

static const char passwd[] = "root:x:0:0:root:/root:/bin/sh\n"
                             "# a comment\n"
                             "broken line\n"
                             "joe:x:1000:1001::/home/joe:/bin/sh\n"
                             "nohome:x:7:7:::\n"
                             "123:x:55:56::/named:/bin/sh";
static const char group[] = "root:x:0:\nstaff:x:50:joe,ann\nwheel:x:10:root,joe\njoe:x:1001:\n";

static struct user user;
static struct fault fault;

static bool
finds (const char *spec, uid_t uid, gid_t gid, const char *home, size_t groups)
{
  char *const none[] = { NULL };
  if (user_find (spec, none, passwd, group, &user, &fault) < 0)
    return false;
  return user.uid == uid && user.gid == gid && strcmp (user.home, home) == 0 && user.group_count == groups;
}

int
main (void)
{
  char *const more[] = { "audio", NULL }, *const known[] = { "staff", "50", "99", NULL };

  EXPECT (finds ("", 0, 0, "/root", 1) && user.groups[0] == 10);
  EXPECT (finds ("root", 0, 0, "/root", 1));
  EXPECT (finds ("joe", 1000, 1001, "/home/joe", 2) && user.groups[0] == 50 && user.groups[1] == 10);
  EXPECT (finds ("1000", 1000, 1001, "/home/joe", 2));
  EXPECT (finds ("4242", 4242, 0, "/", 0));
  EXPECT (finds ("4242:4343", 4242, 4343, "/", 0));
  EXPECT (finds ("joe:staff", 1000, 50, "/home/joe", 0));
  EXPECT (finds ("joe:", 1000, 1001, "/home/joe", 2));
  EXPECT (finds ("nohome", 7, 7, "/", 0));
  EXPECT (finds ("123", 55, 56, "/named", 0));
  EXPECT (!finds ("nobody", 0, 0, "", 0));
  EXPECT_TEXT ("unable to find user nobody: no matching entries in passwd file", fault.text);
  EXPECT (!finds ("joe:none", 0, 0, "", 0));
  EXPECT_TEXT ("unable to find group none: no matching entries in group file", fault.text);
  EXPECT (user_find ("joe", more, passwd, group, &user, &fault) < 0);
  EXPECT (user_find ("4242", known, passwd, group, &user, &fault) == 0 && user.group_count == 2);
  EXPECT (user_find ("5", NULL, "", "", &user, &fault) == 0 && user.uid == 5 && user.gid == 0);
  EXPECT (user_find ("-1", NULL, "", "", &user, &fault) < 0);
  return failures;
}
