"""What a runtime says when it cannot run a program, as our errors.  Pure."""

from __future__ import annotations

import json
import re

from insula.errors import CommandNotExecutable, CommandNotFound, InsulaError, InvalidRequest, RuntimeFailed

_QUOTED = r'[`"\\]*(?P<what>[^`"\\]+)[`"\\]*'
# crun's words and runc's; the first match decides
_NOT_FOUND = (
    re.compile(rf"executable file {_QUOTED} not found"),  # crun
    re.compile(rf"exec: {_QUOTED}: executable file not found"),  # runc
)
_MISSING = (
    # crun, when the interpreter of a script or of a dynamic program is not there
    re.compile(r"^exec: No such file", re.M),
    re.compile(rf"executable (?:file )?path is empty|exec: {_QUOTED}: stat [^:]+: no such file", re.I),
    re.compile(rf"exec: {_QUOTED}: no such file", re.I),
    re.compile(rf"(?:open|open executable|exec container process)[^`]*{_QUOTED}: No such file", re.I),
)
_DENIED = (
    re.compile(rf"exec: {_QUOTED}: (?:permission denied|is a directory|exec format error)", re.I),
    re.compile(
        rf"(?:open executable|the path|access|execv?|exec container process)[^:]*:? ?{_QUOTED}[^:]*"
        ": Permission denied",
        re.I,
    ),
    # crun: EPERM is its word for a directory
    re.compile(r"open executable: (?:Permission denied|Operation not permitted)", re.I),
    re.compile(rf"the path {_QUOTED} exists but it is not executable", re.I),  # crun 1.21
    re.compile(r"permission denied: unknown|^exec: Permission denied", re.I | re.M),
)
# crun and runc, of a directory to be mounted on a file, or a file on a directory
_MOUNT_ON_OTHER = re.compile(r"mount.*: (?:not|is) a directory", re.I | re.S)


def translate(said: str, program: str, *, doing: str = "create the container") -> InsulaError:
    """`said` is a runtime's stderr or log, `program` the first word of the command."""
    text = said_of_program = plain(said)
    if any(quote in program for quote in '`"\\'):  # a word of JSON, often: --entrypoint '["sh"]'
        for shown in (json.dumps(program)[1:-1], program):
            said_of_program = said_of_program.replace(shown, "program")
    if any(p.search(said_of_program) for p in _NOT_FOUND):
        if "/" in program:
            return CommandNotFound(program, "no such file or directory")
        return CommandNotFound(program)
    if any(p.search(said_of_program) for p in _DENIED):
        return CommandNotExecutable(program)
    if any(p.search(said_of_program) for p in _MISSING):
        return CommandNotFound(program, "no such file or directory")
    if "exec format error" in text.lower():
        return CommandNotExecutable(program, "exec format error")
    if "chdir" in text:
        return CommandNotExecutable(program, f"the working directory cannot be entered: {text}")
    message = f"the OCI runtime could not {doing}: {text or 'it said nothing'}"
    if _MOUNT_ON_OTHER.search(text):
        return InvalidRequest(  # moby's words
            f"{message}: Are you trying to mount a directory onto a file (or vice-versa)? Check if the "
            "specified host path exists and is the expected type"
        )
    return RuntimeFailed(message)


def plain(said: str) -> str:
    """Without time stamps, levels and JSON wrapping."""
    lines = []
    for line in said.strip().splitlines():
        text = line.strip()
        if text.startswith("{"):
            try:
                text = str(json.loads(text).get("msg", text))
            except ValueError:
                pass
        lines.append(re.sub(r"^(?:\d{4}-\d\d-\d\dT\S+:\s*|time=\S+ level=\w+ msg=)", "", text))
    return "; ".join(line for line in lines if line)
