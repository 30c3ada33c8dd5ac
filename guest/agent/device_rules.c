#include "device_rules.h"

#include "paths.h"

#include <ctype.h>
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>

enum
{
  ANY = -1,
  TO_ALLOW = INT16_MAX, /* a jump whose length is not known yet */
  TO_DENY = INT16_MAX - 1,
  TO_NEXT = INT16_MAX - 2,
};

static const struct
{
  int major, minor;
} allowed[] = {
  { 1, 3 }, { 1, 5 }, { 1, 7 }, { 1, 8 }, { 1, 9 }, { 5, 0 }, { 5, 1 }, { 5, 2 }, { 136, ANY },
};

static struct bpf_insn
load (int to, size_t offset)
{
  return (struct bpf_insn){ .code = BPF_LDX | BPF_MEM | BPF_W, .dst_reg = to, .src_reg = BPF_REG_1, .off = (int16_t) offset };
}

static struct bpf_insn
compute (int operation, int to, int value)
{
  return (struct bpf_insn){ .code = BPF_ALU64 | BPF_K | operation, .dst_reg = to, .imm = value };
}

static struct bpf_insn
jump (int operation, int left, int right, int16_t over)
{
  return (struct bpf_insn){ .code = BPF_JMP | BPF_K | operation, .dst_reg = left, .imm = right, .off = over };
}

enum
{
  TYPE = BPF_REG_2,
  ACCESS = BPF_REG_3,
  MAJOR = BPF_REG_4,
  MINOR = BPF_REG_5,
  LEFT = BPF_REG_6, /* of the access, what a rule does not give */
};

static const unsigned every_access = BPF_DEVCG_ACC_MKNOD | BPF_DEVCG_ACC_READ | BPF_DEVCG_ACC_WRITE;

static bool
take_number (const char **text, int *number)
{
  if (**text == '*')
    {
      *number = ANY;
      ++*text;
      return true;
    }
  char *end;
  long value = strtol (*text, &end, 10);
  if (!isdigit ((unsigned char) **text) || value > INT32_MAX)
    return false;
  *number = (int) value;
  *text = end;
  return true;
}

int
device_rules_add (struct device_rules *further, const char *text, struct fault *fault)
{
  struct device_rule rule = { .type = *text };
  const char *at = text + 1;

  if (further->count == DEVICE_RULES_FURTHER)
    return fail (fault, FAULT_INVALID, 0, "there are more than %d rules for devices", DEVICE_RULES_FURTHER);
  if (!*text || !strchr ("abc", *text) || *at++ != ' ' || !take_number (&at, &rule.major) || *at++ != ':'
      || !take_number (&at, &rule.minor) || *at++ != ' ' || !*at || at[strspn (at, "rwm")])
    return fail (fault, FAULT_INVALID, 0, "device \"%.60s\" is not type major:minor access", text);
  for (; *at; at++)
    rule.access |= *at == 'r' ? BPF_DEVCG_ACC_READ : *at == 'w' ? BPF_DEVCG_ACC_WRITE : BPF_DEVCG_ACC_MKNOD;
  further->rules[further->count++] = rule;
  return 0;
}

/* Its instructions; whoever does not fit comes to the next rule. */
static size_t
add_rule (const struct device_rule *rule, struct bpf_insn *program)
{
  size_t count = 0;

  if (rule->type != 'a')
    program[count++] = jump (BPF_JNE, TYPE, rule->type == 'b' ? BPF_DEVCG_DEV_BLOCK : BPF_DEVCG_DEV_CHAR, TO_NEXT);
  if (rule->major != ANY)
    program[count++] = jump (BPF_JNE, MAJOR, rule->major, TO_NEXT);
  if (rule->minor != ANY)
    program[count++] = jump (BPF_JNE, MINOR, rule->minor, TO_NEXT);
  program[count++] = (struct bpf_insn){ .code = BPF_ALU64 | BPF_X | BPF_MOV, .dst_reg = LEFT, .src_reg = ACCESS };
  program[count++] = compute (BPF_AND, LEFT, (int) (every_access & ~rule->access));
  program[count++] = jump (BPF_JEQ, LEFT, 0, TO_ALLOW);
  for (size_t i = 0; i < count; i++)
    if (program[i].off == TO_NEXT)
      program[i].off = (int16_t) (count - i - 1);
  return count;
}

