#include "tar.h"

#include <string.h>

static int
read_block (struct tar_reader *reader, uint8_t block[TAR_BLOCK], struct fault *fault)
{
  ssize_t got = read_all (reader->fd, block, TAR_BLOCK);

  if (got < 0)
    return fail (fault, FAULT_FAILED, errno, "read the archive");
  if (got != 0 && got != TAR_BLOCK)
    return fail (fault, FAULT_INVALID, 0, "the archive ends in the middle of a header");
  return got == TAR_BLOCK;
}

/* Octal text, or GNU's base 256 for what is too large for it. */
static bool
parse_field (const uint8_t *at, size_t len, uint64_t *value)
{
  size_t i = 0;

  *value = 0;
  if (at[0] & 0x80)
    {
      if (at[0] != 0x80)
        return false; /* negative, or more than 64 bits */
      for (i = 1; i < len; i++)
        {
          if (*value >> 56)
            return false;
          *value = *value << 8 | at[i];
        }
      return true;
    }
  while (i < len && at[i] == ' ')
    i++;
  for (; i < len && at[i] >= '0' && at[i] <= '7'; i++)
    *value = *value << 3 | (uint64_t) (at[i] - '0');
  return i == len || at[i] == 0 || at[i] == ' ';
}

static bool
checksum_fits (const uint8_t block[TAR_BLOCK])
{
  uint64_t want;
  unsigned sum = 0;

  for (size_t i = 0; i < TAR_BLOCK; i++)
    sum += i >= 148 && i < 156 ? ' ' : block[i];
  return parse_field (block + 148, 8, &want) && want == sum;
}

static bool
is_zero (const uint8_t block[TAR_BLOCK])
{
  for (size_t i = 0; i < TAR_BLOCK; i++)
    if (block[i])
      return false;
  return true;
}

static int
skip_rest (struct tar_reader *reader, struct fault *fault)
{
  uint8_t bytes[16384];
  uint64_t left = reader->left + reader->padding;

  while (left)
    {
      size_t want = left < sizeof bytes ? (size_t) left : sizeof bytes;
      ssize_t got = read_all (reader->fd, bytes, want);
      if (got < 0)
        return fail (fault, FAULT_FAILED, errno, "read the archive");
      if ((size_t) got != want)
        return fail (fault, FAULT_INVALID, 0, "the archive ends in the middle of a file");
      left -= want;
    }
  reader->left = reader->padding = 0;
  return 0;
}

static void
expect_bytes (struct tar_reader *reader, uint64_t size)
{
  reader->left = size;
  reader->padding = (size_t) ((TAR_BLOCK - size % TAR_BLOCK) % TAR_BLOCK);
}

/* The bytes of an extended header or long name, NUL-terminated; the caller frees. */
static uint8_t *
read_extra (struct tar_reader *reader, uint64_t size, struct fault *fault)
{
  if (size > TAR_PAX_MAX)
    {
      fail (fault, FAULT_INVALID, 0, "an extended header in the archive is too long");
      return NULL;
    }
  cleanup_free uint8_t *bytes = malloc ((size_t) size + 1);
  if (!bytes)
    {
      fail (fault, FAULT_FAILED, errno, "memory for an extended header");
      return NULL;
    }
  expect_bytes (reader, size);
  if (read_all (reader->fd, bytes, (size_t) size) != (ssize_t) size)
    {
      fail (fault, FAULT_INVALID, 0, "the archive ends in an extended header");
      return NULL;
    }
  reader->left = 0;
  bytes[size] = 0;
  if (skip_rest (reader, fault) < 0)
    return NULL;
  uint8_t *result = bytes;
  bytes = NULL;
  return result;
}

static int
set_text (char to[PATH_MAX], const char *text, size_t len, struct fault *fault)
{
  if (len >= PATH_MAX || memchr (text, 0, len))
    return fail (fault, FAULT_INVALID, 0, "a name in the archive is too long or holds a NUL");
  memcpy (to, text, len);
  to[len] = 0;
  return 0;
}

struct overrides
{
  bool size, uid, gid, mtime;
};

