#include "vmgenid.h"

#include "loop.h"

#include <string.h>

/* QEMU's event for it since it has the device (hw/acpi/vmgenid.c: _E05). */
#define EVENT "/sys/firmware/acpi/interrupts/gpe05"

enum
{
  LATER_MS = 2000
};

static bool deferred;
static int64_t due_ms;

void
vmgenid_defer (void)
{
  char state[128];

  /* another event, or none, has no method that could be run */
  if (read_text (EVENT, state, sizeof state) < 0 || strstr (state, "invalid"))
    return;
  deferred = write_text (EVENT, "disable\n", 0) == 0;
}

void
vmgenid_listen (void)
{
  if (!deferred)
    return;
  deferred = false;
  /* what has come meanwhile is of a time when nobody used this machine's entropy */
  if (write_text (EVENT, "clear\n", 0) < 0 || write_text (EVENT, "enable\n", 0) < 0)
    say ("vmgenid: %s", strerror (errno));
}

void
vmgenid_listen_later (void)
{
  if (deferred)
    due_ms = now_ms () + LATER_MS;
}

void
vmgenid_settle (void)
{
  if (!deferred || !due_ms)
    return;
  loop_wake_at (due_ms);
  if (now_ms () >= due_ms)
    vmgenid_listen ();
}