size_t
device_rules_program (const struct device_rules *further, struct bpf_insn program[DEVICE_RULES_MAX])
{
  size_t count = 0;

  program[count++] = load (TYPE, offsetof (struct bpf_cgroup_dev_ctx, access_type));
  program[count++] = load (MAJOR, offsetof (struct bpf_cgroup_dev_ctx, major));
  program[count++] = load (MINOR, offsetof (struct bpf_cgroup_dev_ctx, minor));
  program[count++] = (struct bpf_insn){ .code = BPF_ALU64 | BPF_X | BPF_MOV, .dst_reg = ACCESS, .src_reg = TYPE };
  program[count++] = compute (BPF_AND, TYPE, 0xffff);
  program[count++] = compute (BPF_RSH, ACCESS, 16);
  program[count++] = jump (BPF_JEQ, ACCESS, BPF_DEVCG_ACC_MKNOD, TO_ALLOW);
  for (size_t i = 0; further && i < further->count; i++)
    count += add_rule (&further->rules[i], program + count);
  program[count++] = jump (BPF_JNE, TYPE, BPF_DEVCG_DEV_CHAR, TO_DENY);
  for (size_t i = 0; i < COUNT (allowed); i++)
    {
      if (allowed[i].minor == ANY)
        {
          program[count++] = jump (BPF_JEQ, MAJOR, allowed[i].major, TO_ALLOW);
          continue;
        }
      program[count++] = jump (BPF_JNE, MAJOR, allowed[i].major, 1);
      program[count++] = jump (BPF_JEQ, MINOR, allowed[i].minor, TO_ALLOW);
    }
  size_t deny = count;
  program[count++] = compute (BPF_MOV, BPF_REG_0, 0);
  program[count++] = (struct bpf_insn){ .code = BPF_JMP | BPF_EXIT };
  size_t allow = count;
  program[count++] = compute (BPF_MOV, BPF_REG_0, 1);
  program[count++] = (struct bpf_insn){ .code = BPF_JMP | BPF_EXIT };
  for (size_t i = 0; i < deny; i++)
    {
      if (program[i].off == TO_ALLOW)
        program[i].off = (int16_t) (allow - i - 1);
      if (program[i].off == TO_DENY)
        program[i].off = (int16_t) (deny - i - 1);
    }
  return count;
}

static int
load_program (const struct device_rules *further)
{
  struct bpf_insn program[DEVICE_RULES_MAX];
  union bpf_attr load_;

  memset (&load_, 0, sizeof load_);
  load_.prog_type = BPF_PROG_TYPE_CGROUP_DEVICE;
  load_.insns = (uintptr_t) program;
  load_.insn_cnt = (uint32_t) device_rules_program (further, program);
  load_.license = (uintptr_t) "Apache-2.0";
  return (int) syscall (SYS_bpf, BPF_PROG_LOAD, &load_, sizeof load_);
}

static int loaded = -1; /* stays: to check and compile it anew in each clone takes longer than all else here */
static bool attached;

static int
change (int command, int program, const char *what, struct fault *fault)
{
  union bpf_attr attach;
  cleanup_close int group = open (CGROUP_WORKLOAD, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

  memset (&attach, 0, sizeof attach);
  attach.target_fd = (uint32_t) group;
  attach.attach_bpf_fd = (uint32_t) program;
  attach.attach_type = BPF_CGROUP_DEVICE;
  if (group < 0 || syscall (SYS_bpf, command, &attach, sizeof attach) < 0)
    return fail (fault, FAULT_FAILED, errno, "%s the rules for devices", what);
  return 0;
}

int
device_rules_apply (const struct device_rules *further, struct fault *fault)
{
  cleanup_close int own = -1;

  if (further && further->count)
    { /* in the place of those that were attached before */
      if ((own = load_program (further)) < 0)
        return fail (fault, FAULT_FAILED, errno, "load the rules for devices");
      if (change (BPF_PROG_ATTACH, own, "attach", fault) < 0)
        return -1;
      attached = true;
      return 0;
    }
  if (attached)
    return 0;
  if (loaded < 0 && (loaded = load_program (NULL)) < 0)
    return fail (fault, FAULT_FAILED, errno, "load the rules for devices");
  if (change (BPF_PROG_ATTACH, loaded, "attach", fault) < 0)
    return -1;
  attached = true;
  return 0;
}

int
device_rules_lift (struct fault *fault)
{
  if (!attached)
    return 0;
  if (change (BPF_PROG_DETACH, loaded, "detach", fault) < 0)
    return -1;
  attached = false;
  return 0;
}

void
device_rules_forget (void)
{
  attached = false;
}
