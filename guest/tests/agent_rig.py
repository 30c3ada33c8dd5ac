"""A test rig of the agent alone: boots it in QEMU (TCG) and speaks its protocol, without the rest of insula.

The kernel and the initramfs come from the caller.  Needs busybox, mkfs.erofs, mke2fs.  Synchronous; used by
tests/integration/guest.
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import tempfile
import time
import uuid
from collections import defaultdict, deque
from pathlib import Path

SYNC = bytes.fromhex("f10d9a6e53796e432d696e73756c610a")
_NAMES = """
    HELLO OK ERROR PING IDENTITY CONFIGURE WORKLOAD SECCOMP START SIGNAL EXITED ATTACH EXEC STDIN STDIN_END
    STDOUT STDERR CREDIT CLOSE CLOSED RESIZE STATS PS STAT GET PUT CHANGES SYNC FREEZE POWEROFF PAUSE RESET
    RENEW LIMIT NETWORK PREMOUNT
"""
TYPES = {name: number for number, name in enumerate(_NAMES.split(), 1)}
NAMES = {number: name for name, number in TYPES.items()}
_CAPS = """
    CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT
    KILL AUDIT_WRITE
"""
_CMDLINE = "console=ttyS0 panic=-1 quiet loglevel=5 tsc=reliable no_timer_check rcupdate.rcu_expedited=1"

Fields = list[tuple[str, str]]


class Refused(Exception):
    """The agent answered ERROR."""

    def __init__(self, fields: Fields) -> None:
        self.fields = dict(fields)
        super().__init__(str(self.fields))


def encode(fields: Fields) -> bytes:
    return b"".join(key.encode() + b"\0" + value.encode() + b"\0" for key, value in fields)


def decode(payload: bytes) -> Fields:
    parts = payload.decode(errors="surrogateescape").split("\0")[:-1]
    return list(zip(parts[::2], parts[1::2], strict=True))


def make_image(target: Path) -> None:
    """An erofs image of busybox with a few users and files."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for directory in ("bin", "etc", "tmp", "home/joe", "dir/sub", "proc"):
            (root / directory).mkdir(parents=True)
        root.chmod(0o755)
        (root / "tmp").chmod(0o1777)
        shutil.copy("/usr/bin/busybox", root / "bin/busybox")
        listed = subprocess.run(["/usr/bin/busybox", "--list"], check=True, capture_output=True, text=True)
        for applet in listed.stdout.split():
            if applet != "busybox":
                (root / "bin" / applet).symlink_to("busybox")
        (root / "etc/passwd").write_text(
            "root:x:0:0:root:/root:/bin/sh\njoe:x:1000:1000::/home/joe:/bin/sh\n"
        )
        (root / "etc/group").write_text("root:x:0:\njoe:x:1000:\naudio:x:29:joe\nwheel:x:10:\n")
        (root / "etc/machine-id").write_text("")
        (root / "etc/plain").write_text("not a program\n")
        (root / "dir/file").write_text("from the image\n")
        (root / "dir/sub/gone").write_text("to be deleted\n")
        target.unlink(missing_ok=True)
        subprocess.run(["mkfs.erofs", "-x-1", str(target), str(root)], check=True, capture_output=True)


