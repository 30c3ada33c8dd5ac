"""The programs that the fake backend can run: a dozen commands and a very small shell.  Async; no privilege.

Not for production: `fake` uses it so that engine and API tests have workloads with output, input, signals
and exit codes.  The shell knows `;`, `&&`, `||`, newlines, `>&2`, `>`, `>>`, `$NAME`, `$?`, `trap`, `exit`
and `exec`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
import shlex
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from insula.errors import CommandNotExecutable, CommandNotFound
from insula.model.stream import Channel


class Stdin(Protocol):
    async def read(self) -> bytes:
        """Next bytes, b"" at the end."""
        ...


class Tree(Protocol):
    """The files that a program sees."""

    def read_file(self, path: str) -> bytes | None: ...
    def write_file(self, path: str, data: bytes, *, append: bool = False) -> None: ...
    def remove(self, path: str) -> bool: ...


@dataclass(slots=True, kw_only=True)
class Context:
    """What a program has: `write` waits while the readers are slow."""

    args: Sequence[str]
    env: Mapping[str, str]
    cwd: str
    user: str
    hostname: str
    stdin: Stdin
    write: Callable[[Channel, bytes], Awaitable[None]]
    tree: Tree
    size: Callable[[], tuple[int, int]]
    traps: dict[int, str] = field(default_factory=dict)
    pending: list[int] = field(default_factory=list)
    current: asyncio.Task[int] | None = None

    async def out(self, text: str) -> int:
        await self.write(Channel.STDOUT, text.encode())
        return 0

    async def err(self, text: str, code: int = 1) -> int:
        await self.write(Channel.STDERR, text.encode())
        return code

    def interrupt(self, signum: int) -> bool:
        """Deliver a signal that a trap handles; False when none does."""
        if signum not in self.traps:
            return False
        self.pending.append(signum)
        if self.current is not None:
            self.current.cancel()
        return True


class _Exit(Exception):
    def __init__(self, code: int) -> None:
        self.code = code


async def _echo(c: Context) -> int:
    args = list(c.args[1:])
    end = "\n"
    while args and args[0] in ("-n", "-e", "-ne"):
        end = "" if "n" in args.pop(0) else end
    return await c.out(" ".join(args) + end)


async def _printf(c: Context) -> int:
    text = c.args[1].encode().decode("unicode_escape") if len(c.args) > 1 else ""
    values = list(c.args[2:])
    return await c.out(re.sub(r"%[sd]", lambda _: values.pop(0) if values else "", text))


async def _cat(c: Context) -> int:
    if len(c.args) == 1:
        while data := await c.stdin.read():
            await c.write(Channel.STDOUT, data)
        return 0
    code = 0
    for path in c.args[1:]:
        content = c.tree.read_file(path)
        if content is None:
            code = await c.err(f"cat: {path}: No such file or directory\n")
        else:
            await c.write(Channel.STDOUT, content)
    return code


async def _wc(c: Context) -> int:
    total = 0
    while data := await c.stdin.read():
        total += len(data)
    return await c.out(f"{total}\n")


async def _yes(c: Context) -> int:
    line = (" ".join(c.args[1:]) or "y") + "\n"
    while True:
        await c.out(line * 512)


async def _seq(c: Context) -> int:
    numbers = [int(a) for a in c.args[1:]]
    first, last = (1, numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[-1])
    return await c.out("".join(f"{n}\n" for n in range(first, last + 1)))


async def _sleep(c: Context) -> int:
    word = c.args[1] if len(c.args) > 1 else "0"
    if word in ("infinity", "inf"):
        await asyncio.Event().wait()
    await asyncio.sleep(float(word.removesuffix("s")))
    return 0


async def _env(c: Context) -> int:
    return await c.out("".join(f"{k}={v}\n" for k, v in c.env.items()))


async def _touch(c: Context) -> int:
    for path in c.args[1:]:
        c.tree.write_file(path, c.tree.read_file(path) or b"")
    return 0


async def _rm(c: Context) -> int:
    code = 0
    for path in (a for a in c.args[1:] if not a.startswith("-")):
        if not c.tree.remove(path) and "-f" not in c.args:
            code = await c.err(f"rm: {path}: No such file or directory\n")
    return code


async def _stty(c: Context) -> int:
    rows, cols = c.size()
    return await c.out(f"{rows} {cols}\n")


async def _id(c: Context) -> int:
    uid = c.user.partition(":")[0] or "0"
    return await c.out(f"{uid}\n" if "-u" in c.args else f"uid={uid}\n")


async def _text(c: Context) -> int:
    words = {"pwd": c.cwd, "hostname": c.hostname, "uname": "fake", "whoami": c.user or "root"}
    return await c.out(words[_base(c.args[0])] + "\n")


async def _constant(c: Context) -> int:
    return 1 if _base(c.args[0]) == "false" else 0


async def _exit(c: Context) -> int:
    raise _Exit(int(c.args[1]) & 255 if len(c.args) > 1 else 0)


async def _trap(c: Context) -> int:
    for name in c.args[2:]:
        c.traps[_signal_number(name)] = c.args[1]
    return 0


async def _shell(c: Context) -> int:
    if len(c.args) > 2 and c.args[1] in ("-c", "-ec"):
        return await _run_script(c, c.args[2])
    script = b""
    while data := await c.stdin.read():
        script += data
    return await _run_script(c, script.decode())


_PROGRAMS: dict[str, Callable[[Context], Awaitable[int]]] = {
    "echo": _echo, "printf": _printf, "cat": _cat, "wc": _wc, "yes": _yes, "seq": _seq, "sleep": _sleep,
    "env": _env, "touch": _touch, "rm": _rm, "stty": _stty, "id": _id, "pwd": _text, "hostname": _text,
    "uname": _text, "whoami": _text, "true": _constant, "false": _constant, ":": _constant, "exit": _exit,
    "trap": _trap, "sh": _shell, "bash": _shell,
}  # fmt: skip


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _signal_number(name: str) -> int:
    return int(name) if name.isdecimal() else int(signal.Signals["SIG" + name.removeprefix("SIG")])


def check_program(args: Sequence[str], tree: Tree) -> None:
    """Raises CommandNotFound or CommandNotExecutable, as a runtime does before it starts the program."""
    name = args[0]
    if "/" in name and tree.read_file(name) is not None:
        raise CommandNotExecutable(name)
    if _base(name) not in _PROGRAMS:
        raise CommandNotFound(
            name, "no such file or directory" if "/" in name else "executable file not found in $PATH"
        )


async def run_program(context: Context) -> int:
    """To its end; the exit code."""
    try:
        return await _PROGRAMS[_base(context.args[0])](context)
    except _Exit as end:
        return end.code


_EXPANSION = re.compile(r"\$(\w+|\?|\{\w+\})")


async def _run_script(c: Context, script: str) -> int:
    code = 0
    for operator, words in _commands(script):
        if (operator == "&&" and code != 0) or (operator == "||" and code == 0):
            continue
        code = await _run_simple(c, words, code)
    return code


def _commands(script: str) -> list[tuple[str, list[str]]]:
    lexer = shlex.shlex(script.replace("\n", " ; "), posix=False, punctuation_chars=";&|>")
    lexer.whitespace_split = True
    found: list[tuple[str, list[str]]] = []
    operator, words = ";", list[str]()
    for token in [*lexer, ";"]:
        if token in (";", "&&", "||"):
            if words:
                found.append((operator, words))
            operator, words = token, []
        else:
            words.append(token)
    return found


async def _run_simple(c: Context, raw: list[str], last: int) -> int:
    words, channel, target, append = list[str](), Channel.STDOUT, "", False
    rest = iter(raw)
    for token in rest:
        if token == ">&":
            channel = Channel.STDERR if next(rest) == "2" else Channel.STDOUT
        elif token in (">", ">>"):
            target, append = _expand(next(rest), c, last), token == ">>"
        else:
            words.append(_expand(token, c, last))
    if words[0] == "exec":
        words = words[1:]
    try:
        check_program(words, c.tree)
    except (CommandNotFound, CommandNotExecutable) as error:
        return await c.err(f"sh: {words[0]}: not found\n", error.exit_code)
    kept = bytearray()

    async def write(to: Channel, data: bytes) -> None:
        if target and to is Channel.STDOUT:
            kept.extend(data)
        else:
            await c.write(channel if to is Channel.STDOUT else to, data)

    if words[0] in ("exit", "trap"):  # the shell's own: its traps are the shell's
        return await _PROGRAMS[words[0]](dataclasses.replace(c, args=words, write=write))
    inner = dataclasses.replace(c, args=words, write=write, traps={}, pending=[], current=None)
    c.current = asyncio.create_task(_child(inner))
    code = 0
    try:
        code = await c.current
    except asyncio.CancelledError:
        if not c.pending:
            c.current.cancel()
            raise
        this = asyncio.current_task()
        assert this is not None
        this.uncancel()
    finally:
        c.current = None
    if target:
        c.tree.write_file(target, bytes(kept), append=append)
    while c.pending:
        await _run_script(c, c.traps[c.pending.pop(0)])
    return code


async def _child(context: Context) -> int:
    return await run_program(context)


def _expand(token: str, c: Context, last: int) -> str:
    if token.startswith("'"):
        return token[1:-1]

    def value(match: re.Match[str]) -> str:
        name = match[1].strip("{}")
        return str(last) if name == "?" else c.env.get(name, "")

    return _EXPANSION.sub(value, token.replace('"', ""))
