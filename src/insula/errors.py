"""Every exception that insula raises on purpose, as one tree.

    InsulaError                      500
    ├── InvalidRequest               400   the request is malformed or asks for what cannot be
    │   ├── InvalidReference         400   an image name that the reference grammar does not accept
    │   ├── UnsupportedField         400   a field that this isolation, or insula so far, does not honour
    │   ├── CommandNotFound          400   the program to run is not in the image            (exit 127)
    │   ├── CommandNotExecutable     400   it is there and cannot be executed                (exit 126)
    │   └── CannotEnter              400   the working directory of an exec is not there     (exit 127)
    ├── Unauthorized                 401   a registry wants credentials, or refuses those it got
    ├── Forbidden                    403   policy says no
    ├── NotFound                     404
    │   ├── NoSuchInstance · NoSuchImage · NoSuchExec · NoSuchNetwork · NoSuchVolume · NoSuchPlugin ·
    │       NoSuchPath
    ├── Conflict                     409   the state of the thing does not allow it now
    │   ├── NameInUse                409
    │   └── ExecStarted              409   an exec is started once
    ├── NotModified                  304   it already is as asked (no body)
    ├── NotImplementedYet            501   a route of Docker's that insula does not have
    ├── Unavailable                  503   it cannot be done on this host, or not now
    └── Failure                      500   it should have worked
        ├── BuildStepFailed          500   a RUN of a build has ended badly; carries its exit code
        ├── ProgramMissing           500   a program that insula needs is not installed
        ├── ProgramFailed            500   a program ended badly; says how to run it by hand
        ├── RuntimeFailed            500   the OCI runtime or the hypervisor could not start an instance
        ├── GuestFailed              500   the guest's kernel or agent misbehaved
        ├── RegistryFailed           500   a registry answered with nonsense, or not at all
        ├── CorruptData              500   something stored or received does not match its digest or format
        ├── DiskFull                 500   no space left where insula stores things
        ├── DaemonUnreachable        500   (client side) nobody listens on the socket
        └── DaemonRefused            500   (client side) the daemon answered with an error; carries its status

Each class fixes its HTTP status (`status`) and the exit code of the command line (`exit_code`);
neither is decided anywhere else.  The message says what, which and why; `hint`, if the reader can
do something, says what to do.  Pure.
"""

from __future__ import annotations

import json
from typing import ClassVar


class InsulaError(Exception):
    """Base of everything insula raises on purpose."""

    status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 125

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class InvalidRequest(InsulaError):
    status = 400


class InvalidReference(InvalidRequest):
    pass


class UnsupportedField(InvalidRequest):
    """A field is set that cannot be honoured.  Nothing is silently ignored."""

    def __init__(self, field: str, why: str, *, hint: str | None = None) -> None:
        super().__init__(f"{field}: {why}", hint=hint)
        self.field = field


def _quoted(text: str) -> str:
    """As Go's %q."""
    return json.dumps(text, ensure_ascii=False)


class CommandNotFound(InvalidRequest):
    """The docker client turns this wording into exit code 127."""

    exit_code = 127

    def __init__(self, command: str, why: str = "executable file not found in $PATH") -> None:
        super().__init__(f"exec: {_quoted(command)}: {why}: unknown")
        self.command = command


class CommandNotExecutable(InvalidRequest):
    """The docker client turns this wording into exit code 126."""

    exit_code = 126

    def __init__(self, command: str, why: str = "permission denied") -> None:
        super().__init__(f"exec: {_quoted(command)}: {why}: unknown")
        self.command = command


class CannotEnter(InvalidRequest):
    """The working directory of an exec is not there, or is none.  runc's words, and dockerd's code for it."""

    exit_code = 127

    def __init__(self, cwd: str, why: str) -> None:
        super().__init__(f'chdir to cwd ("{cwd}") set in config.json failed: {why}: unknown')


class Unauthorized(InsulaError):
    status = 401


class Forbidden(InsulaError):
    status = 403


class NotFound(InsulaError):
    status = 404


class NoSuchInstance(NotFound):
    def __init__(self, ref: str) -> None:
        super().__init__(f"No such container: {ref}")


class NoSuchImage(NotFound):
    def __init__(self, ref: str, *, hint: str | None = None) -> None:
        super().__init__(f"No such image: {ref}", hint=hint)


class NoSuchExec(NotFound):
    def __init__(self, ref: str) -> None:
        super().__init__(f"No such exec instance: {ref}")


class NoSuchNetwork(NotFound):
    def __init__(self, ref: str) -> None:
        super().__init__(f"network {ref} not found")


class NoSuchVolume(NotFound):
    def __init__(self, ref: str) -> None:
        super().__init__(f"get {ref}: no such volume")


class NoSuchPlugin(NotFound):
    """Of volumes: another driver than the engine's own."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f'error looking up volume plugin {name}: plugin "{name}" not found',
            hint="there is one volume driver: local",
        )


class NoSuchPath(NotFound):
    def __init__(self, path: str, where: str) -> None:
        super().__init__(f"Could not find the file {path} in container {where}")


class Conflict(InsulaError):
    status = 409


class NameInUse(Conflict):
    def __init__(self, name: str, holder: str) -> None:
        super().__init__(
            f'Conflict. The container name "/{name}" is already in use by container "{holder}". '
            "You have to remove (or rename) that container to be able to reuse that name."
        )


class ExecStarted(Conflict):
    """`how`: "is already running", "has already run"."""

    def __init__(self, exec_id: str, how: str) -> None:
        super().__init__(f"Error: Exec command {exec_id} {how}")


class NotModified(InsulaError):
    """Already as asked.  The API answers 304 with no body; the command line takes it as success."""

    status = 304
    exit_code = 0


class NotImplementedYet(InsulaError):
    status = 501


class Unavailable(InsulaError):
    status = 503


class Failure(InsulaError):
    status = 500


class BuildStepFailed(Failure):
    """Docker's words, and `code` for the answer's `errorDetail`."""

    def __init__(self, command: str, code: int, why: str = "") -> None:
        super().__init__(
            f"The command '{command}' returned a non-zero code: {code}" + (f": {why}" if why else "")
        )
        self.command = command
        self.code = code


class ProgramMissing(Failure):
    def __init__(self, program: str, *, package: str | None = None) -> None:
        super().__init__(
            f"the program {program} is not installed",
            hint=f"apt-get install {package}" if package else None,
        )
        self.program = program


class ProgramFailed(Failure):
    """`command` is a line that the reader can paste into a shell."""

    def __init__(self, command: str, returncode: int, stderr: str) -> None:
        end = stderr.strip()[-2000:]
        super().__init__(f"exit status {returncode} from: {command}" + (f": {end}" if end else ""))
        self.command = command
        self.returncode = returncode
        self.stderr = stderr


class RuntimeFailed(Failure):
    pass


class GuestFailed(Failure):
    pass


class RegistryFailed(Failure):
    pass


class CorruptData(Failure):
    pass


class DiskFull(Failure):
    pass


class DaemonUnreachable(Failure):
    exit_code = 1


class DaemonRefused(Failure):
    """What a daemon, ours or another's, said no with.  `http_status` is its answer's."""

    exit_code = 1

    def __init__(self, http_status: int, message: str) -> None:
        super().__init__(message)
        self.http_status = http_status
