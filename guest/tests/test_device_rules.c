/* The rules for devices, run by a small interpreter of the instructions that they use. */
#include "device_rules.h"
#include "test.h"

static long
run (const struct bpf_insn *program, size_t count, const struct bpf_cgroup_dev_ctx *ctx)
{
  uint64_t reg[11] = { 0 };

  for (size_t at = 0; at < count; at++)
    {
      const struct bpf_insn *one = &program[at];
      uint64_t *to = &reg[one->dst_reg];
      switch (one->code)
        {
        case BPF_LDX | BPF_MEM | BPF_W:
          memcpy (to, (const char *) ctx + one->off, 4);
          break;
        case BPF_ALU64 | BPF_X | BPF_MOV:
          *to = reg[one->src_reg];
          break;
        case BPF_ALU64 | BPF_K | BPF_MOV:
          *to = (uint64_t) one->imm;
          break;
        case BPF_ALU64 | BPF_K | BPF_AND:
          *to &= (uint64_t) one->imm;
          break;
        case BPF_ALU64 | BPF_K | BPF_RSH:
          *to >>= one->imm;
          break;
        case BPF_JMP | BPF_K | BPF_JEQ:
          at += *to == (uint64_t) one->imm ? (size_t) one->off : 0;
          break;
        case BPF_JMP | BPF_K | BPF_JNE:
          at += *to != (uint64_t) one->imm ? (size_t) one->off : 0;
          break;
        case BPF_JMP | BPF_EXIT:
          return (long) reg[0];
        default:
          return -1;
        }
    }
  return -1;
}

static struct device_rules further;

static long
may (unsigned type, unsigned access, unsigned major, unsigned minor)
{
  struct bpf_insn program[DEVICE_RULES_MAX];
  struct bpf_cgroup_dev_ctx ctx = { .access_type = access << 16 | type, .major = major, .minor = minor };

  return run (program, device_rules_program (&further, program), &ctx);
}

int
main (void)
{
  struct bpf_insn program[DEVICE_RULES_MAX];
  enum { MAKE = BPF_DEVCG_ACC_MKNOD, READ = BPF_DEVCG_ACC_READ, BOTH = READ | BPF_DEVCG_ACC_WRITE };

  struct fault fault;

  EXPECT (device_rules_program (NULL, program) <= 64);
  EXPECT (may (BPF_DEVCG_DEV_CHAR, BOTH, 1, 3) == 1);
  EXPECT (may (BPF_DEVCG_DEV_CHAR, BOTH, 1, 9) == 1);
  EXPECT (may (BPF_DEVCG_DEV_CHAR, BOTH, 5, 2) == 1);
  EXPECT (may (BPF_DEVCG_DEV_CHAR, BOTH, 136, 77) == 1);
  EXPECT (may (BPF_DEVCG_DEV_BLOCK, MAKE, 254, 16) == 1);
  EXPECT (may (BPF_DEVCG_DEV_BLOCK, READ, 254, 16) == 0);
  EXPECT (may (BPF_DEVCG_DEV_BLOCK, READ, 1, 3) == 0);
  EXPECT (may (BPF_DEVCG_DEV_BLOCK, MAKE | READ, 254, 16) == 0);
  EXPECT (may (BPF_DEVCG_DEV_CHAR, READ, 1, 1) == 0);
  EXPECT (may (BPF_DEVCG_DEV_CHAR, READ, 1, 11) == 0);
  EXPECT (may (BPF_DEVCG_DEV_CHAR, READ, 5, 3) == 0);
  EXPECT (may (BPF_DEVCG_DEV_CHAR, BOTH, 245, 1) == 0);

  EXPECT (device_rules_add (&further, "c 10:229 rw", &fault) == 0);
  EXPECT (may (BPF_DEVCG_DEV_CHAR, BOTH, 10, 229) == 1);
  EXPECT (may (BPF_DEVCG_DEV_CHAR, BOTH | MAKE, 10, 229) == 0);
  EXPECT (may (BPF_DEVCG_DEV_BLOCK, BOTH, 10, 229) == 0);
  EXPECT (may (BPF_DEVCG_DEV_CHAR, READ, 10, 228) == 0);
  EXPECT (may (BPF_DEVCG_DEV_CHAR, BOTH, 1, 3) == 1);
  EXPECT (device_rules_add (&further, "b 8:* rm", &fault) == 0);
  EXPECT (may (BPF_DEVCG_DEV_BLOCK, READ, 8, 17) == 1);
  EXPECT (may (BPF_DEVCG_DEV_BLOCK, BOTH, 8, 17) == 0);
  EXPECT (may (BPF_DEVCG_DEV_CHAR, READ, 8, 17) == 0);
  EXPECT (device_rules_add (&further, "a *:* rwm", &fault) == 0);
  EXPECT (may (BPF_DEVCG_DEV_BLOCK, BOTH | MAKE, 254, 16) == 1);
  static const char *const wrong[] = { "", "c", "d 1:1 r", "c 1 r", "c 1:1", "c 1:1 ", "c 1:1 x", "c -1:1 r",
                                       "c 1:1  r", "c 4294967296:1 r", "c:1 r" };
  for (size_t i = 0; i < COUNT (wrong); i++)
    EXPECT (device_rules_add (&further, wrong[i], &fault) < 0);
  while (further.count < DEVICE_RULES_FURTHER)
    EXPECT (device_rules_add (&further, "c 1:2 rwm", &fault) == 0);
  EXPECT (device_rules_add (&further, "c 1:2 rwm", &fault) < 0);
  EXPECT (device_rules_program (&further, program) <= DEVICE_RULES_MAX);
  return failures;
}
