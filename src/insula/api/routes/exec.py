"""Execs: a further program in a running container."""

from __future__ import annotations

from aiohttp import web

from insula.api import mux
from insula.api.call import Call, answer, empty
from insula.api.escape import parse_keys
from insula.api.pump import Terms, pump, say
from insula.api.routes.container_io import terminal_size
from insula.api.routing import Route
from insula.api.translate_create import parse_console_size
from insula.api.wire.container import ExecConfig, ExecStartConfig, IDResponse
from insula.engine.types import ExecSpec
from insula.errors import (
    CannotEnter,
    CommandNotExecutable,
    CommandNotFound,
    Conflict,
    ExecStarted,
    GuestFailed,
    InsulaError,
    InvalidRequest,
    NotFound,
    RuntimeFailed,
)

_OF_THE_RUNTIME = (CannotEnter, CommandNotFound, CommandNotExecutable, RuntimeFailed, GuestFailed)
_WHY = "OCI runtime exec failed: exec failed: unable to start container process: "


async def create(call: Call) -> web.StreamResponse:
    given = await call.json(ExecConfig)
    if not given.Cmd:
        raise InvalidRequest("No exec command specified")
    parse_keys(given.DetachKeys)
    if given.WorkingDir and not given.WorkingDir.startswith("/"):
        raise InvalidRequest(f"Cwd must be an absolute path: {given.WorkingDir}")
    rows, cols = _console_size(call, given.ConsoleSize)
    exec_id = await call.engine.exec_create(
        call.names["id"],
        ExecSpec(
            args=tuple(given.Cmd),
            env=tuple(given.Env or ()),
            cwd=given.WorkingDir,
            user=given.User,
            tty=given.Tty,
            open_stdin=given.AttachStdin,
            attach_stdin=given.AttachStdin,
            attach_stdout=given.AttachStdout,
            attach_stderr=given.AttachStderr,
            privileged=given.Privileged,
            detach_keys=given.DetachKeys,
            console_rows=rows,
            console_cols=cols,
        ),
    )
    return answer(IDResponse(Id=exec_id), 201)


def _console_size(call: Call, given: list[int] | None) -> tuple[int, int]:
    return parse_console_size(given) if call.version >= (1, 42) else (0, 0)


async def start(call: Call) -> web.StreamResponse:
    given = await call.json(ExecStartConfig, optional=True)
    view = call.engine.exec_inspect(call.names["id"])
    rows, cols = _console_size(call, given.ConsoleSize)
    tty = view.spec.tty
    framed = not given.Tty  # moby goes by this, not by whether it is a terminal
    multiplexed = framed and call.version >= (1, 42)
    terms = Terms(
        tty=tty,
        framed=framed,
        stdin=view.spec.attach_stdin,
        detach_keys=parse_keys(view.spec.detach_keys),
        content_type=mux.MULTIPLEXED if multiplexed else mux.RAW,
    )
    try:
        stream = await call.engine.exec_start(
            view.id, detach=given.Detach, tty=tty, console_rows=rows, console_cols=cols
        )
    except InsulaError as error:
        if given.Detach or (isinstance(error, Conflict | NotFound) and not isinstance(error, ExecStarted)):
            raise
        # on the stream, as Docker: of another answer than 101 its client shows the number alone
        return await say(call, (_WHY if isinstance(error, _OF_THE_RUNTIME) else "") + str(error), terms)
    if stream is None:
        return empty(200)
    response, _ = await pump(call, stream, terms)
    return response


async def resize(call: Call) -> web.StreamResponse:
    rows, cols = terminal_size(call)
    await call.engine.exec_resize(call.names["id"], rows, cols)
    return empty(200)


async def inspect(call: Call) -> web.StreamResponse:
    view = call.engine.exec_inspect(call.names["id"])
    spec = view.spec
    return answer(
        {
            "ID": view.id,
            "Running": view.running,
            "ExitCode": view.exit_code,
            "ProcessConfig": {
                "tty": spec.tty,
                "entrypoint": spec.args[0],
                "arguments": list(spec.args[1:]),
                "privileged": spec.privileged,
                **({"user": view.user} if view.user else {}),
            },
            "OpenStdin": spec.open_stdin,
            "OpenStderr": spec.attach_stderr,
            "OpenStdout": spec.attach_stdout,
            "CanRemove": False,
            "ContainerID": view.instance_id,
            "DetachKeys": spec.detach_keys,
            "Pid": view.pid,
        }
    )


ROUTES = (
    Route("POST", "/containers/{id}/exec", create, completes=True),
    Route("POST", "/exec/{id}/start", start),
    Route("POST", "/exec/{id}/resize", resize),
    Route("GET", "/exec/{id}/json", inspect),
)
