"""The `filters` parameter: JSON, in both forms that clients send, checked by what a page knows.  Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

from insula.api.times import parse_time
from insula.errors import InvalidRequest
from insula.model.reports import PruneFilters, has_label

_TRUE = ("1", "t", "T", "TRUE", "true", "True")
_FALSE = ("0", "f", "F", "FALSE", "false", "False")


class Filters:
    """Values by name.  A name that was not given matches everything."""

    def __init__(self, values: Mapping[str, tuple[str, ...]]) -> None:
        self._values = values

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __bool__(self) -> bool:
        return bool(self._values)

    def get(self, name: str) -> tuple[str, ...]:
        return self._values.get(name, ())

    def adding(self, name: str, value: str) -> Filters:
        return Filters({**self._values, name: (*self.get(name), value)})

    def accept(self, *known: str) -> Filters:
        """Raises InvalidRequest for a name that the page does not know."""
        for name in self._values:
            if name not in known:
                raise InvalidRequest(f"invalid filter '{name}'", hint=f"known here: {', '.join(known)}")
        return self

    def has(self, name: str, value: str) -> bool:
        """One of the values is exactly this one."""
        return name not in self._values or value in self._values[name]

    def starts(self, name: str, value: str) -> bool:
        return name not in self._values or any(value.startswith(v) for v in self._values[name])

    def searches(self, name: str, candidates: Iterable[str]) -> bool:
        """One of the values, a regular expression, is found in one of the candidates."""
        if name not in self._values:
            return True
        candidates = tuple(candidates)
        return any(_search(pattern, c) for pattern in self._values[name] for c in candidates)

    def labels(self, labels: Mapping[str, str], name: str = "label") -> bool:
        return all(has_label(labels, wanted) for wanted in self.get(name))

    def flag(self, name: str) -> bool | None:
        """None when not given.  Raises InvalidRequest for what is neither true nor false, or both."""
        values = self.get(name)
        if not values:
            return None
        if all(v in _TRUE for v in values):
            return True
        if all(v in _FALSE for v in values):
            return False
        raise InvalidRequest(f"invalid filter '{name}=[{' '.join(values)}]'")

    def number(self, name: str) -> tuple[int, ...]:
        try:
            return tuple(int(v[:12]) for v in self.get(name))
        except ValueError:
            raise InvalidRequest(f"invalid filter '{name}=[{' '.join(self.get(name))}]'") from None

    def for_prune(self, now_ns: int, *further: str) -> PruneFilters:
        """`until`, `label` and `label!`; Docker allows one `until` only."""
        self.accept("until", "label", "label!", *further)
        until = self.get("until")
        if len(until) > 1:
            raise InvalidRequest("more than one until filter specified")
        return PruneFilters(
            until_ns=parse_time(until[0], now_ns, "until filter") if until else 0,
            labels=self.get("label"),
            not_labels=self.get("label!"),
        )


def _search(pattern: str, text: str) -> bool:
    try:
        return re.search(pattern, text) is not None
    except re.error:
        return pattern in text


def parse_filters(untrusted_text: str) -> Filters:
    """`{"a":["b"]}` or the older `{"a":{"b":true}}`.  Raises InvalidRequest."""
    if not untrusted_text:
        return Filters({})
    try:
        document = json.loads(untrusted_text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"invalid filters: {error}") from None
    if document is None:
        return Filters({})
    values: dict[str, tuple[str, ...]] = {}
    if not isinstance(document, dict):
        raise InvalidRequest("invalid filters: expected an object")
    for name, given in document.items():
        words = [k for k, v in given.items() if v] if isinstance(given, dict) else given
        if not isinstance(words, list) or not all(isinstance(w, str) for w in words):
            raise InvalidRequest(f"invalid filters: {name}: expected a list of strings")
        if words:
            values[name] = tuple(words)
    return Filters(values)
