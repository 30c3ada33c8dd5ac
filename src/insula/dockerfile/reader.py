"""A Dockerfile's text to its instructions, each still one piece of text.  Pure.

Parser directives, comments, line continuation and here-documents end here.  What an instruction means is
`instructions`'s business.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from insula.errors import InvalidRequest

MAX_BYTES = 4 << 20  # of a Dockerfile
_MAX_LINES = 100_000

_DIRECTIVE = re.compile(r"#\s*([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(.+?)\s*")
_HEREDOC = re.compile(r"(\d*)<<(-?)([^<]*)")
_HEREDOC_WORDS = ("ADD", "COPY", "RUN")
_KNOWN = ("syntax", "escape", "check")


@dataclass(frozen=True, slots=True, kw_only=True)
class Heredoc:
    """`expand`: variables in its content are the builder's to replace (its name was not quoted)."""

    name: str
    content: str
    expand: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One instruction.  `number` is the line on which it begins (from 1).  `text` is what follows the
    instruction's word, `code` both as they were written, joined.  `script` is `text` with its here-documents
    in place, as a shell wants it."""

    number: int
    word: str
    text: str
    code: str
    heredocs: tuple[Heredoc, ...] = ()
    script: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    lines: tuple[Line, ...]
    escape: str


def read_dockerfile(data: bytes) -> Source:
    """Raises InvalidRequest with the number of the line."""
    if len(data) > MAX_BYTES:
        raise InvalidRequest(f"the Dockerfile is larger than {MAX_BYTES >> 20} MiB")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the Dockerfile is not UTF-8: {error}") from None
    if "\0" in text:
        raise InvalidRequest("the Dockerfile has a NUL in it: it is no text")
    rows = [row.removesuffix("\r") for row in text.split("\n")]
    if len(rows) > _MAX_LINES:
        raise InvalidRequest(f"the Dockerfile has more than {_MAX_LINES} lines")
    escape = _read_directives(rows)
    return Source(tuple(_Reader(rows, escape).lines()), escape)


def read_lines(texts: Sequence[str]) -> Source:
    """Instructions that came one by one (`--change`, ONBUILD)."""
    return read_dockerfile("\n".join(texts).encode())


def parse_error(number: int, what: str) -> InvalidRequest:
    return InvalidRequest(f"dockerfile parse error on line {number}: {what}")


def _read_directives(rows: Sequence[str]) -> str:
    """The escape character.  Directives end at the first line that is none."""
    found: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        if number == 1 and row.startswith("#!"):
            continue
        match = _DIRECTIVE.fullmatch(row.strip())
        name = match[1].lower() if match else ""
        if match is None or name not in _KNOWN:
            break
        if name in found:
            raise parse_error(number, f"only one {name} parser directive can be used")
        found[name] = match[2]
    escape = found.get("escape", "\\")
    if escape not in ("\\", "`"):
        raise InvalidRequest(f"invalid ESCAPE '{escape}': must be ` or \\")
    return escape


class _Reader:
    def __init__(self, rows: Sequence[str], escape: str) -> None:
        self._rows = rows
        self._at = 0
        mark = re.escape(escape)
        self._continued = re.compile(rf"(?:^|(?<!{mark})){mark}[ \t]*$")
        self._escape = escape

    def lines(self) -> list[Line]:
        found = []
        while self._at < len(self._rows):
            number = self._at + 1
            row = self._rows[self._at]
            self._at += 1
            if not row.strip() or row.lstrip().startswith("#"):
                continue
            code = self._join(row.lstrip()).strip()
            if code:
                found.append(self._line(number, code))
        return found

    def _join(self, row: str) -> str:
        """A line and those that go on with it; comments and empty lines between them do not count."""
        joined = ""
        while (match := self._continued.search(row)) is not None:
            joined += row[: match.start()]
            while self._at < len(self._rows) and (
                not self._rows[self._at].strip() or self._rows[self._at].lstrip().startswith("#")
            ):
                self._at += 1
            if self._at >= len(self._rows):
                return joined
            row = self._rows[self._at]
            self._at += 1
        return joined + row

    def _line(self, number: int, code: str) -> Line:
        word, *others = code.split(None, 1)
        word, text = word.upper(), others[0] if others else ""
        heredocs: list[Heredoc] = []
        script = text
        effective = text.partition(" ")[0].upper() if word == "ONBUILD" else word
        if effective in _HEREDOC_WORDS and "<<" in text and not text.startswith("["):
            names = [found for token in _tokens(text) if (found := _heredoc_name(token)) is not None]
            for name, chomp, expand in names:
                content, raw = self._heredoc(number, name, chomp)
                heredocs.append(Heredoc(name=name, content=content, expand=expand))
                script += f"\n{raw}"
            if heredocs:
                code = f"{code}\n{script[len(text) + 1 :]}".rstrip("\n")
        return Line(number=number, word=word, text=text, code=code, heredocs=tuple(heredocs), script=script)

    def _heredoc(self, number: int, name: str, chomp: bool) -> tuple[str, str]:
        """Its content, and the same with its last line, as it was written."""
        content: list[str] = []
        raw: list[str] = []
        while self._at < len(self._rows):
            row = self._rows[self._at]
            self._at += 1
            raw.append(row)
            if chomp:
                row = row.lstrip("\t")
            if row == name:
                return "".join(f"{one}\n" for one in content), "\n".join(raw)
            content.append(row)
        raise parse_error(number, f"unterminated heredoc: {name}")


def _tokens(text: str) -> list[str]:
    """Split at blanks, quoted ones kept together and quotes kept on."""
    return re.findall(r"""(?:[^\s"']|"(?:\\.|[^"\\])*"|'[^']*')+""", text)


def _heredoc_name(token: str) -> tuple[str, bool, bool] | None:
    """(name, tabs are taken away, variables are replaced); None for a word that begins no here-document."""
    match = _HEREDOC.fullmatch(token)
    if match is None:
        return None
    name, expand = match[3], True
    if len(name) > 1 and name[0] == name[-1] and name[0] in "\"'":
        name, expand = name[1:-1], False
    if not re.fullmatch(r"[A-Za-z0-9_][\w.-]*", name):
        return None
    return name, bool(match[2]), expand
