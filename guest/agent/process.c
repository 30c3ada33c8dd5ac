#include "process.h"

#include "caps.h"
#include "rlimits.h"

#include <string.h>

static const struct field_rule process_rules[] = {
  { "arg", true },        { "env", true },         { "cwd", false },     { "user", false },
  { "group", true },      { "tty", false },        { "stdin", false },   { "stdin_once", false },
  { "rows", false },      { "cols", false },       { "cap", true },      { "rlimit", true },
  { "init", false },      { "no_new_privs", false }, { "masked", true }, { "readonly", true },
  { "privileged", false }, { "oom_score_adj", false }, { "seq", false }, { NULL, false },
};

static char **
collect (char ***next, const struct fields *fields, const char *key)
{
  char **start = *next;
  const char *k, *value;
  size_t at = 0;

  while (fields_next (fields, &at, &k, &value))
    if (strcmp (k, key) == 0)
      *(*next)++ = (char *) value;
  *(*next)++ = NULL;
  return start;
}

static int
take_flag (const struct fields *fields, const char *key, bool *flag, struct fault *fault)
{
  long long value;

  if (field_number (fields, key, 0, 1, 0, &value, fault) < 0)
    return -1;
  *flag = value;
  return 0;
}

static int
take_numbers (struct process *process, const struct fields *fields, struct fault *fault)
{
  long long rows, cols, oom;

  if (take_flag (fields, "tty", &process->tty, fault) < 0 || take_flag (fields, "stdin", &process->open_stdin, fault) < 0
      || take_flag (fields, "stdin_once", &process->stdin_once, fault) < 0
      || take_flag (fields, "no_new_privs", &process->no_new_privs, fault) < 0
      || take_flag (fields, "init", &process->init, fault) < 0
      || take_flag (fields, "privileged", &process->privileged, fault) < 0
      || field_number (fields, "rows", 0, 65535, 0, &rows, fault) < 0
      || field_number (fields, "cols", 0, 65535, 0, &cols, fault) < 0
      || field_number (fields, "oom_score_adj", -1000, 1000, 0, &oom, fault) < 0)
    return -1;
  process->rows = (int) rows;
  process->cols = (int) cols;
  process->oom_score_adj = (int) oom;
  return 0;
}

static int
take_rights (struct process *process, const struct fields *fields, struct fault *fault)
{
  const char *key, *value;
  size_t at = 0;

  while (fields_next (fields, &at, &key, &value))
    {
      if (strcmp (key, "cap") == 0 && caps_add (&process->caps, value, fault) < 0)
        return -1;
      if (strcmp (key, "rlimit") == 0 && rlimit_add (process->limits, &process->limits_set, value, fault) < 0)
        return -1;
      if ((strcmp (key, "masked") == 0 || strcmp (key, "readonly") == 0) && value[0] != '/')
        return fail (fault, FAULT_INVALID, 0, "field \"%s\": \"%.100s\" is not an absolute path", key, value);
    }
  return 0;
}

static int
take_process (struct process *process, const uint8_t *data, size_t len, struct fault *fault)
{
  struct fields fields;
  char **next;
  size_t lists;

  process->blob = malloc (len + 1);
  if (!process->blob)
    return fail (fault, FAULT_FAILED, errno, "memory for a process");
  memcpy (process->blob, data, len);
  if (fields_open (&fields, (const uint8_t *) process->blob, len, process_rules, fault) < 0)
    return -1;
  /* +1: room for HOME, which the launch adds */
  lists = field_count (&fields, "arg") + field_count (&fields, "env") + field_count (&fields, "group")
          + field_count (&fields, "masked") + field_count (&fields, "readonly") + 6;
  next = process->list = calloc (lists, sizeof *process->list);
  if (!next)
    return fail (fault, FAULT_FAILED, errno, "memory for a process");
  process->args = collect (&next, &fields, "arg");
  process->groups = collect (&next, &fields, "group");
  process->masked = collect (&next, &fields, "masked");
  process->readonly = collect (&next, &fields, "readonly");
  process->env = collect (&next, &fields, "env");
  if (!process->args[0])
    return fail (fault, FAULT_INVALID, 0, "a process needs at least one \"arg\"");
  process->cwd = field_text (&fields, "cwd");
  if (!process->cwd || !*process->cwd)
    process->cwd = "/";
  if (process->cwd[0] != '/')
    return fail (fault, FAULT_INVALID, 0, "cwd \"%.100s\" is not an absolute path", process->cwd);
  process->user = field_text (&fields, "user");
  if (!process->user)
    process->user = "";
  if (take_numbers (process, &fields, fault) < 0)
    return -1;
  return take_rights (process, &fields, fault);
}

int
process_open (struct process *process, const uint8_t *data, size_t len, struct fault *fault)
{
  *process = (struct process){ 0 };
  if (take_process (process, data, len, fault) == 0)
    return 0;
  process_close (process);
  return -1;
}

int
process_set_filter (struct process *process, const struct sock_filter *filter, size_t count, struct fault *fault)
{
  if (count == 0)
    return 0;
  process->filter = malloc (count * sizeof *filter);
  if (!process->filter)
    return fail (fault, FAULT_FAILED, errno, "memory for a seccomp filter");
  memcpy (process->filter, filter, count * sizeof *filter);
  process->filter_len = count;
  return 0;
}

void
process_close (struct process *process)
{
  free (process->blob);
  free (process->list);
  free (process->filter);
  *process = (struct process){ 0 };
}

const char *
process_env (const struct process *process, const char *name)
{
  size_t len = strlen (name);

  for (char **entry = process->env; *entry; entry++)
    if (strncmp (*entry, name, len) == 0 && (*entry)[len] == '=')
      return *entry + len + 1;
  return NULL;
}
