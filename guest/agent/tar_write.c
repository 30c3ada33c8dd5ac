#include "tar.h"

#include <stdio.h>
#include <string.h>

struct pax
{
  char *data;
  size_t len;
};

/* `length SPACE key=value NEWLINE`: the length counts its own digits. */
static bool
add_record (struct pax *pax, const char *key, const void *value, size_t len)
{
  size_t rest = strlen (key) + len + 3, total = rest + 1;
  char digits[24];

  while (total != rest + (size_t) snprintf (digits, sizeof digits, "%zu", total))
    total = rest + strlen (digits);
  char *grown = realloc (pax->data, pax->len + total + 1);
  if (!grown)
    return false;
  pax->data = grown;
  int used = sprintf (grown + pax->len, "%s %s=", digits, key);
  memcpy (grown + pax->len + used, value, len);
  grown[pax->len + total - 1] = '\n';
  pax->len += total;
  return true;
}

static bool
add_number (struct pax *pax, const char *key, uint64_t value)
{
  char text[24];

  snprintf (text, sizeof text, "%llu", (unsigned long long) value);
  return add_record (pax, key, text, strlen (text));
}

static bool
is_plain (const char *text)
{
  for (; *text; text++)
    if (*text & 0x80)
      return false;
  return true;
}

/* What the plain header has no room for. */
static bool
collect_pax (struct pax *pax, const struct tar_entry *entry)
{
  bool ok = true;

  if (strlen (entry->name) > 100 || !is_plain (entry->name))
    ok &= add_record (pax, "path", entry->name, strlen (entry->name));
  if (strlen (entry->link) > 100 || !is_plain (entry->link))
    ok &= add_record (pax, "linkpath", entry->link, strlen (entry->link));
  if (entry->size >> 33)
    ok &= add_number (pax, "size", entry->size);
  if (entry->uid >> 21)
    ok &= add_number (pax, "uid", entry->uid);
  if (entry->gid >> 21)
    ok &= add_number (pax, "gid", entry->gid);
  for (size_t i = 0; i < entry->xattr_count; i++)
    {
      char key[300];
      snprintf (key, sizeof key, "SCHILY.xattr.%s", entry->xattrs[i].name);
      ok &= add_record (pax, key, entry->xattrs[i].value, entry->xattrs[i].len);
    }
  return ok;
}

static void
put_octal (uint8_t *at, size_t len, uint64_t value)
{
  char text[24];

  snprintf (text, sizeof text, "%0*llo", (int) len - 1, (unsigned long long) value);
  memcpy (at, text, len);
}

static void
make_block (uint8_t block[TAR_BLOCK], const struct tar_entry *entry, uint64_t size, char type)
{
  unsigned sum = 0;
  char text[8];

  memset (block, 0, TAR_BLOCK);
  memcpy (block, entry->name, strnlen (entry->name, 100));
  put_octal (block + 100, 8, entry->mode & 0177777);
  put_octal (block + 108, 8, entry->uid >> 21 ? 0 : entry->uid);
  put_octal (block + 116, 8, entry->gid >> 21 ? 0 : entry->gid);
  put_octal (block + 124, 12, size >> 33 ? 0 : size);
  put_octal (block + 136, 12, entry->mtime < 0 || entry->mtime >> 33 ? 0 : (uint64_t) entry->mtime);
  block[156] = (uint8_t) type;
  if (type != 'x')
    memcpy (block + 157, entry->link, strnlen (entry->link, 100));
  memcpy (block + 257, "ustar\00000", 8);
  if (entry->type == '3' || entry->type == '4')
    {
      put_octal (block + 329, 8, entry->major & 07777777);
      put_octal (block + 337, 8, entry->minor & 07777777);
    }
  memset (block + 148, ' ', 8);
  for (size_t i = 0; i < TAR_BLOCK; i++)
    sum += block[i];
  snprintf (text, sizeof text, "%06o", sum);
  memcpy (block + 148, text, 7); /* and the space stays */
}

static int
put (int fd, const void *data, size_t len, struct fault *fault)
{
  return write_all (fd, data, len) < 0 ? fail (fault, FAULT_FAILED, errno, "write the archive") : 0;
}

int
tar_pad (int fd, uint64_t size, struct fault *fault)
{
  static const uint8_t zeros[TAR_BLOCK];

  return put (fd, zeros, (size_t) ((TAR_BLOCK - size % TAR_BLOCK) % TAR_BLOCK), fault);
}

int
tar_write_header (int fd, const struct tar_entry *entry, struct fault *fault)
{
  uint8_t block[TAR_BLOCK];
  struct pax pax = { 0 };
  bool ok = collect_pax (&pax, entry);
  cleanup_free char *data = pax.data;

  if (!ok)
    return fail (fault, FAULT_FAILED, ENOMEM, "an extended header");
  if (pax.len)
    {
      make_block (block, entry, pax.len, 'x');
      if (put (fd, block, sizeof block, fault) < 0 || put (fd, data, pax.len, fault) < 0
          || tar_pad (fd, pax.len, fault) < 0)
        return -1;
    }
  make_block (block, entry, entry->size, entry->type);
  return put (fd, block, sizeof block, fault);
}

int
tar_write_end (int fd, struct fault *fault)
{
  static const uint8_t zeros[2 * TAR_BLOCK];

  return put (fd, zeros, sizeof zeros, fault);
}
