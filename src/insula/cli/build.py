"""build: an image from a Dockerfile, each RUN in a container or in a virtual machine."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import sys
from typing import Any
from urllib.parse import urlencode

import click

from insula.cli.connect import pass_client
from insula.cli.progress import show_progress
from insula.cli.values import parse_bytes, parse_pairs, parse_ulimit
from insula.errors import InvalidRequest

_MOST_SECRETS = 7600  # what fits into a header, in base64
_ADDRESSES = ("http://", "https://")


@click.command()
@click.option(
    "-t", "--tag", "tags", multiple=True, metavar="NAME[:TAG]", help="Name of the image; repeatable."
)
@click.option(
    "-f", "--file", "dockerfile", default="", metavar="FILE", help="Dockerfile (`-`: standard input)."
)
@click.option(
    "--isolation", metavar="WORD", help="Where RUNs run: process, vm (a kernel of their own), default."
)
@click.option(
    "--build-arg", multiple=True, metavar="NAME[=VALUE]", help="Value of an ARG; alone: from the environment."
)
@click.option("--target", metavar="STAGE", help="Build up to this stage.")
@click.option(
    "--secret", "secret", multiple=True, metavar="id=ID[,src=FILE]", help="For RUN --mount=type=secret."
)
@click.option("--no-cache", is_flag=True, help="Take no step from the cache.")
@click.option("--cache-from", multiple=True, metavar="IMAGE", help="Take steps from this image only.")
@click.option("--pull", is_flag=True, help="Ask the registry for newer bases.")
@click.option("--squash", is_flag=True, help="One layer for all that the last stage adds.")
@click.option("--label", multiple=True, metavar="KEY=VALUE", help="Set a label.")
@click.option("--platform", metavar="OS/ARCH", help="Platform of the bases.")
@click.option("-q", "--quiet", is_flag=True, help="Print the image's id and nothing else.")
@click.option("--iidfile", metavar="FILE", help="Write the image's id to a file.")
@click.option("--rm/--no-rm", "remove", default=True, help="Remove the instances of RUNs (default: yes).")
@click.option("--force-rm", is_flag=True, help="Also that of one that failed.")
@click.option("--network", metavar="NETWORK", help="Network of RUNs: bridge, none, host, or a network.")
@click.option("--add-host", multiple=True, metavar="NAME:ADDRESS", help="Line for /etc/hosts of RUNs.")
@click.option("-m", "--memory", metavar="BYTES", help="Memory limit of RUNs; sizes a VM.")
@click.option("--memory-swap", metavar="BYTES", help="Memory and swap together; -1 is unlimited.")
@click.option("-c", "--cpu-shares", type=int, metavar="N", help="Relative weight.")
@click.option("--cpu-period", type=int, metavar="US", help="CFS period in microseconds.")
@click.option("--cpu-quota", type=int, metavar="US", help="CFS quota in microseconds.")
@click.option("--cpuset-cpus", metavar="LIST", help="CPUs that RUNs may use: 0-1,3.")
@click.option("--cpuset-mems", metavar="LIST", help="Memory nodes that RUNs may use.")
@click.option("--shm-size", metavar="BYTES", help="Size of /dev/shm.")
@click.option("--ulimit", multiple=True, metavar="NAME=SOFT[:HARD]", help="Resource limit of RUNs.")
@click.option("--security-opt", multiple=True, metavar="OPTION", help="As of run.")
@click.option("--cgroup-parent", metavar="PATH", help="Parent cgroup of RUNs.")
@click.option(
    "--compress", is_flag=True, hidden=True
)  # over a local socket compression costs and saves nothing
@click.option("--disable-content-trust", is_flag=True, hidden=True)
@click.argument("context", metavar="PATH|URL|-")
@click.pass_context
def build(ctx: click.Context, /, context: str, **given: Any) -> int:
    """Build an image from a Dockerfile.

    The context is a directory, an address (of a tar, a Dockerfile or a git repository), or - for a tar or a
    Dockerfile on standard input.
    """
    from insula.cli.context import is_git, send_directory, send_input, start_clone

    dockerfile = given["dockerfile"]
    headers = {**_auth(), **_secrets(given["secret"])}
    with contextlib.ExitStack() as stack:
        remote = ""
        pieces: Any = b""
        if context == "-":
            if dockerfile == "-":
                raise InvalidRequest(
                    "invalid argument: can't use stdin for both build context and dockerfile"
                )
            sent = send_input(sys.stdin.buffer, dockerfile)
            pieces, dockerfile = sent.pieces, sent.dockerfile
        elif context.startswith(_ADDRESSES) and not is_git(context):
            remote = context
        else:
            if is_git(context):
                place = stack.enter_context(start_clone(context))
                dockerfile = os.path.join(place, dockerfile) if dockerfile not in ("", "-") else dockerfile
                context = place
            sent = send_directory(context, dockerfile, sys.stdin.buffer)
            pieces, dockerfile = sent.pieces, sent.dockerfile
        query = urlencode(_query(given, dockerfile, remote))
        answer = pass_client(ctx).request("POST", f"/build?{query}", raw=pieces, headers=headers)
        return _show(answer.lines(), quiet=given["quiet"], iidfile=given["iidfile"])


def _query(given: dict[str, Any], dockerfile: str, remote: str) -> list[tuple[str, str]]:
    arguments = {}
    for word in given["build_arg"]:
        name, equals, value = word.partition("=")
        if equals or name in os.environ:
            arguments[name] = value if equals else os.environ[name]
    fields: dict[str, Any] = {
        "dockerfile": dockerfile,
        "remote": remote,
        "isolation": given["isolation"],
        "target": given["target"],
        "platform": given["platform"],
        "networkmode": given["network"],
        "buildargs": json.dumps(arguments) if arguments else "",
        "labels": json.dumps(parse_pairs(given["label"], "--label")) if given["label"] else "",
        "cachefrom": json.dumps(list(given["cache_from"])) if given["cache_from"] else "",
        "ulimits": json.dumps([parse_ulimit(word) for word in given["ulimit"]]) if given["ulimit"] else "",
        "cpushares": given["cpu_shares"],
        "cpuperiod": given["cpu_period"],
        "cpuquota": given["cpu_quota"],
        "cpusetcpus": given["cpuset_cpus"],
        "cpusetmems": given["cpuset_mems"],
        "cgroupparent": given["cgroup_parent"],
        "memory": parse_bytes(given["memory"], "--memory") if given["memory"] else "",
        "shmsize": parse_bytes(given["shm_size"], "--shm-size") if given["shm_size"] else "",
    }
    if swap := given["memory_swap"]:
        fields["memswap"] = -1 if swap == "-1" else parse_bytes(swap, "--memory-swap")
    for name, flag in (("nocache", "no_cache"), ("pull", "pull"), ("squash", "squash"), ("q", "quiet")):
        fields[name] = "1" if given[flag] else ""
    fields["rm"] = "1" if given["remove"] else "0"
    fields["forcerm"] = "1" if given["force_rm"] else ""
    many = [("t", tag) for tag in given["tags"]]
    many += [("extrahosts", word) for word in given["add_host"]]
    many += [("securityopt", word) for word in given["security_opt"]]
    return [*many, *((name, str(value)) for name, value in fields.items() if value not in (None, ""))]


def _auth() -> dict[str, str]:
    """Every registry's credentials that Docker's file has: which one FROM needs is not known here."""
    from insula.cli.registry import all_auth_header

    return all_auth_header()


def _secrets(words: tuple[str, ...]) -> dict[str, str]:
    found = []
    for word in words:
        fields = parse_pairs(tuple(word.split(",")), "--secret")
        kind = fields.pop("type", "")
        ident = fields.pop("id", "")
        source = fields.pop("src", "") or fields.pop("source", "")
        variable = fields.pop("env", "")
        if not ident or " " in ident or fields or kind not in ("", "file", "env"):
            raise InvalidRequest(f"--secret: {word!r} is not id=ID[,src=FILE] or id=ID,env=NAME")
        found.append(f"{ident}={base64.b64encode(_secret(ident, source, variable, kind)).decode()}")
    header = " ".join(found)
    if len(header) > _MOST_SECRETS:
        raise InvalidRequest(
            f"--secret: all together are larger than {_MOST_SECRETS * 3 // 4} bytes",
            hint="give a key, and fetch the rest with it",
        )
    return {"X-Insula-Secrets": header} if found else {}


def _secret(ident: str, source: str, variable: str, kind: str) -> bytes:
    if not source and (variable or kind == "env" or ident in os.environ):
        name = variable or ident
        if name not in os.environ:
            raise InvalidRequest(f"--secret: {ident}: the environment has no {name}")
        return os.environb[os.fsencode(name)]
    try:
        with open(source or ident, "rb") as file:
            return file.read(_MOST_SECRETS)
    except OSError as error:
        raise InvalidRequest(f"--secret: {ident}: {source or ident}: {error.strerror}") from None


def _show(messages: Any, *, quiet: bool, iidfile: str | None) -> int:
    """What the build says goes to standard output, as docker's.  Returns the code of a RUN that failed."""
    image_id = ""

    def others() -> Any:
        nonlocal image_id
        for message in messages:
            if "stream" in message:
                sys.stdout.write(message["stream"])
                sys.stdout.flush()
                if quiet and message["stream"].startswith("sha256:"):
                    image_id = message["stream"].strip()
            elif "ID" in message.get("aux", {}):
                image_id = message["aux"]["ID"]
            elif "error" in message:
                code = message.get("errorDetail", {}).get("code") or 1
                raise _StepFailed(message["error"], int(code))
            else:
                yield message

    try:
        show_progress(others(), quiet=quiet)
    except _StepFailed as failed:
        print(f"insula: {failed}", file=sys.stderr)
        return failed.code
    if iidfile:
        with open(iidfile, "w", encoding="ascii") as file:
            file.write(image_id)
    return 0


class _StepFailed(Exception):
    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code