static bool
take_time (const char *value, struct tar_entry *entry)
{
  char *end;
  long digit = 100000000;

  entry->mtime = strtoll (value, &end, 10);
  entry->mtime_ns = 0;
  if (end == value)
    return false;
  if (*end == '.')
    for (end++; *end >= '0' && *end <= '9'; end++, digit /= 10)
      entry->mtime_ns += digit * (*end - '0');
  return *end == 0;
}

/* One `key=value` of a PAX header; `value` is NUL-terminated. */
static int
take_record (struct tar_entry *entry, struct overrides *over, const char *key, const char *value, size_t len,
             struct fault *fault)
{
  static const char xattr[] = "SCHILY.xattr.";
  long long n = 0;

  if (strcmp (key, "path") == 0)
    return set_text (entry->name, value, len, fault);
  if (strcmp (key, "linkpath") == 0)
    return set_text (entry->link, value, len, fault);
  if (strcmp (key, "mtime") == 0)
    {
      over->mtime = true;
      return take_time (value, entry) ? 0 : fail (fault, FAULT_INVALID, 0, "mtime \"%.40s\" in the archive", value);
    }
  if (strncmp (key, xattr, sizeof xattr - 1) == 0)
    {
      if (entry->xattr_count == TAR_XATTRS_MAX)
        return fail (fault, FAULT_INVALID, 0, "more than %d extended attributes on a file", TAR_XATTRS_MAX);
      entry->xattrs[entry->xattr_count++]
          = (struct tar_xattr){ key + sizeof xattr - 1, (const uint8_t *) value, len };
      return 0;
    }
  bool size = strcmp (key, "size") == 0, uid = strcmp (key, "uid") == 0, gid = strcmp (key, "gid") == 0;
  if (!size && !uid && !gid)
    return 0; /* atime, ctime, comments: nothing that an extracted file keeps */
  if (!parse_number (value, 0, size ? INT64_MAX : 0xfffffffe, &n))
    return fail (fault, FAULT_INVALID, 0, "%s \"%.40s\" in the archive", key, value);
  over->size |= size;
  over->uid |= uid;
  over->gid |= gid;
  if (size)
    entry->size = (uint64_t) n;
  if (uid)
    entry->uid = (uid_t) n;
  if (gid)
    entry->gid = (gid_t) n;
  return 0;
}

/* Records are `length SPACE key=value NEWLINE`, the length counting all of itself. */
static int
take_pax (struct tar_entry *entry, struct overrides *over, uint8_t *bytes, size_t len, struct fault *fault)
{
  char *at = (char *) bytes, *end = at + len;

  while (at < end)
    {
      char *space, *equals;
      unsigned long size = strtoul (at, &space, 10);
      if (*at < '1' || *at > '9' || *space != ' ' || size > (size_t) (end - at) || at + size <= space + 1
          || at[size - 1] != '\n' || !(equals = memchr (space + 1, '=', (size_t) (at + size - space - 1))))
        return fail (fault, FAULT_INVALID, 0, "a broken extended header in the archive");
      *equals = 0;
      at[size - 1] = 0;
      if (strlen (space + 1) != (size_t) (equals - space - 1))
        return fail (fault, FAULT_INVALID, 0, "a broken extended header in the archive");
      if (take_record (entry, over, space + 1, equals + 1, (size_t) (at + size - 1 - (equals + 1)), fault) < 0)
        return -1;
      at += size;
    }
  return 0;
}

