"""create, run, start, attach and exec: whatever connects the user's terminal to a workload."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import click

from insula.cli import values
from insula.cli.connect import pass_client
from insula.cli.launch_options import finalize_create, launch_options
from insula.cli.progress import pull_image, split_reference
from insula.cli.terminal import DEFAULT_DETACH_KEYS, pump, start_raw_mode, start_resizing, terminal_size
from insula.client import Client
from insula.errors import DaemonRefused, InsulaError, InvalidRequest

_DETACH = click.option(
    "--detach-keys", default=DEFAULT_DETACH_KEYS, metavar="KEYS", help="Keys that let go of the terminal."
)


def _exit_code_of(error: DaemonRefused) -> int:
    """Docker's convention for a workload that could not be started."""
    text = error.message
    if "executable file not found" in text or "no such file or directory" in text:
        return 127
    if "permission denied" in text or "is a directory" in text:
        return 126
    return 125


def _create(
    ctx: click.Context, image: str, command: tuple[str, ...], options: dict[str, Any], detach: bool
) -> str:
    """The new instance's id.  Wrong options are told before a daemon is looked for, or started."""
    body = finalize_create(image, command, options, detach=detach)
    rows, cols = terminal_size()
    if options["tty"] and rows:
        body["HostConfig"]["ConsoleSize"] = [rows, cols]
    cidfile = options["cidfile"]
    if cidfile and os.path.exists(cidfile):
        raise InvalidRequest(f"--cidfile: {cidfile} exists already", hint="remove it, or name another file")
    client = pass_client(ctx)
    query = {"name": options["name"], "platform": options["platform"]}
    if options["pull"] == "always":
        pull_image(client, image, platform=options["platform"], quiet=options["quiet"])
    try:
        created = client.request("POST", "/containers/create", query=query, body=body).json()
    except DaemonRefused as error:
        if error.http_status != 404 or options["pull"] != "missing" or "image" not in error.message.lower():
            raise
        named = image if "@" in image else ":".join(split_reference(image))
        print(f"Unable to find image '{named}' locally", file=sys.stderr)
        pull_image(client, image, platform=options["platform"], quiet=options["quiet"])
        created = client.request("POST", "/containers/create", query=query, body=body).json()
    for warning in created.get("Warnings") or ():
        print(f"WARNING: {warning}", file=sys.stderr)
    if cidfile:
        with open(cidfile, "x", encoding="utf-8") as file:
            file.write(created["Id"])
    return str(created["Id"])


