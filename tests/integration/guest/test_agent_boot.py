"""The agent in a real kernel: boots under TCG, without the rest of insula, and keeps to the protocol."""

from __future__ import annotations

import asyncio
import io
import os
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "guest"))
sys.path.insert(0, str(ROOT / "guest" / "tests"))

import agent_rig as rig  # noqa: E402

from insula.isolation.vm.guest import make_guest  # noqa: E402

pytestmark = [
    pytest.mark.integration,
    pytest.mark.vm,
    pytest.mark.skipif(os.geteuid() != 0, reason="root makes the image's files"),
]

Boot = Callable[[], rig.Guest]


@pytest.fixture
def boot(tmp_path: Path, guest_cache: Path) -> Iterator[Boot]:
    guests: list[rig.Guest] = []

    def start() -> rig.Guest:
        made = asyncio.run(make_guest(str(guest_cache.parent)))
        guests.append(rig.Guest(made.vmlinuz, made.initramfs, tmp_path))
        assert guests[-1].connect()["state"] == "idle"
        return guests[-1]

    yield start
    for guest in guests:
        guest.kill()


def exit_record(guest: rig.Guest) -> str:
    assert guest.finish() == 0
    return guest.text("exit")


def test_main_process_has_stdio_log_and_exit_record(boot: Boot) -> None:
    guest = boot()
    guest.prepare(
        "sh", "-c", "echo out; echo err >&2; hostname; cat; printf tail; exit 3", stdin="1", stdin_once="1"
    )  # fmt: skip
    stream = guest.open("ATTACH")
    guest.answer(stream)
    guest.ask("START")
    guest.send("STDIN", stream, b"typed\n")
    guest.send("STDIN_END", stream)
    out, err, _ = guest.collect(stream)
    assert (out, err) == (b"out\nrig\ntyped\ntail", b"err\n")
    kind, payload = guest.next(0)
    assert kind == "EXITED"
    assert dict(rig.decode(payload))["code"] == "3"
    assert exit_record(guest).startswith('{"code":3,"oom":false,"time_ns":')
    records = [line.split(" ", 1)[1] for line in guest.text("log").splitlines()]
    assert sorted(records) == sorted(
        ["stdout F out", "stderr F err", "stdout F rig", "stdout F typed", "stdout P tail"]
    )


def test_nobody_types_the_end_of_input_at_a_terminal(boot: Boot) -> None:
    guest = boot()
    guest.prepare("sh", tty="1", stdin="1", stdin_once="1")
    first = guest.open("ATTACH")
    guest.answer(first)
    guest.ask("START")
    guest.send("STDIN_END", first)
    guest.send("CLOSE", first)
    script = "(sleep 0.5; echo still; kill -9 $$) & cat; echo over"
    stream = guest.open("EXEC", *guest.process("sh", "-c", script, tty="1", stdin="1"))
    guest.send("STDIN_END", stream)
    out, _, exited = guest.collect(stream)
    assert (out, exited["code"]) == (b"still\r\n", "137")
    assert guest.connect()["state"] == "running"  # the host was away, too
    second = guest.open("ATTACH")
    guest.answer(second)
    guest.send("STDIN", second, b"exit 5\n")
    guest.collect(second)
    assert '"code":5' in exit_record(guest)


def test_output_is_logged_and_the_end_recorded_while_no_host_is_there(boot: Boot) -> None:
    guest = boot()
    guest.prepare("sh", "-c", "sleep 0.5; yes | head -c 400000; exit 6")
    guest.answer(guest.open("ATTACH"))
    guest.ask("START")
    guest.socket.close()
    assert '"code":6' in exit_record(guest)
    assert len(guest.text("log").splitlines()) == 200_000


def test_a_host_that_comes_back_is_always_answered(boot: Boot) -> None:
    """Bytes and the news of a connection reach the driver by two queues, in either order."""
    guest = boot()
    guest.prepare("sh", "-c", "while true; do echo alive; sleep 0.01; done")
    guest.ask("START")
    for _ in range(100):
        assert guest.connect(10)["state"] == "running"


