"""The store: what goes in comes out, doubles are refused, damage is named, a crash loses nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from insula.errors import Conflict, CorruptData, DiskFull, Failure, NameInUse, NoSuchImage, Unavailable
from insula.model.image import Descriptor, Image, ImageConfig, Platform
from insula.model.instance import Instance, InstanceSpec, State
from insula.model.isolation import Isolation
from insula.model.network import Endpoint, LinkKind, Network, PortBinding
from insula.model.volume import Volume
from insula.store.migrations import STEPS
from insula.store.store import Store


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "insula.db")


@pytest.fixture
def store(path: str) -> Iterator[Store]:
    opened = Store(path)
    yield opened
    opened.close()


def an_instance(
    id: str = "a" * 64, name: str = "web", image_id: str = "sha256:1", created: int = 5
) -> Instance:
    spec = InstanceSpec(image="debian", isolation=Isolation.PROCESS, ports=(PortBinding(container_port=80),))
    return Instance(id=id, name=name, spec=spec, image_id=image_id, state=State.CREATED, created_ns=created)


def an_image(id: str = "sha256:1", layer: str = "sha256:l1") -> Image:
    return Image(
        id=id,
        config=ImageConfig(command=("sh",)),
        platform=Platform(),
        diff_ids=("sha256:d1",),
        layers=(Descriptor(media_type="m", digest=layer, size=3),),
    )


def an_endpoint(address: str = "172.29.0.2") -> Endpoint:
    return Endpoint(
        network_id="n1",
        network_name="bridge",
        kind=LinkKind.VETH,
        link="ivaaaaaaaaaa",
        interface="eth0",
        mac="02:42:ac:1d:00:02",
        address=address,
        prefix_len=16,
        gateway="172.29.0.1",
    )


def test_an_instance_comes_back_as_it_was_also_after_opening_again(store: Store, path: str) -> None:
    store.put_instance(an_instance())
    other = Store(path)
    assert other.get_instances() == [an_instance()]
    assert other.get_instance("a" * 64) == an_instance()
    assert other.get_instance("b" * 64) is None
    other.close()


def test_instances_are_listed_oldest_first(store: Store) -> None:
    store.put_instance(an_instance("a" * 64, "late", created=9))
    store.put_instance(an_instance("b" * 64, "early", created=1))
    assert [i.name for i in store.get_instances()] == ["early", "late"]


def test_putting_again_replaces(store: Store) -> None:
    store.put_instance(an_instance())
    changed = dataclasses.replace(an_instance(), name="db", state=State.RUNNING, pid=7)
    store.put_instance(changed)
    assert store.get_instances() == [changed]


def test_a_name_in_use_is_refused_with_its_holder(store: Store) -> None:
    store.put_instance(an_instance())
    with pytest.raises(NameInUse, match='"/web" is already in use by container "' + "a" * 64):
        store.put_instance(an_instance("b" * 64))
    assert len(store.get_instances()) == 1


def test_plans_go_with_their_instance(store: Store) -> None:
    store.put_instance(an_instance())
    store.put_plan("a" * 64, '{"x": 1}')
    store.put_plan("a" * 64, '{"x": 2}')
    assert store.get_plan("a" * 64) == '{"x": 2}'
    store.delete_instance("a" * 64)
    store.delete_instance("a" * 64)
    assert store.get_plan("a" * 64) is None
    assert store.get_instances() == []


def test_images_carry_the_tags_and_digests_set_for_them(store: Store) -> None:
    store.put_image(an_image())
    store.set_tag("debian:12", "sha256:1")
    store.set_tag("a:b", "sha256:1")
    store.set_digest("debian@sha256:9", "sha256:1")
    (image,) = store.images()
    assert image == dataclasses.replace(an_image(), tags=("a:b", "debian:12"), digests=("debian@sha256:9",))
    store.put_image(image)  # tags do not travel in the record
    store.delete_tag("a:b")
    store.delete_digest("debian@sha256:9")
    assert store.images()[0] == dataclasses.replace(an_image(), tags=("debian:12",))


def test_a_tag_moves_and_goes_with_its_image(store: Store) -> None:
    store.put_image(an_image())
    store.put_image(an_image("sha256:2", "sha256:l1"))
    store.set_tag("debian:12", "sha256:1")
    store.set_tag("debian:12", "sha256:2")
    assert store.tags() == {"debian:12": "sha256:2"}
    store.delete_image("sha256:2")
    assert store.tags() == {}
    with pytest.raises(NoSuchImage):
        store.set_tag("x:y", "sha256:2")


def test_content_is_what_some_image_needs(store: Store) -> None:
    store.put_image(an_image())
    store.put_image(an_image("sha256:2", "sha256:l2"))
    store.delete_image("sha256:1")
    assert store.content() == {"sha256:d1", "sha256:l2"}


def test_networks_and_endpoints(store: Store) -> None:
    network = Network(id="n1", name="bridge", driver="bridge", subnet="172.29.0.0/16")
    store.put_network(network)
    ports = (PortBinding(container_port=80, host_port=8080),)
    store.put_endpoint("i1", an_endpoint())
    store.put_endpoint("i1", an_endpoint(), ports)
    with pytest.raises(Conflict, match=r"172\.29\.0\.2"):
        store.put_endpoint("i2", an_endpoint())
    store.put_endpoint("i2", an_endpoint("172.29.0.3"))
    assert store.endpoints() == [("i1", an_endpoint(), ports), ("i2", an_endpoint("172.29.0.3"), ())]
    store.delete_endpoints("i1")
    assert [e[0] for e in store.endpoints()] == ["i2"]
    store.delete_network("n1")
    assert store.networks() == []


def test_volumes(store: Store) -> None:
    volume = Volume(name="data", mountpoint="/v/data/_data", created_ns=5, labels={"a": "b"})
    store.put_volume(volume)
    assert store.volumes() == [volume]
    store.delete_volume("data")
    assert store.volumes() == []


def test_the_journal_keeps_what_was_begun_and_not_ended(store: Store) -> None:
    first = store.begin_operation("i1", "create", "{}")
    second = store.begin_operation("i2", "remove")
    store.end_operation(first)
    (left,) = store.operations()
    assert (left.id, left.instance_id, left.kind, left.detail) == (second, "i2", "remove", "")


def test_meta(store: Store) -> None:
    assert store.get_meta("daemon-id") is None
    store.set_meta("daemon-id", "x")
    store.set_meta("daemon-id", "y")
    assert store.get_meta("daemon-id") == "y"


def test_a_transaction_is_all_or_nothing_also_nested(store: Store) -> None:
    with pytest.raises(RuntimeError), store.transaction():  # noqa: PT012
        store.put_instance(an_instance())
        with store.transaction():
            store.put_plan("a" * 64, "{}")
        raise RuntimeError
    assert store.get_instances() == []
    assert store.get_plan("a" * 64) is None
    with store.transaction(durable=True):
        store.put_instance(an_instance())
        store.begin_operation("i", "k")
    assert len(store.get_instances()) == 1


def test_a_refused_name_inside_a_transaction_takes_the_rest_with_it(store: Store) -> None:
    store.put_instance(an_instance())
    with pytest.raises(NameInUse), store.transaction():  # noqa: PT012
        store.begin_operation("i", "create")
        store.put_instance(an_instance("b" * 64))
    assert store.operations() == []


def test_a_damaged_row_is_named_and_the_others_still_listed(store: Store, path: str) -> None:
    store.put_instance(an_instance())
    store.put_instance(an_instance("b" * 64, "bad"))
    raw = sqlite3.connect(path)
    raw.execute("UPDATE instances SET record = '{\"id\": 1' WHERE name = 'bad'")
    raw.commit()
    raw.close()
    assert [i.name for i in store.get_instances()] == ["web"]
    assert [i.name for i in store.get_instances()] == ["web"]
    assert len(store.damage()) == 1
    assert "instances " + "b" * 64 in str(store.damage()[0])
    with pytest.raises(CorruptData, match="b" * 64):
        store.get_instance("b" * 64)
    store.delete_instance("b" * 64)


def test_records_without_newer_fields_are_read_with_defaults(store: Store, path: str) -> None:
    old = '{"name": "old", "mountpoint": "/m", "created_ns": 5, "a_later_field": 1}'
    raw = sqlite3.connect(path)
    raw.execute("""INSERT INTO volumes VALUES ('old', ?)""", (old,))
    raw.commit()
    raw.close()
    assert store.volumes() == [Volume(name="old", mountpoint="/m", created_ns=5)]


def test_networks_of_an_older_schema_are_kept(path: str) -> None:
    raw = sqlite3.connect(path)
    for statement in STEPS[0]:
        raw.execute(statement)
    raw.execute(
        """INSERT INTO networks VALUES ('n1', 'lan', '{"id": "n1", "name": "lan", "driver": "bridge"}')"""
    )
    raw.execute("PRAGMA user_version = 1")
    raw.commit()
    raw.close()
    with contextlib.closing(Store(path)) as opened:
        lan = Network(id="n1", name="lan", driver="bridge")
        assert [lan] == opened.networks()
        same = dataclasses.replace(lan, id="n2")
        opened.put_network(same)
        assert [lan, same] == opened.networks()


def test_a_newer_schema_is_refused(path: str) -> None:
    Store(path).close()
    raw = sqlite3.connect(path)
    raw.execute("PRAGMA user_version = 999")
    raw.close()
    with pytest.raises(Failure, match="schema 999, written by a newer insula"):
        Store(path)


def test_a_file_that_is_no_database_is_said_to_be_damaged(path: str) -> None:
    Path(path).write_bytes(b"not a database" * 400)
    with pytest.raises(CorruptData, match="is damaged"):
        Store(path)


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="cannot be opened"):
        Store(str(tmp_path / "no" / "insula.db"))


def test_a_full_disk_is_a_sentence_and_nothing_half_written(store: Store) -> None:
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count = {pages}")  # SQLite's own 'database or disk is full'
    with pytest.raises(DiskFull, match="no space left"), store.transaction():  # noqa: PT012
        for number in range(1000):
            store.put_plan(f"i{number}", "x" * 1000)
    store._db.execute("PRAGMA max_page_count = 1000000")
    assert store.get_plan("i0") is None
    store.put_plan("i0", "fits")
    assert store.get_plan("i0") == "fits"


def test_the_reserve_for_a_full_disk_stays_over_a_stop(path: str) -> None:
    """And nothing else of the log: who puts an older copy of the file in its place has that."""
    Store(path).close()
    reserve = os.stat(f"{path}-wal")
    assert 1 << 19 <= reserve.st_blocks * 512
    older = Path(path).read_bytes()
    store = Store(path)
    store.set_meta("colour", "red")
    store.close()
    again = os.stat(f"{path}-wal")
    assert (reserve.st_ino, True) == (again.st_ino, 1 << 19 <= again.st_blocks * 512)
    assert {"insula.db", "insula.db-wal", "insula.db-shm"} == set(os.listdir(os.path.dirname(path)))
    store = Store(path)
    assert "red" == store.get_meta("colour")
    store.close()
    Path(path).write_bytes(older)
    store = Store(path)
    assert store.get_meta("colour") is None
    store.close()


def test_what_was_committed_survives_kill_9(path: str) -> None:
    writer = (
        "import os, signal, sys\n"
        "from insula.store.store import Store\n"
        "store = Store(sys.argv[1])\n"
        "for n in range(50): store.put_plan(f'i{n}', '{}')\n"
        "with store.transaction():\n"
        "    store.put_plan('half', '{}')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    source = str(Path(__file__).parents[3] / "src")
    done = subprocess.run(
        [sys.executable, "-c", writer, path], env={**os.environ, "PYTHONPATH": source}, check=False
    )
    assert done.returncode == -signal.SIGKILL
    store = Store(path)
    assert store.get_plan("i49") == "{}"
    assert store.get_plan("half") is None
    store.close()
