"""Volumes and mounts with the stock client, in both isolations, and one volume in both at once."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rig import IMAGE, Daemon, isolated

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

FULL = "full:test"


@pytest.fixture(scope="module")
def full(daemon: Daemon) -> Iterator[str]:
    """An image with something at /data, of a user's, and a VOLUME at /own."""
    script = (
        "mkdir -p /data/sub /own; echo it >/data/sub/file; echo mine >/own/file;"
        "chown -R 1000:50 /data; chmod 750 /data; chmod 600 /data/sub/file"
    )
    made = daemon.ok("run", "-d", IMAGE, "sh", "-c", script)
    daemon.ok("wait", made)
    daemon.ok("commit", "-c", "VOLUME /own", made, FULL)
    daemon.ok("rm", made)
    yield FULL
    daemon.ok("rmi", FULL)


def run(daemon: Daemon, isolation: str, *words: str) -> str:
    return daemon.ok(*isolated(isolation, "run", "--rm", *words))


def mounted(daemon: Daemon, volume: str) -> bool:
    return os.path.ismount(daemon.ok("volume", "inspect", "-f", "{{.Mountpoint}}", volume))


def test_a_fresh_volume_gets_what_the_image_has_at_its_place(
    daemon: Daemon, full: str, isolation: str, name: str
) -> None:
    look = "stat -c '%a %u %g' /data /data/sub/file; cat /data/sub/file; ls -A /none; cat /part/file"
    daemon.ok("volume", "create", f"{name}-part")
    point = Path(daemon.ok("volume", "inspect", "-f", "{{.Mountpoint}}", f"{name}-part"))
    (point / "in/side").mkdir(parents=True)
    (point / "in/side/file").write_text("of the part\n")
    words = ("-v", f"{name}:/data", "--mount", f"src={name}-none,dst=/none,volume-nocopy")
    part = ("--mount", f"type=volume,src={name}-part,dst=/part,volume-subpath=in/side,readonly")
    shown = run(daemon, isolation, *words, *part, full, "sh", "-c", f"{look}; echo x >/part/file || echo no")
    assert ["750 1000 50", "600 1000 50", "it", "of the part", "no"] == shown.splitlines()
    daemon.ok("volume", "rm", name, f"{name}-none", f"{name}-part")


def test_a_part_of_a_volume_is_inside_it_and_there(daemon: Daemon, isolation: str, name: str) -> None:
    point = Path(daemon.ok("volume", "inspect", "-f", "{{.Mountpoint}}", daemon.ok("volume", "create", name)))
    (point / "out").symlink_to("/etc")
    wrong = {
        "missing": f"cannot access path {point}/missing: No such file",
        "out": f"path concatenation escapes the base directory, base: {point}, subpath: out",
    }
    for part, words in wrong.items():
        mount = f"type=volume,src={name},dst=/x,volume-subpath={part}"
        made = daemon.ok(*isolated(isolation, "create", "--mount", mount, IMAGE, "ls", "/x"))
        done = daemon.docker("start", made)
        assert 1 == done.returncode
        assert words.encode() in done.stderr
        daemon.ok("rm", made)
    above = f"type=volume,src={name},dst=/x,volume-subpath=../x"
    done = daemon.docker(*isolated(isolation, "create", "--mount", above, IMAGE))
    assert b"subpath must be a relative path within the volume" in done.stderr
    daemon.ok("volume", "rm", name)