def test_command_that_cannot_run_is_an_error_of_start(boot: Boot) -> None:
    guest = boot()
    with pytest.raises(rig.Refused, match="no IDENTITY"):
        guest.ask("START")
    guest.prepare("nosuch")
    for program, kind in (
        ("nosuch", "not-found"),
        ("/etc/plain", "not-executable"),
        ("/etc", "not-executable"),
    ):
        guest.ask("WORKLOAD", *guest.process(program))
        with pytest.raises(rig.Refused) as refused:
            guest.ask("START")
        assert refused.value.fields["kind"] == kind
    guest.ask("WORKLOAD", *guest.process("true"))
    guest.ask("START")
    assert '"code":0' in exit_record(guest)


def test_execs_have_users_terminals_signals_and_exit_codes(boot: Boot) -> None:
    guest = boot()
    guest.prepare("sleep", "1000", init="1")
    guest.ask("START")
    assert guest.run("id", user="joe")[0] == b"uid=1000(joe) gid=1000(joe) groups=29(audio),1000(joe)\n"
    assert guest.run("grep", "CapEff", "/proc/self/status", user="joe")[0].split()[1] == b"0" * 16
    assert guest.run("cat", stdin=b"x" * 200_000) == (b"x" * 200_000, b"", 0)
    assert len(guest.run("head", "-c", "1000000", "/dev/zero")[0]) == 1_000_000
    stream = guest.open("EXEC", *guest.process("sh", tty="1", stdin="1", rows="33", cols="77"))
    guest.answer(stream)
    guest.send("STDIN", stream, b"tty; stty size; exit 5\n")
    out, _, exited = guest.collect(stream)
    assert b"/dev/pts/0\r\n33 77\r\n" in out
    assert exited["code"] == "5"
    stream = guest.open("EXEC", *guest.process("sleep", "1000"))
    pid = dict(guest.answer(stream))["pid"]
    guest.ask("SIGNAL", ("signal", "15"), ("pid", pid))
    assert guest.collect(stream)[2]["code"] == "143"
    with pytest.raises(rig.Refused, match="not-found"):
        guest.run("nosuch")
    # a cut in the middle of a frame, and nonsense
    guest.socket.sendall(b"\x40\0\0\0\x04" + os.urandom(200))
    assert guest.connect()["state"] == "running"
    assert guest.run("sh", "-c", "sleep 1000 & echo hi")[0] == b"hi\n"
    guest.ask("SIGNAL", ("signal", "9"))
    assert '"code":137' in exit_record(guest)


def test_root_is_as_configured(boot: Boot) -> None:
    guest = boot()
    guest.prepare(
        "sleep", "1000", masked="/proc/kcore", readonly="/proc/sys",
        more=[
            ("read_only", "1"),
            ("mount", "tmpfs\ttmpfs\t/tmp\tnosuid,nodev\tsize=1m,mode=1777"),
            ("file", "/etc/hosts\t127.0.0.1\\tlocalhost\\n"),
            ("nic", "02:00:00:00:00:01 eth0 10.0.2.15/24,fd00::5/64 10.0.2.2 1400"),
            ("sysctl", "net.ipv4.ip_forward=1"),
            ("cgroup", "pids.max=50"),
        ],
    )  # fmt: skip
    guest.ask("START")

    def output(script: str) -> str:
        out, err, _ = guest.run("sh", "-c", script)
        return (out + err).decode().strip()

    assert "Read-only" in output("touch /x")
    assert output("touch /tmp/y && echo fine") == "fine"
    assert output("cat /etc/hosts") == "127.0.0.1\tlocalhost"
    assert output("cat /etc/machine-id") == "0123456789abcdef0123456789abcdef"
    assert "inet 10.0.2.15/24 brd 10.0.2.255" in output("ip a show eth0")
    assert "fd00::5/64" in output("ip a show eth0")
    assert "mtu 1400" in output("ip a show eth0")
    assert "default via 10.0.2.2 dev eth0" in output("ip r")
    assert output("cat /proc/sys/net/ipv4/ip_forward") == "1"
    assert "Read-only" in output("echo 0 >/proc/sys/net/ipv4/ip_forward")
    assert output("wc -c </proc/kcore") == "0"
    assert output("cat /sys/fs/cgroup/pids.max") == "50"
    assert output("echo $(ulimit -n)") == "1048576"
    assert output("tr '\\0' ' ' </proc/1/cmdline") == "sleep 1000"