class Guest:
    """One booted agent."""

    def __init__(
        self, kernel: str, initramfs: str, directory: Path, *, accel: str = "tcg", memory: int = 256
    ) -> None:
        self.directory = directory
        self.stash: dict[int, deque[tuple[str, bytes]]] = defaultdict(deque)
        self.seq = 0
        self.buffer = b""
        self.stream = 0
        image, upper = directory / "image.erofs", directory / "upper.ext4"
        if not image.exists():
            make_image(image)
        if not upper.exists():
            with upper.open("wb") as file:
                file.truncate(1 << 28)
            subprocess.run(["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", str(upper)], check=True)
        self.socket_path = directory / "control.sock"
        self.started = time.monotonic()
        self.qemu = subprocess.Popen(
            [
                "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
                "-machine", "q35,usb=off,vmport=off", "-accel", accel, "-m", str(memory), "-smp", "1",
                "-kernel", kernel, "-initrd", initramfs,
                "-append", _CMDLINE,
                "-serial", f"file:{directory}/console",
                "-device", "virtio-serial-pci,id=serial",
                "-chardev", f"socket,id=control,path={self.socket_path},server=on,wait=off",
                "-device", "virtserialport,chardev=control,name=insula.control",
                "-chardev", f"file,id=log,path={directory}/log,append=on",
                "-device", "virtserialport,chardev=log,name=insula.log",
                "-chardev", f"file,id=exit,path={directory}/exit",
                "-device", "virtserialport,chardev=exit,name=insula.exit",
                "-drive", f"if=none,id=image,format=raw,readonly=on,file={image}",
                "-device", "virtio-blk-pci,drive=image,serial=image",
                "-drive", f"if=none,id=upper,format=raw,file={upper}",
                "-device", "virtio-blk-pci,drive=upper,serial=upper",
                "-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,mac=02:00:00:00:00:01",
            ]
        )  # fmt: skip
        self.socket = socket.socket(socket.AF_UNIX)

    def connect(self, timeout: float = 60) -> dict[str, str]:
        """Synchronise; the fields of HELLO."""
        deadline = time.monotonic() + timeout
        while True:
            self.socket.close()
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(timeout)
            try:
                self.socket.connect(str(self.socket_path))
                break
            except OSError:
                if time.monotonic() > deadline or self.qemu.poll() is not None:
                    raise
                time.sleep(0.01)
        nonce = os.urandom(16)
        self.buffer = b""
        self.stash.clear()
        self.socket.sendall(SYNC + nonce)
        while SYNC + nonce not in self.buffer:
            self.buffer += self.receive()
        self.buffer = self.buffer.split(SYNC + nonce, 1)[1]
        kind, payload = self.next(0)
        assert kind == "HELLO"
        return dict(decode(payload))

    def receive(self) -> bytes:
        data = self.socket.recv(65536)
        if not data:
            raise EOFError("the guest is gone")
        return data

    def send(self, kind: str, stream: int, payload: bytes = b"") -> None:
        pieces = [payload[at : at + 65536] for at in range(0, len(payload), 65536)] or [b""]
        for index, piece in enumerate(pieces):
            more = index + 1 < len(pieces)
            self.socket.sendall(struct.pack("<IBBH", len(piece), TYPES[kind], more, stream) + piece)

    def next(self, stream: int) -> tuple[str, bytes]:
        """The next message on a stream; others are kept."""
        partial: dict[tuple[int, int], bytes] = {}
        while not self.stash[stream]:
            while len(self.buffer) < 8 or len(self.buffer) < 8 + struct.unpack_from("<I", self.buffer)[0]:
                self.buffer += self.receive()
            length, kind, flags, on = struct.unpack_from("<IBBH", self.buffer)
            payload = partial.pop((kind, on), b"") + self.buffer[8 : 8 + length]
            self.buffer = self.buffer[8 + length :]
            if flags & 1:
                partial[kind, on] = payload
            else:
                self.stash[on].append((NAMES[kind], payload))
        return self.stash[stream].popleft()

    def ask(self, kind: str, *fields: tuple[str, str]) -> Fields:
        self.seq += 1
        self.send(kind, 0, encode([("seq", str(self.seq)), *fields]))
        return self.answer(0)

    def answer(self, stream: int) -> Fields:
        kind, payload = self.next(stream)
        while kind == "CREDIT":
            kind, payload = self.next(stream)
        if kind == "ERROR":
            raise Refused(decode(payload))
        assert kind == "OK", (kind, payload)
        answer = decode(payload)
        if stream == 0:
            assert dict(answer)["seq"] == str(self.seq)
        return answer

    def identify(self) -> Fields:
        return self.ask(
            "IDENTITY",
            ("hostname", "rig"),
            ("domainname", ""),
            ("entropy", os.urandom(64).hex()),
            ("time_ns", str(time.time_ns())),
            ("machine_id", "0123456789abcdef0123456789abcdef"),
            ("generation", str(uuid.uuid4())),
        )

    def configure(self, *more: tuple[str, str]) -> Fields:
        return self.ask("CONFIGURE", ("image_serial", "image"), ("upper_serial", "upper"), *more)

    def process(self, *args: str, **options: str) -> Fields:
        fields = [("arg", arg) for arg in args]
        fields += [("env", "PATH=/bin:/usr/bin"), ("env", "TERM=xterm")]
        fields += [("cap", f"CAP_{name}") for name in _CAPS.split()]
        return fields + list(options.items())

    def prepare(self, *args: str, more: Fields | None = None, **options: str) -> None:
        self.identify()
        self.configure(*(more or []))
        self.ask("WORKLOAD", *self.process(*args, **options))

    def open(self, kind: str, *fields: tuple[str, str]) -> int:
        self.stream += 1
        self.send(kind, self.stream, encode(list(fields)))
        return self.stream

    def collect(self, stream: int) -> tuple[bytes, bytes, dict[str, str]]:
        """Everything to the end of a stream: stdout, stderr, EXITED's fields."""
        out = {"STDOUT": b"", "STDERR": b""}
        exited: dict[str, str] = {}
        while True:
            kind, payload = self.next(stream)
            if kind in out:
                out[kind] += payload
                self.send("CREDIT", stream, struct.pack("<I", len(payload)))
            elif kind == "EXITED":
                exited = dict(decode(payload))
            elif kind == "ERROR":
                raise Refused(decode(payload))
            elif kind == "CLOSED":
                return out["STDOUT"], out["STDERR"], exited

    def run(self, *args: str, stdin: bytes | None = None, **options: str) -> tuple[bytes, bytes, int]:
        """exec"""
        if stdin is not None:
            options["stdin"] = "1"
        stream = self.open("EXEC", *self.process(*args, **options))
        self.answer(stream)
        if stdin is not None:
            self.send("STDIN", stream, stdin)
            self.send("STDIN_END", stream)
        out, err, exited = self.collect(stream)
        return out, err, int(exited["code"])

    def text(self, name: str) -> str:
        return (self.directory / name).read_text(errors="replace")

    def finish(self, timeout: float = 30) -> int:
        """Wait for the machine to be off."""
        return self.qemu.wait(timeout)

    def kill(self) -> None:
        self.socket.close()
        if self.qemu.poll() is None:
            self.qemu.kill()
            self.qemu.wait()