def test_the_volumes_of_another(daemon: Daemon, full: str, isolation: str, name: str) -> None:
    """And anonymous ones go with the last that has them."""
    other = "vm" if isolation == "process" else "process"
    daemon.ok(*isolated(other, "create", "--name", name, "-v", f"{name}:/named", "-v", "/nameless", full))
    read_only = "cat /own/file; for d in /named /nameless /own; do echo x >$d/x || echo no; done"
    words = ("--volumes-from", f"{name}:ro", full, "sh", "-c", read_only)
    assert ["mine", "no", "no", "no"] == run(daemon, isolation, *words).splitlines()
    writing = daemon.ok(
        *isolated(isolation, "run", "-d", "--volumes-from", name, "-v", "/nameless", full),
        *("sh", "-c", "for d in /named /nameless /own; do echo x >$d/x; done"),
    )
    assert "0" == daemon.ok("wait", writing)
    mounts = "{{range .Mounts}}{{.Destination}} {{.Name}} {{.RW}};{{end}}"
    own, inherited = (daemon.ok("inspect", "-f", mounts, ref) for ref in (name, writing))
    assert sorted(own.split(";")) == sorted(inherited.split(";"))
    volumes = [entry.split()[1] for entry in filter(None, own.split(";"))]
    assert 3 == len(set(volumes))
    daemon.ok("rm", "-v", name)
    in_use = daemon.docker("volume", "rm", *volumes)
    assert in_use.stderr.count(f"volume is in use - [{writing}]".encode()) == 3
    daemon.ok("rm", "-v", writing)
    left = daemon.ok("volume", "ls", "-q").split()
    assert [name] == [volume for volume in volumes if volume in left]
    daemon.ok("volume", "rm", name)
    missing = daemon.docker("create", "--pull", "never", "--volumes-from", "nobody", IMAGE, "true")
    assert b"No such container: nobody" in missing.stderr


def test_what_the_local_driver_mounts_while_it_is_used(daemon: Daemon, isolation: str, name: str) -> None:
    options = ("--opt", "type=tmpfs", "--opt", "device=tmpfs", "--opt", "o=size=1m,uid=1000,mode=770")
    daemon.ok("volume", "create", *options, "--label", "kind=memory", name)
    volume = json.loads(daemon.ok("volume", "inspect", name))[0]
    assert {"type": "tmpfs", "device": "tmpfs", "o": "size=1m,uid=1000,mode=770"} == volume["Options"]
    assert not mounted(daemon, name)
    mount = ("--mount", f"type=volume,src={name},dst=/m")
    shared = daemon.ok(*isolated(isolation, "run", "-d", "--name", name, *mount, IMAGE, "sleep", "1000"))
    assert mounted(daemon, name)
    look = ("sh", "-c", "stat -c '%u %a' /m; df -k /m | awk 'NR==2 {print $2}'; echo seen >/m/file")
    assert ["1000 770", "1024"] == daemon.ok("exec", shared, *look).splitlines()
    assert "seen" == daemon.ok("run", "--rm", "-v", f"{name}:/m", IMAGE, "cat", "/m/file")
    assert mounted(daemon, name)
    daemon.ok("rm", "-f", shared)
    assert not mounted(daemon, name)
    assert os.listdir(volume["Mountpoint"]) == []
    daemon.ok("volume", "rm", name)


def test_a_bind_as_a_volume_and_what_cannot_be_mounted(
    daemon: Daemon, isolation: str, name: str, tmp_path: Path
) -> None:
    (tmp_path / "there").write_text("here\n")
    bind = f"type=volume,src={name},dst=/m,volume-label=a=b,volume-opt=type=none,volume-opt=o=bind"
    shown = run(
        daemon, isolation, "--mount", f"{bind},volume-opt=device={tmp_path}", IMAGE, "cat", "/m/there"
    )
    assert "here" == shown
    assert "map[a:b]" == daemon.ok("volume", "inspect", "-f", "{{.Labels}}", name)
    daemon.ok("volume", "rm", name)
    assert "here\n" == (tmp_path / "there").read_text()
    gone = f"{bind},volume-opt=device={tmp_path}/gone"
    made = daemon.ok(*isolated(isolation, "create", "--mount", f"{gone},volume-nocopy", IMAGE, "true"))
    done = daemon.docker("start", made)
    assert b"error while mounting volume" in done.stderr
    assert b"No such file or directory" in done.stderr
    daemon.ok("rm", made)
    daemon.ok("volume", "rm", name)


