"""Logging: one line per record on standard error, systemd's priorities when it listens.  Sync."""

from __future__ import annotations

import logging
import os
import sys

from insula.errors import InvalidRequest

LEVELS = ("debug", "info", "warning", "error")
_PRIORITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class _Journal(logging.Formatter):
    """`<6>message`: what systemd reads as a priority; time and unit are the journal's own."""

    def format(self, record: logging.LogRecord) -> str:
        return f"<{_PRIORITY.get(record.levelno, 6)}>{super().format(record)}"


def start_logging(level: str) -> None:
    """Raises InvalidRequest for a level that does not exist."""
    if level not in LEVELS:
        raise InvalidRequest(f"log-level: {level!r} is none of {', '.join(LEVELS)}")
    handler = logging.StreamHandler(sys.stderr)
    if "JOURNAL_STREAM" in os.environ:
        handler.setFormatter(_Journal("%(name)s: %(message)s"))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # what the library calls an error is raised to us too, and often is none: a monitor that is given up
    for noisy, least in (("asyncio", logging.WARNING), ("qemu.qmp", logging.CRITICAL)):
        logging.getLogger(noisy).setLevel(max(least, root.level))
