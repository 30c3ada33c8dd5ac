"""What a clean-up did, and what it was told to spare.  Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneReport:
    """`deleted` are ids or names, in the order of removal."""

    deleted: tuple[str, ...] = ()
    reclaimed_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneFilters:
    """`until_ns`: only what was created before then (0: no such limit).  `labels` and `not_labels` are
    `key` or `key=value`; every one must hold."""

    until_ns: int = 0
    labels: tuple[str, ...] = ()
    not_labels: tuple[str, ...] = ()

    def matches(self, created_ns: int, labels: Mapping[str, str]) -> bool:
        if self.until_ns and created_ns >= self.until_ns:
            return False
        return all(has_label(labels, wanted) for wanted in self.labels) and not any(
            has_label(labels, unwanted) for unwanted in self.not_labels
        )


def has_label(labels: Mapping[str, str], wanted: str) -> bool:
    """Docker's label filter: `key` asks for presence, `key=value` for that value."""
    key, equals, value = wanted.partition("=")
    return key in labels and (not equals or labels[key] == value)