@pytest.mark.vm
def test_one_volume_in_a_container_and_a_vm_at_once(daemon: Daemon, name: str) -> None:
    for kind in ("process", "vm"):
        words = ("-d", "--name", f"{name}-{kind}", "-v", f"{name}:/both", IMAGE, "sleep", "1000")
        daemon.ok(*isolated(kind, "run", *words))
    for writer, reader in (("process", "vm"), ("vm", "process")):
        daemon.ok(
            "exec", f"{name}-{writer}", "sh", "-c", f"echo {writer} >/both/{writer}; chown 7 /both/{writer}"
        )
        look = ("sh", "-c", f"cat /both/{writer}; stat -c %u /both/{writer}")
        assert [writer, "7"] == daemon.ok("exec", f"{name}-{reader}", *look).splitlines()
    # and what grows on one side is read to its end on the other
    follow = daemon.command(
        "docker", "exec", f"{name}-vm", "sh", "-c", "until grep end /both/process; do :; done"
    )
    with subprocess.Popen(follow[0], env=follow[1], stdout=subprocess.PIPE) as following:
        daemon.ok("exec", f"{name}-process", "sh", "-c", "echo the end >>/both/process")
        assert b"the end\n" == following.communicate(timeout=60)[0]
    daemon.ok("rm", "-f", f"{name}-process", f"{name}-vm")
    daemon.ok("volume", "rm", name)


def test_binds_with_what_is_mounted_below(daemon: Daemon, isolation: str, name: str, tmp_path: Path) -> None:
    below = tmp_path / "below"
    below.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", below], check=True)
    try:
        (below / "file").write_text("below\n")
        kinds = {
            "plain": ("", "below written"),
            "alone": (",bind-recursive=disabled", "none written"),
            "read": (",readonly", "below no"),
            "force": (",readonly,bind-recursive=readonly,bind-propagation=rprivate", "below no"),
        }
        if isolation == "process":
            kinds["above"] = (",readonly,bind-recursive=writable", "below written")
        words = []
        for kind, (options, _) in kinds.items():
            words += ["--mount", f"type=bind,src={tmp_path},dst=/{kind}{options}"]
        script = (
            "for k in $KINDS; do echo $k $(cat /$k/below/file || echo none)"
            " $(echo x >/$k/below/new && echo written || echo no); done"
        )
        words += ["--env", f"KINDS={' '.join(kinds)}", IMAGE, "sh", "-c", script]
        shown = run(daemon, isolation, *words).splitlines()
        assert [f"{kind} {result}" for kind, (_, result) in kinds.items()] == shown
        if isolation == "vm":
            refused = ("--mount", f"type=bind,src={tmp_path},dst=/b,readonly,bind-recursive=writable")
            done = daemon.docker(*isolated(isolation, "create", *refused, IMAGE, "true"))
            assert b"ReadOnlyNonRecursive" in done.stderr
    finally:
        subprocess.run(["umount", below], check=True)


def test_listing_use_sizes_and_pruning(daemon: Daemon, isolation: str, name: str) -> None:
    daemon.ok("volume", "create", "--label", f"who={name}", f"{name}-named")
    nameless = daemon.ok("volume", "create", "--label", f"who={name}")
    script = "dd if=/dev/zero of=/u/file bs=1k count=100 2>/dev/null"
    words = ("--name", name, "-v", f"{name}-used:/u", "-v", "/x", IMAGE, "sh", "-c", script)
    daemon.ok(*isolated(isolation, "run", *words))

    def listed(*filters: str) -> set[str]:
        words = [word for each in filters for word in ("--filter", each)]
        return set(daemon.ok("volume", "ls", "-q", *words).split())

    label = f"label=who={name}"
    assert {f"{name}-named", nameless} == listed(label)
    assert {f"{name}-named", nameless} == listed(label, "dangling=true", "driver=local")
    assert set() == listed(label, "dangling=false")
    assert {f"{name}-named", f"{name}-used"} == listed(f"name={name}")
    usage = daemon.client.get("/system/df", type="volume")["Volumes"]
    [used] = [v["UsageData"] for v in usage if v["Name"] == f"{name}-used"]
    assert 1 == used["RefCount"]
    assert 100 * 1024 <= used["Size"] < 200 * 1024
    assert nameless in daemon.ok("volume", "prune", "-f", "--filter", label)
    assert f"{name}-named" in daemon.ok("volume", "prune", "-f", "-a", "--filter", label)
    [anonymous] = daemon.ok(
        "inspect", "-f", '{{range .Mounts}}{{if eq .Destination "/x"}}{{.Name}}{{end}}{{end}}', name
    ).split()
    daemon.ok("rm", "-v", name)
    assert {f"{name}-used"} == listed(f"name={name}")
    assert anonymous not in listed()
    daemon.ok("volume", "rm", f"{name}-used")