static int
take_header (struct tar_entry *entry, const struct overrides *over, const uint8_t *block, struct fault *fault)
{
  uint64_t mode, uid, gid, size, mtime, major, minor;
  bool ustar = memcmp (block + 257, "ustar", 5) == 0;
  size_t len;

  if (!parse_field (block + 100, 8, &mode) || !parse_field (block + 108, 8, &uid) || !parse_field (block + 116, 8, &gid)
      || !parse_field (block + 124, 12, &size) || !parse_field (block + 136, 12, &mtime)
      || !parse_field (block + 329, 8, &major) || !parse_field (block + 337, 8, &minor) || size > INT64_MAX
      || uid > 0xfffffffe || gid > 0xfffffffe || mtime > INT64_MAX)
    return fail (fault, FAULT_INVALID, 0, "a broken header in the archive");
  entry->mode = (mode_t) mode & 07777;
  entry->major = (unsigned) major;
  entry->minor = (unsigned) minor;
  if (!over->uid)
    entry->uid = (uid_t) uid;
  if (!over->gid)
    entry->gid = (gid_t) gid;
  if (!over->size)
    entry->size = size;
  if (!over->mtime)
    entry->mtime = (int64_t) mtime;
  if (!*entry->link)
    {
      len = strnlen ((const char *) block + 157, 100);
      memcpy (entry->link, block + 157, len);
      entry->link[len] = 0;
    }
  if (!*entry->name)
    {
      size_t prefix = ustar && block[262] != ' ' ? strnlen ((const char *) block + 345, 155) : 0;
      memcpy (entry->name, block + 345, prefix);
      if (prefix)
        entry->name[prefix++] = '/';
      len = strnlen ((const char *) block, 100);
      memcpy (entry->name + prefix, block, len);
      entry->name[prefix + len] = 0;
    }
  entry->type = block[156] == 0 || block[156] == '7' ? '0' : (char) block[156];
  if (entry->type == '0' && *entry->name && entry->name[strlen (entry->name) - 1] == '/')
    entry->type = '5'; /* from before POSIX */
  if (entry->type < '0' || entry->type > '6')
    return fail (fault, FAULT_INVALID, 0, "entry %.200s has the unsupported type '%c'", entry->name,
                 entry->type >= ' ' && entry->type < 127 ? entry->type : '?');
  if (entry->type != '0')
    entry->size = 0;
  if (!*entry->name)
    return fail (fault, FAULT_INVALID, 0, "an entry of the archive has no name");
  return 0;
}

/* What comes before an entry and belongs to it.  1: taken; 0: this is the entry's own header. */
static int
take_prelude (struct tar_reader *reader, struct tar_entry *entry, struct overrides *over, const uint8_t *block,
              struct fault *fault)
{
  uint64_t size;
  char type = (char) block[156];

  if (type != 'x' && type != 'g' && type != 'L' && type != 'K')
    return 0;
  if (!parse_field (block + 124, 12, &size))
    return fail (fault, FAULT_INVALID, 0, "a broken header in the archive");
  cleanup_free uint8_t *bytes = read_extra (reader, size, fault);
  if (!bytes)
    return -1;
  if (type == 'L' || type == 'K')
    return set_text (type == 'L' ? entry->name : entry->link, (char *) bytes, strlen ((char *) bytes), fault) < 0 ? -1
                                                                                                                  : 1;
  if (type == 'g')
    return 1; /* of the archive, not of a file */
  if (reader->pax)
    return fail (fault, FAULT_INVALID, 0, "an entry of the archive has two extended headers");
  reader->pax = bytes;
  bytes = NULL;
  return take_pax (entry, over, reader->pax, (size_t) size, fault) < 0 ? -1 : 1;
}

int
tar_next (struct tar_reader *reader, struct tar_entry *entry, struct fault *fault)
{
  uint8_t block[TAR_BLOCK];
  struct overrides over = { 0 };
  int more, taken;

  if (skip_rest (reader, fault) < 0)
    return -1;
  free (reader->pax);
  reader->pax = NULL;
  entry->name[0] = entry->link[0] = 0;
  entry->mtime_ns = 0;
  entry->xattr_count = 0;
  for (;;)
    {
      more = read_block (reader, block, fault);
      if (more <= 0 || is_zero (block))
        return more < 0 ? -1 : 0;
      if (!checksum_fits (block))
        return fail (fault, FAULT_INVALID, 0, "this is not a tar archive, or it is damaged");
      taken = take_prelude (reader, entry, &over, block, fault);
      if (taken < 0)
        return -1;
      if (taken)
        continue;
      if (take_header (entry, &over, block, fault) < 0)
        return -1;
      expect_bytes (reader, entry->size);
      return 1;
    }
}

ssize_t
tar_read (struct tar_reader *reader, void *data, size_t len, struct fault *fault)
{
  size_t want = reader->left < len ? (size_t) reader->left : len;
  ssize_t got = read_all (reader->fd, data, want);

  if (got < 0)
    return fail (fault, FAULT_FAILED, errno, "read the archive");
  if ((size_t) got != want)
    return fail (fault, FAULT_INVALID, 0, "the archive ends in the middle of a file");
  reader->left -= want;
  return got;
}

void
tar_reader_close (struct tar_reader *reader)
{
  free (reader->pax);
  reader->pax = NULL;
}
