#include "identity.h"

#include "paths.h"

#include <fcntl.h>
#include <linux/random.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>

enum
{
  ENTROPY_LEN = 64
};

static const struct field_rule identity_rules[] = {
  { "seq", false },     { "hostname", false },   { "domainname", false }, { "entropy", false },
  { "time_ns", false }, { "machine_id", false }, { "generation", false }, { NULL, false },
};

static int
add_entropy (const char *hex, struct fault *fault)
{
  struct
  {
    int bits, len;
    uint8_t bytes[ENTROPY_LEN];
  } pool = { .bits = ENTROPY_LEN * 8, .len = ENTROPY_LEN };
  cleanup_close int fd = open ("/dev/urandom", O_RDWR | O_CLOEXEC);

  if (!hex || !parse_hex (hex, pool.bytes, ENTROPY_LEN))
    return fail (fault, FAULT_INVALID, 0, "entropy is not 64 bytes in hex");
  if (fd < 0 || ioctl (fd, RNDADDENTROPY, &pool) < 0 || ioctl (fd, RNDRESEEDCRNG) < 0)
    return fail (fault, FAULT_FAILED, errno, "reseed the kernel's random generator");
  explicit_bzero (pool.bytes, sizeof pool.bytes);
  return 0;
}

int
identity_set_clock (long long time_ns, struct fault *fault)
{
  struct timespec now = { .tv_sec = time_ns / 1000000000, .tv_nsec = time_ns % 1000000000 };

  if (clock_settime (CLOCK_REALTIME, &now) < 0)
    return fail (fault, FAULT_FAILED, errno, "set the clock");
  return 0;
}

/* The kernel makes its boot id once; clones of one memory would share it.  Processes see this file instead. */
static int
renew_boot_id (struct identity *identity, struct fault *fault)
{
  uint8_t b[16];
  char text[40];

  if (getrandom (b, sizeof b, 0) != sizeof b)
    return fail (fault, FAULT_FAILED, errno, "random bytes");
  b[6] = (uint8_t) ((b[6] & 0x0f) | 0x40);
  b[8] = (uint8_t) ((b[8] & 0x3f) | 0x80);
  snprintf (text, sizeof text, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x\n", b[0], b[1],
            b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]);
  /* in place: a running workload has this very file mounted; both files always have the same length */
  bool is_new = access (FILE_BOOT_ID, F_OK) < 0;
  if (write_text (FILE_BOOT_ID, text, O_CREAT) < 0 || (is_new && chmod (FILE_BOOT_ID, 0444) < 0))
    return fail (fault, FAULT_FAILED, errno, "keep the boot id");
  text[strcspn (text, "\n")] = 0;
  memcpy (identity->boot_id, text, sizeof text);
  return 0;
}

static int
set_machine_id (const char *id, struct fault *fault)
{
  char line[40];

  if (!*id)
    return unlink (FILE_MACHINE_ID) < 0 && errno != ENOENT ? fail (fault, FAULT_FAILED, errno, "drop the machine id") : 0;
  if (strlen (id) != 32 || strspn (id, "0123456789abcdef") != 32)
    return fail (fault, FAULT_INVALID, 0, "machine_id \"%.40s\" is not 32 hex digits", id);
  snprintf (line, sizeof line, "%s\n", id);
  if (write_text (FILE_MACHINE_ID, line, O_CREAT) < 0)
    return fail (fault, FAULT_FAILED, errno, "keep the machine id");
  return 0;
}

int
identity_take (struct identity *identity, const uint8_t *data, size_t len, struct fault *fault)
{
  struct fields fields;
  long long time_ns;

  if (fields_open (&fields, data, len, identity_rules, fault) < 0
      || field_number (&fields, "time_ns", 1, INT64_MAX, 0, &time_ns, fault) < 0)
    return -1;
  const char *generation = field_text (&fields, "generation");
  const char *hostname = field_text (&fields, "hostname"), *domainname = field_text (&fields, "domainname");
  const char *machine_id = field_text (&fields, "machine_id");
  if (!generation || !*generation || strlen (generation) >= sizeof identity->generation)
    return fail (fault, FAULT_INVALID, 0, "generation is missing or too long");
  if (time_ns == 0)
    return fail (fault, FAULT_INVALID, 0, "time_ns is missing");
  if (add_entropy (field_text (&fields, "entropy"), fault) < 0 || identity_set_clock (time_ns, fault) < 0)
    return -1;
  if (hostname && sethostname (hostname, strlen (hostname)) < 0)
    return fail (fault, FAULT_INVALID, errno, "host name \"%.100s\"", hostname);
  if (domainname && setdomainname (domainname, strlen (domainname)) < 0)
    return fail (fault, FAULT_INVALID, errno, "domain name \"%.100s\"", domainname);
  if (set_machine_id (machine_id ? machine_id : "", fault) < 0)
    return -1;
  if (strcmp (generation, identity->generation) != 0 && renew_boot_id (identity, fault) < 0)
    return -1;
  strcpy (identity->generation, generation);
  return 0;
}