def test_what_is_told_of_volumes(daemon: Daemon, isolation: str, name: str) -> None:
    since = daemon.client.get("/info")["SystemTime"]
    run(daemon, isolation, "-v", f"{name}:/v:ro", IMAGE, "true")
    daemon.ok("volume", "rm", name)
    form = "{{.Action}} {{json .Actor.Attributes}}"
    until = daemon.client.get("/info")["SystemTime"]
    words = ("--since", since, "--until", until, "--filter", f"volume={name}", "--format", form)
    told = [line.split(" ", 1) for line in daemon.ok("events", *words).splitlines()]
    assert ["create", "mount", "unmount", "destroy"] == [action for action, _ in told]
    mount = json.loads(told[1][1])
    container = mount.pop("container")
    assert {"driver": "local", "destination": "/v", "read/write": "false", "propagation": ""} == mount
    assert {"driver": "local", "container": container} == json.loads(told[2][1])


def test_copying_into_and_out_of_volumes_of_one_that_does_not_run(
    daemon: Daemon, full: str, isolation: str, name: str, tmp_path: Path
) -> None:
    """What CI does: create, cp, start.  Named volume, part of one, one with options, bind, and the root."""
    part = Path(
        daemon.ok("volume", "inspect", "-f", "{{.Mountpoint}}", daemon.ok("volume", "create", f"{name}-p"))
    )
    (part / "in").mkdir()
    (tmp_path / "file").write_text("copied\n")
    (tmp_path / "there").mkdir()
    (tmp_path / "disk").mkdir()
    bind = f"volume-opt=type=none,volume-opt=o=bind,volume-opt=device={tmp_path}/disk,volume-nocopy"
    daemon.ok(
        *isolated(
            isolation, "create", "--name", name, "-v", f"{name}:/data", "-v", f"{tmp_path}/there:/bind"
        ),
        *("--mount", f"src={name}-p,dst=/part,volume-subpath=in"),
        *("--mount", f"type=volume,src={name}-o,dst=/disk,{bind}"),
        *(
            full,
            "cat",
            "/data/file",
            "/data/sub/file",
            "/bind/file",
            "/part/file",
            "/disk/file",
            "/root/file",
        ),
    )
    for place in ("/data", "/bind/", "/part/file", "/disk", "/root"):
        daemon.ok("cp", f"{tmp_path}/file", f"{name}:{place}")
    assert "copied\n" == (tmp_path / "disk/file").read_text()
    assert not mounted(daemon, f"{name}-o")
    daemon.ok("start", name)
    assert "0" == daemon.ok("wait", name)
    assert ["copied", "it", *["copied"] * 4] == daemon.ok("logs", name).splitlines()
    daemon.ok("cp", f"{name}:/data", f"{tmp_path}/out")
    assert "it\n" == (tmp_path / "out/sub/file").read_text()
    daemon.ok("cp", f"{name}:/part/.", f"{tmp_path}/parts")
    assert ["file"] == os.listdir(tmp_path / "parts")
    missing = daemon.docker("cp", f"{name}:/data/none", "-")
    assert b"Could not find the file /data/none" in missing.stderr
    daemon.ok("rm", name)
    daemon.ok("volume", "rm", name, f"{name}-p", f"{name}-o")