def test_files_go_in_and_out(boot: Boot) -> None:
    guest = boot()
    guest.prepare("sleep", "1000")
    guest.ask("START")
    guest.run(
        "sh", "-c", "echo x >/dir/new; ln /dir/new /dir/hard; rm -r /dir/sub; mkdir /n; echo >>/etc/plain"
    )
    changes = guest.collect(guest.open("CHANGES"))[0].decode().split("\0")[:-1]
    assert sorted(changes) == sorted(
        ["C /dir", "A /dir/new", "A /dir/hard", "D /dir/sub", "A /n", "C /etc/plain"]
    )

    def members(**fields: str) -> dict[str, tarfile.TarInfo]:
        data = guest.collect(guest.open("GET", *fields.items()))[0]
        return {member.name: member for member in tarfile.open(fileobj=io.BytesIO(data))}

    assert {"dir", "dir/file", "dir/new", "dir/hard"} == set(members(path="/dir"))
    layer = members(form="layer")
    assert {"dir", "dir/new", "dir/hard", "dir/.wh.sub", "n", "etc", "etc/plain"} == set(layer)
    assert sum(member.islnk() for member in layer.values()) == 1
    assert "bin/busybox" in members(form="root")
    with pytest.raises(rig.Refused, match="no-such-path"):
        members(path="/none")

    def put(path: str, name: str, **options: str) -> None:
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.uid = 100_000, 0o4755, 5
            tar.addfile(member, io.BytesIO(b"z" * 100_000))
        stream = guest.open("PUT", ("path", path), *options.items())
        guest.send("STDIN", stream, archive.getvalue())
        guest.send("STDIN_END", stream)
        guest.answer(stream)
        guest.collect(stream)

    put("/dir", "deep/file")
    assert guest.run("stat", "-c", "%a %u %s", "/dir/deep/file")[0] == b"4755 5 100000\n"
    with pytest.raises(rig.Refused, match="leads outside"):
        put("/dir", "../evil")
    with pytest.raises(rig.Refused, match="cannot overwrite directory"):
        put("/dir", "deep", no_overwrite_dir="1")
    assert dict(guest.ask("STAT", ("path", "/dir/file")))["size"] == "15"
    guest.send("POWEROFF", 0)
    assert guest.finish() == 0


def test_memory_running_out_is_reported(boot: Boot) -> None:
    guest = boot()
    guest.prepare("dd", "if=/dev/zero", "of=/dev/null", "bs=400M", "count=1")
    guest.ask("START")
    assert exit_record(guest).startswith('{"code":137,"oom":true')


def test_a_root_that_is_mounted_ahead_is_on_its_own_disk(boot: Boot) -> None:
    guest = boot()
    disks = (("image_serial", "image"), ("upper_serial", "upper"))
    hosts = ("file", "/etc/hosts\tahead\\n")
    with pytest.raises(rig.Refused, match="needs"):
        guest.ask("PREMOUNT", disks[1], hosts)
    for more, said in (
        ((), "on another upper disk"),
        ((("upper_fresh", "1"), ("mount", "tmpfs\ttmpfs\t/tmp\t\t")), "go over mounts"),
    ):
        guest.ask("PREMOUNT", *disks, hosts)
        with pytest.raises(rig.Refused, match=said):
            guest.configure(*more)
    guest.ask("PREMOUNT", *disks, hosts)
    guest.prepare("sleep", "1000", more=[("upper_fresh", "1"), ("file", "/etc/hosts\tnow\\n")])
    guest.ask("START")
    assert guest.run("cat", "/etc/hosts")[0] == b"now\n"
    assert guest.run("grep", "-c", "/etc/hosts", "/proc/mounts")[0] == b"1\n"
    assert guest.run("sh", "-c", "echo mine >/mine; cat /mine")[0] == b"mine\n"


def test_nothing_of_a_rehearsals_limits_and_rules_stays(boot: Boot) -> None:
    guest = boot()
    guest.prepare("true", more=[("rehearsal", "1"), ("cgroup", "pids.max=50")])
    guest.ask("START")
    assert guest.next(0)[0] == "EXITED"
    guest.ask("RESET")
    guest.prepare("sleep", "1000", privileged="1")
    guest.ask("START")
    assert int(guest.run("cat", "/sys/fs/cgroup/pids.max")[0]) > 50
    assert guest.run("sh", "-c", "head -c 1 /dev/vda | wc -c")[0] == b"1\n"
