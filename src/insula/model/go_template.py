"""Go's templates as docker's `--format` and log tags have them.

Fields, variables, if, with, range, pipes and functions.

Not for: `define`, `block` and `template`, which nobody types.  Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from insula.errors import InvalidRequest

_ACTION = re.compile(r"\{\{(-(?=\s))?(.*?)((?<=\s)-)?\}\}", re.DOTALL)
_TOKEN = re.compile(
    r"""\s*(?:(?P<string>"(?:\\.|[^"\\])*"|`[^`]*`)|(?P<number>-?\d+(?:\.\d+)?)|(?P<var>\$\w*(?:\.\w+)*)"""
    r"""|(?P<field>\.\w+(?:\.\w+)*|\.)|(?P<word>\w+)|(?P<mark>:=|=|\||\(|\)|,))"""
)


def _wrong(why: str) -> InvalidRequest:
    return InvalidRequest(f"template parsing error: {why}", hint="see all there is with {{json .}}")


@dataclass(slots=True)
class _Block:
    """`if`, `with` or `range`, or the whole (`kind` is empty)."""

    kind: str = ""
    pipe: list[tuple[str, str]] = field(default_factory=list)
    variables: list[str] = field(default_factory=list)
    body: list[Any] = field(default_factory=list)
    other: list[Any] | None = None


def _tokens(text: str) -> list[tuple[str, str]]:
    found, position = [], 0
    text = text.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None or match.lastgroup is None:
            raise _wrong(f"unexpected {text[position:]!r}")
        found.append((match.lastgroup, match[match.lastgroup]))
        position = match.end()
    return found


def _parse(template: str) -> _Block:
    root = _Block()
    open_blocks: list[tuple[_Block, int]] = [(root, 0)]
    position, trim = 0, False

    def put(node: Any) -> None:
        block = open_blocks[-1][0]
        (block.body if block.other is None else block.other).append(node)

    for match in _ACTION.finditer(template):
        text = template[position : match.start()]
        text = text.lstrip() if trim else text
        put(text.rstrip() if match[1] else text)
        position, trim = match.end(), bool(match[3])
        if match[2].strip().startswith("/*"):
            continue
        tokens = _tokens(match[2])
        if not tokens:
            raise _wrong("missing value for command")
        kind, word = tokens[0]
        if kind == "word" and word in ("if", "with", "range"):
            variables, pipe = _variables(tokens[1:])
            block = _Block(word, pipe, variables)
            put(block)
            open_blocks.append((block, 1))
        elif kind == "word" and word == "else":
            block, depth = open_blocks[-1]
            if not block.kind or block.other is not None:
                raise _wrong("unexpected {{else}}")
            block.other = []
            if len(tokens) > 1:  # {{else if …}} ends with the same {{end}}
                nested = _Block(tokens[1][1], tokens[2:])
                block.other.append(nested)
                open_blocks[-1] = (block, 0)
                open_blocks.append((nested, depth + 1))
        elif kind == "word" and word == "end":
            if len(open_blocks) == 1:
                raise _wrong("unexpected {{end}}")
            for _ in range(open_blocks[-1][1]):
                open_blocks.pop()
        else:
            put(_variables(tokens))
    if len(open_blocks) > 1:
        raise _wrong("unexpected EOF: {{end}} is missing")
    text = template[position:]
    if "{{" in text:
        raise _wrong("unclosed action")
    put(text.lstrip() if trim else text)
    return root


def _variables(tokens: list[tuple[str, str]]) -> tuple[list[str], list[tuple[str, str]]]:
    """`$k, $v := pipe` as its names and the pipe."""
    for index, (kind, word) in enumerate(tokens):
        if kind == "mark" and word in (":=", "="):
            return [name for k, name in tokens[:index] if k == "var"], tokens[index + 1 :]
    return [], tokens


