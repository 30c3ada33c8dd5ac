#include "device_rules.h"

#include "paths.h"

#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>

enum
{
  ANY = -1,
  TO_ALLOW = INT16_MAX, /* a jump whose length is not known yet */
  TO_DENY = INT16_MAX - 1,
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

size_t
device_rules_program (struct bpf_insn program[DEVICE_RULES_MAX])
{
  enum { TYPE = BPF_REG_2, ACCESS = BPF_REG_3, MAJOR = BPF_REG_4, MINOR = BPF_REG_5 };
  size_t count = 0;

  program[count++] = load (TYPE, offsetof (struct bpf_cgroup_dev_ctx, access_type));
  program[count++] = load (MAJOR, offsetof (struct bpf_cgroup_dev_ctx, major));
  program[count++] = load (MINOR, offsetof (struct bpf_cgroup_dev_ctx, minor));
  program[count++] = (struct bpf_insn){ .code = BPF_ALU64 | BPF_X | BPF_MOV, .dst_reg = ACCESS, .src_reg = TYPE };
  program[count++] = compute (BPF_AND, TYPE, 0xffff);
  program[count++] = compute (BPF_RSH, ACCESS, 16);
  program[count++] = jump (BPF_JEQ, ACCESS, BPF_DEVCG_ACC_MKNOD, TO_ALLOW);
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
load_program (void)
{
  struct bpf_insn program[DEVICE_RULES_MAX];
  union bpf_attr load_;

  memset (&load_, 0, sizeof load_);
  load_.prog_type = BPF_PROG_TYPE_CGROUP_DEVICE;
  load_.insns = (uintptr_t) program;
  load_.insn_cnt = (uint32_t) device_rules_program (program);
  load_.license = (uintptr_t) "Apache-2.0";
  return (int) syscall (SYS_bpf, BPF_PROG_LOAD, &load_, sizeof load_);
}

static int loaded = -1; /* stays: to check and compile it anew in each clone takes longer than all else here */
static bool attached;

static int
change (int command, const char *what, struct fault *fault)
{
  union bpf_attr attach;
  cleanup_close int group = open (CGROUP_WORKLOAD, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

  memset (&attach, 0, sizeof attach);
  attach.target_fd = (uint32_t) group;
  attach.attach_bpf_fd = (uint32_t) loaded;
  attach.attach_type = BPF_CGROUP_DEVICE;
  if (group < 0 || syscall (SYS_bpf, command, &attach, sizeof attach) < 0)
    return fail (fault, FAULT_FAILED, errno, "%s the rules for devices", what);
  return 0;
}

int
device_rules_apply (struct fault *fault)
{
  if (attached)
    return 0;
  if (loaded < 0 && (loaded = load_program ()) < 0)
    return fail (fault, FAULT_FAILED, errno, "load the rules for devices");
  if (change (BPF_PROG_ATTACH, "attach", fault) < 0)
    return -1;
  attached = true;
  return 0;
}

int
device_rules_lift (struct fault *fault)
{
  if (!attached)
    return 0;
  if (change (BPF_PROG_DETACH, "detach", fault) < 0)
    return -1;
  attached = false;
  return 0;
}

void
device_rules_forget (void)
{
  attached = false;
}