@click.command(context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@launch_options
@click.argument("image")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def create(ctx: click.Context, /, image: str, command: tuple[str, ...], **options: Any) -> None:
    """Make an instance without starting it, and print its id."""
    print(_create(ctx, image, command, options, detach=False))


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("-d", "--detach", is_flag=True, help="Run in the background and print the id.")
@_DETACH
@click.option(
    "--sig-proxy/--no-sig-proxy", default=True, help="Pass signals on to it (default: yes, without -t)."
)
@launch_options
@click.argument("image")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def run(
    ctx: click.Context,
    /,
    image: str,
    command: tuple[str, ...],
    detach: bool,
    detach_keys: str,
    sig_proxy: bool,
    **options: Any,
) -> int:
    """Make an instance of IMAGE and run COMMAND in it.

    \b
    insula run --rm -it debian:12 bash                  a container
    insula run --rm -it --isolation vm debian:12 bash   a VM of the same image
    insula run -d -p 8080:80 --name web nginx           behind a port
    """
    if detach and options["attach"]:
        raise _Refused("conflicting options: cannot specify both --attach and --detach")
    if not detach and options["tty"] and options["interactive"] and not sys.stdin.isatty():
        raise _NO_TERMINAL
    try:
        instance = _create(ctx, image, command, options, detach)
    except DaemonRefused as error:
        raise _Failed(error, 125) from error
    client = pass_client(ctx)
    if detach:
        print(instance, flush=True)  # also of one that does not start: it is there
        try:
            client.post(f"/containers/{instance}/start")
        except DaemonRefused as error:
            raise _Failed(error, _exit_code_of(error)) from error
        return 0
    condition = "removed" if options["rm"] else "next-exit"
    streams = {s.lower() for s in options["attach"]}
    stdin = options["interactive"] and (not streams or "stdin" in streams)
    outputs = {name: name in streams if streams else True for name in ("stdout", "stderr")}
    query = {"stream": True, "stdin": stdin, **outputs}
    connection = client.hijack(f"/containers/{instance}/attach", query=query)
    connection.multiplexed = not options["tty"]
    waiting = client.request("POST", f"/containers/{instance}/wait", query={"condition": condition})
    try:
        client.post(f"/containers/{instance}/start")
    except DaemonRefused as error:
        connection.close()
        waiting.close()
        if options["rm"]:
            with contextlib.suppress(InsulaError):
                client.delete(f"/containers/{instance}", force=True)
        raise _Failed(error, _exit_code_of(error)) from error
    with _signals_passed_on(client, instance, enabled=sig_proxy and not options["tty"]):
        ended = _converse(client, f"/containers/{instance}", connection, stdin, options["tty"], detach_keys)
    return int(waiting.json()["StatusCode"]) if ended else 0


class _Refused(InvalidRequest):
    """What docker's client, too, finds out by itself, with exit code 1."""

    exit_code = 1


_NO_TERMINAL = _Refused("--tty: the input device is not a terminal", hint="leave out -t")


class _Failed(InsulaError):
    """An error of the daemon under the exit code that `docker run` gives it."""

    def __init__(self, error: DaemonRefused, code: int) -> None:
        super().__init__(error.message)
        self.exit_code = code  # type: ignore[misc]


def _converse(client: Client, target: str, connection: Any, stdin: bool, tty: bool, detach_keys: str) -> bool:
    """Terminal ↔ workload until its output ends; False when the user detached."""
    with contextlib.ExitStack() as stack:
        stack.callback(connection.close)
        if tty:
            if stdin:
                stack.enter_context(start_raw_mode(sys.stdin.fileno()))
            stack.enter_context(
                start_resizing(lambda rows, cols: client.post(f"{target}/resize", h=rows, w=cols))
            )
        return pump(connection, stdin=stdin, tty_mode=tty, detach_keys=detach_keys)


@contextlib.contextmanager
def _signals_passed_on(client: Client, instance: str, *, enabled: bool) -> Iterator[None]:
    """SIGINT, SIGTERM, … reach the workload instead of us."""
    passed = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
    if not enabled:
        yield
        return

    def kill(number: int) -> None:
        with contextlib.suppress(InsulaError):  # it has ended meanwhile
            client.post(f"/containers/{instance}/kill", signal=signal.Signals(number).name)

    def handler(number: int, _: object) -> None:
        threading.Thread(target=kill, args=(number,)).start()

    before = {number: signal.signal(number, handler) for number in passed}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@click.command()
@click.option(
    "-a", "--attach", "attach_output", is_flag=True, help="Attach stdout and stderr, pass signals on."
)
@click.option("-i", "--interactive", is_flag=True, help="Attach stdin.")
@_DETACH
@click.option("--checkpoint", metavar="NAME", help="Go on from this checkpoint: a snapshot of a VM.")
@click.option("--checkpoint-dir", hidden=True)
@click.argument("instance", nargs=-1, required=True)
@click.pass_context
def start(
    ctx: click.Context,
    instance: tuple[str, ...],
    attach_output: bool,
    interactive: bool,
    detach_keys: str,
    checkpoint: str | None,
    checkpoint_dir: str | None,
) -> int:
    """Start instances that were created or have ended."""
    client = pass_client(ctx)
    options = {"checkpoint": checkpoint, "checkpoint-dir": checkpoint_dir}

    def begin(ref: str) -> None:
        client.request("POST", f"/containers/{ref}/start", query=options, ok=(304,)).close()

    if checkpoint and len(instance) != 1:
        raise InvalidRequest("start: only one instance can go on from a checkpoint at a time")
    if not (attach_output or interactive):
        from insula.cli.lifecycle import for_each

        return for_each(instance, begin)
    if len(instance) != 1:
        raise InvalidRequest("start: only one instance can be attached to at a time")
    [ref] = instance
    tty = client.get(f"/containers/{ref}/json")["Config"]["Tty"]
    query = {"stream": True, "stdin": interactive, "stdout": True, "stderr": True}
    connection = client.hijack(f"/containers/{ref}/attach", query=query)
    connection.multiplexed = not tty
    waiting = client.request("POST", f"/containers/{ref}/wait", query={"condition": "next-exit"})
    begin(ref)
    with _signals_passed_on(client, ref, enabled=not tty):
        ended = _converse(client, f"/containers/{ref}", connection, interactive, tty, detach_keys)
    return int(waiting.json()["StatusCode"]) if ended else 0


@click.command()
@click.option("--no-stdin", is_flag=True, help="Do not attach stdin.")
@click.option(
    "--sig-proxy/--no-sig-proxy", default=True, help="Pass signals on to it (default: yes, without -t)."
)
@_DETACH
@click.argument("instance")
@click.pass_context
def attach(ctx: click.Context, instance: str, no_stdin: bool, sig_proxy: bool, detach_keys: str) -> int:
    """Connect this terminal to a running instance."""
    client = pass_client(ctx)
    view = client.get(f"/containers/{instance}/json")
    if not view["State"]["Running"]:
        raise InvalidRequest("You cannot attach to a stopped container, start it first")
    if view["State"]["Paused"]:
        raise InvalidRequest("You cannot attach to a paused container, unpause it first")
    tty, stdin = view["Config"]["Tty"], view["Config"]["OpenStdin"] and not no_stdin
    query = {"stream": True, "stdin": stdin, "stdout": True, "stderr": True}
    # asked first: one that ends while we attach, and is removed, has no exit code afterwards
    with client.request("POST", f"/containers/{instance}/wait") as waiting:
        connection = client.hijack(f"/containers/{instance}/attach", query=query)
        connection.multiplexed = not tty
        with _signals_passed_on(client, instance, enabled=sig_proxy and not tty):
            ended = _converse(client, f"/containers/{instance}", connection, stdin, tty, detach_keys)
        if not ended:
            print("read escape sequence", file=sys.stderr)
            return 1
        return int(waiting.json()["StatusCode"])


@click.command(name="exec", context_settings={"allow_interspersed_args": False})
@click.option("-d", "--detach", is_flag=True, help="Run it in the background.")
@_DETACH
@click.option("-e", "--env", multiple=True, metavar="NAME=VALUE", help="Set an environment variable.")
@click.option("--env-file", multiple=True, metavar="FILE", help="Read environment variables from a file.")
@click.option("-i", "--interactive", is_flag=True, help="Keep stdin open.")
@click.option("--privileged", is_flag=True, help="All capabilities.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@click.option("-u", "--user", default="", metavar="USER[:GROUP]", help="Name or number of user and group.")
@click.option("-w", "--workdir", default="", metavar="DIR", help="Working directory inside.")
@click.argument("instance")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def exec_(
    ctx: click.Context,
    instance: str,
    command: tuple[str, ...],
    detach: bool,
    detach_keys: str,
    env: tuple[str, ...],
    env_file: tuple[str, ...],
    interactive: bool,
    privileged: bool,
    tty: bool,
    user: str,
    workdir: str,
) -> int:
    """Run one more COMMAND in a running instance."""
    if tty and interactive and not detach and not sys.stdin.isatty():
        raise _NO_TERMINAL
    client = pass_client(ctx)
    body: dict[str, Any] = {
        "Cmd": list(command),
        "Env": values.read_env(env, env_file),
        "User": user,
        "WorkingDir": workdir,
        "Privileged": privileged,
        "Tty": tty,
        "AttachStdin": interactive and not detach,
        "AttachStdout": not detach,
        "AttachStderr": not detach,
        "DetachKeys": detach_keys,
    }
    rows, cols = terminal_size()
    if tty and rows:
        body["ConsoleSize"] = [rows, cols]
    started = client.post(f"/containers/{instance}/exec", body)["Id"]
    options: dict[str, Any] = {"Detach": detach, "Tty": tty}
    if "ConsoleSize" in body:
        options["ConsoleSize"] = body["ConsoleSize"]
    try:
        if detach:
            client.post(f"/exec/{started}/start", options)
            return 0
        connection = client.hijack(f"/exec/{started}/start", body=options)
    except DaemonRefused as error:
        raise _Failed(error, 1 if detach else _exit_code_of(error)) from error
    connection.multiplexed = not tty
    if not _converse(client, f"/exec/{started}", connection, interactive, tty, detach_keys):
        print("read escape sequence", file=sys.stderr)
        return 1
    return int(client.get(f"/exec/{started}/json")["ExitCode"] or 0)