class _Run:
    def __init__(self, value: Any) -> None:
        self._scope: dict[str, Any] = {"$": value}

    def block(self, nodes: list[Any], dot: Any) -> Iterator[str]:
        for node in nodes:
            if isinstance(node, str):
                yield node
            elif isinstance(node, tuple):
                names, pipe = node
                value = self._pipe(pipe, dot)
                if names:
                    self._scope[names[0]] = value
                else:
                    yield show(value)
            else:
                yield from self._control(node, dot)

    def _control(self, node: _Block, dot: Any) -> Iterator[str]:
        value = self._pipe(node.pipe, dot)
        if node.kind == "range":
            pairs = sorted(value.items()) if isinstance(value, Mapping) else list(enumerate(value or ()))
            for key, item in pairs:
                for name, bound in zip(reversed(node.variables), (item, key), strict=False):
                    self._scope[name] = bound
                yield from self.block(node.body, item)
            if not pairs:
                yield from self.block(node.other or [], dot)
            return
        if node.variables:
            self._scope[node.variables[0]] = value
        if value:
            yield from self.block(node.body, value if node.kind == "with" else dot)
        else:
            yield from self.block(node.other or [], dot)

    def _pipe(self, tokens: list[tuple[str, str]], dot: Any) -> Any:
        """Commands joined by `|`: each one's value is the last argument of the next."""
        if not tokens:
            raise _wrong("missing value for command")
        commands: list[list[tuple[str, str]]] = [[]]
        depth = 0
        for token in tokens:
            depth += (token == ("mark", "(")) - (token == ("mark", ")"))
            if token == ("mark", "|") and depth == 0:
                commands.append([])
            else:
                commands[-1].append(token)
        piped: list[Any] = []
        for command in commands:
            piped = [self._command(command, dot, piped)]
        return piped[0]

    def _command(self, tokens: list[tuple[str, str]], dot: Any, piped: list[Any]) -> Any:
        if not tokens:
            raise _wrong("missing value for command")
        kind, word = tokens[0]
        if kind == "word" and word in _FUNCTIONS:
            arguments = [*self._operands(tokens[1:], dot), *piped]
            try:
                return _FUNCTIONS[word](*arguments)
            except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
                raise _wrong(f"error calling {word}: {error}") from None
        if kind == "field" and word.endswith(".Label") and len(tokens) > 1:  # the one method people type
            [name] = self._operands(tokens[1:], dot)
            pairs = str(dot.get("Labels", "")).split(",") if isinstance(dot, Mapping) else []
            return dict(pair.partition("=")[::2] for pair in pairs).get(name, "")
        operands = [*self._operands(tokens, dot), *piped]
        if len(operands) != 1:
            raise _wrong(f"{word!r} takes no arguments")
        return operands[0]

    def _operands(self, tokens: list[tuple[str, str]], dot: Any) -> list[Any]:
        found: list[Any] = []
        index = 0
        while index < len(tokens):
            kind, word = tokens[index]
            index += 1
            if (kind, word) == ("mark", "("):
                start, depth = index, 1
                while depth and index < len(tokens):
                    depth += (tokens[index] == ("mark", "(")) - (tokens[index] == ("mark", ")"))
                    index += 1
                if depth:
                    raise _wrong("unclosed left paren")
                found.append(self._pipe(tokens[start : index - 1], dot))
            elif kind == "string":
                found.append(word[1:-1] if word[0] == "`" else json.loads(word))
            elif kind == "number":
                found.append(float(word) if "." in word else int(word))
            elif kind == "field":
                found.append(_reach(dot, word))
            elif kind == "var":
                name, dotted, rest = word.partition(".")
                if name not in self._scope:
                    raise _wrong(f'undefined variable "{name}"')
                found.append(_reach(self._scope[name], dotted + rest))
            elif word in ("true", "false", "nil"):
                found.append({"true": True, "false": False, "nil": None}[word])
            elif word in _FUNCTIONS:
                found.append(_FUNCTIONS[word]())
            else:
                raise _wrong(f'function "{word}" not defined')
        return found


def _reach(value: Any, path: str) -> Any:
    for part in filter(None, path.split(".")):
        if not isinstance(value, Mapping) or part not in value:
            raise InvalidRequest(f"template: there is no {path}", hint="see it all with {{json .}}")
        value = value[part]
    return value


def show(value: Any) -> str:
    """A value as Go prints it."""
    match value:
        case None:
            return "<nil>"
        case bool():
            return "true" if value else "false"
        case Mapping():
            return f"map[{' '.join(f'{k}:{show(v)}' for k, v in sorted(value.items()))}]"
        case list() | tuple():
            return f"[{' '.join(show(item) for item in value)}]"
        case float() if value.is_integer():
            return str(int(value))
    return str(value)


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        value = (value or {}).get(key, "") if isinstance(value, Mapping) or value is None else value[key]
    return value


def _printf(form: str, *values: Any) -> str:
    form = re.sub(r"%([-+0-9.]*)v", r"%\1s", form)
    form = re.sub(r"%q", "%s", form)
    return form % tuple(
        show(v) if not isinstance(v, (int, float)) or isinstance(v, bool) else v for v in values
    )


def _pad(text: Any, before: int, after: int) -> str:
    return " " * before + show(text) + " " * after if show(text) else ""


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "json": lambda v: json.dumps(v, ensure_ascii=False, separators=(",", ":")),
    "index": _index,
    "len": lambda v: len(v or ()),
    "not": lambda v: not v,
    "and": lambda *v: next((one for one in v if not one), v[-1]),
    "or": lambda *v: next((one for one in v if one), v[-1]),
    "eq": lambda a, *b: a in b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "slice": lambda v, *at: v[slice(at[0] if at else 0, at[1] if len(at) > 1 else None)],
    "print": lambda *v: "".join(map(show, v)),
    "println": lambda *v: " ".join(map(show, v)) + "\n",
    "printf": _printf,
    "lower": lambda v: show(v).lower(),
    "upper": lambda v: show(v).upper(),
    "title": lambda v: show(v).title(),
    "split": lambda text, by: text.split(by),
    "join": lambda items, by: by.join(map(show, items or ())),
    "pad": _pad,
    "truncate": lambda text, size: show(text)[:size],
}


def render(template: str, value: Any) -> str:
    """Raises InvalidRequest for a field that is not in the value, and for what is no template."""
    nodes: Sequence[Any] = _parse(template.replace("\\t", "\t").replace("\\n", "\n")).body
    return "".join(_Run(value).block(list(nodes), value))
