"""Everything that outlives the daemon: instances, plans, images, networks, volumes, journal.  Synchronous.

Records go in and out as the model's dataclasses.  A row that cannot be read is left out of lists, logged
and listed by `damage()`; asked for by its key it raises CorruptData.  Not for bytes of images or logs:
those are files.  Every call takes well under a millisecond and is made from the event loop's thread.

Writes of instances, plans, endpoints and the journal do not sync (see `database`): what a power loss
takes back there, the loss has also ended.  Images, tags, networks, volumes and meta do.
"""

from __future__ import annotations

import dataclasses
import logging
import sqlite3
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import TypeVar

from insula.errors import Conflict, CorruptData, NameInUse, NoSuchImage
from insula.model import codec
from insula.model.image import Image
from insula.model.instance import Instance
from insula.model.network import Endpoint, Network, PortBinding
from insula.model.operation import Operation
from insula.model.volume import Volume
from insula.store.database import Database

log = logging.getLogger(__name__)

T = TypeVar("T")
Ports = tuple[PortBinding, ...]


class Store:
    def __init__(self, path: str) -> None:
        """Opens or makes the file.  Raises Failure for a newer schema, CorruptData, Unavailable, DiskFull."""
        self._db = Database(path)
        self._damage: dict[tuple[str, str], CorruptData] = {}

    def close(self) -> None:
        self._db.close()

    def transaction(self, *, durable: bool = False) -> AbstractContextManager[None]:
        """All of the calls inside, or none.  Nothing may be awaited inside.

        `durable`: synced at its end, so that a power loss does not take it back; the outermost decides.
        """
        return self._db.transaction(durable=durable)

    def damage(self) -> tuple[CorruptData, ...]:
        """The rows that could not be read so far, one sentence each."""
        return tuple(self._damage.values())

    # reading records

    def _decode(self, table: str, key: str, record: str, kind: type[T]) -> T:
        try:
            return codec.decode(record, kind)
        except CorruptData as error:
            damaged = CorruptData(f"{self._db.path}: {table} {key}: {error.message}")
            if (table, key) not in self._damage:
                log.error("%s", damaged)
            self._damage[table, key] = damaged
            raise damaged from error

    def _list(self, table: str, key: str, kind: type[T]) -> list[T]:
        found: list[T] = []
        for name, record in self._db.rows(f"SELECT {key}, record FROM {table} ORDER BY {key}"):
            try:
                found.append(self._decode(table, name, record, kind))
            except CorruptData:  # logged and kept for damage()
                continue
        return found

    # instances

    def put_instance(self, instance: Instance) -> None:
        """Add or replace by id.  Raises NameInUse."""
        try:
            self._db.execute(
                "INSERT INTO instances (id, name, image_id, record) VALUES (?, ?, ?, ?) ON CONFLICT (id) "
                "DO UPDATE SET name = excluded.name, image_id = excluded.image_id, record = excluded.record",
                (instance.id, instance.name, instance.image_id, codec.encode(instance)),
            )
        except sqlite3.IntegrityError:
            holder = self._db.row("SELECT id FROM instances WHERE name = ?", (instance.name,))
            raise NameInUse(instance.name, holder[0] if holder else "") from None

    def get_instance(self, instance_id: str) -> Instance | None:
        row = self._db.row("SELECT record FROM instances WHERE id = ?", (instance_id,))
        return self._decode("instances", instance_id, row[0], Instance) if row else None

    def get_instances(self) -> list[Instance]:
        """Oldest first."""
        found = self._list("instances", "id", Instance)
        return sorted(found, key=lambda instance: (instance.created_ns, instance.id))

    def delete_instance(self, instance_id: str) -> None:
        """The instance and its plan; not its endpoints, which `network` gives back.  Idempotent."""
        with self._db.transaction():
            self._db.execute("DELETE FROM plans WHERE instance_id = ?", (instance_id,))
            self._db.execute("DELETE FROM instances WHERE id = ?", (instance_id,))

    def put_plan(self, instance_id: str, plan: str) -> None:
        """`plan` is a LaunchPlan as `model.codec` writes it (its type is above the store)."""
        self._db.execute(
            "INSERT INTO plans (instance_id, record) VALUES (?, ?) ON CONFLICT (instance_id) "
            "DO UPDATE SET record = excluded.record",
            (instance_id, plan),
        )

    def get_plan(self, instance_id: str) -> str | None:
        row = self._db.row("SELECT record FROM plans WHERE instance_id = ?", (instance_id,))
        return row[0] if row else None

    # images

    def put_image(self, image: Image) -> None:
        """Add or replace by id.  Its `tags` and `digests` are not stored: see set_tag, set_digest."""
        record = codec.encode(dataclasses.replace(image, tags=(), digests=()))
        content = {*image.diff_ids, *(layer.digest for layer in image.layers)}
        with self._db.transaction(durable=True):
            self._db.execute(
                "INSERT INTO images (id, record) VALUES (?, ?) ON CONFLICT (id) "
                "DO UPDATE SET record = excluded.record",
                (image.id, record),
            )
            self._db.execute("DELETE FROM image_content WHERE image_id = ?", (image.id,))
            for digest in content:
                self._db.execute("INSERT INTO image_content VALUES (?, ?)", (image.id, digest))

    def images(self) -> list[Image]:
        """With their tags and digests, sorted."""
        tags = _by_image(self.tags())
        digests = _by_image(self.digests())
        return [
            dataclasses.replace(image, tags=tags.get(image.id, ()), digests=digests.get(image.id, ()))
            for image in self._list("images", "id", Image)
        ]

    def delete_image(self, image_id: str) -> None:
        """With its tags and digests.  Fine if it is not there."""
        with self._db.transaction(durable=True):
            self._db.execute("DELETE FROM images WHERE id = ?", (image_id,))

    def content(self) -> set[str]:
        """Every digest that some image needs; whatever else lies in the content store is left over."""
        return {row[0] for row in self._db.rows("SELECT DISTINCT digest FROM image_content")}

    def set_tag(self, name: str, image_id: str) -> None:
        """Let `name` mean this image, whatever it meant before.  Raises NoSuchImage."""
        self._set_name("tags", name, image_id)

    def tags(self) -> dict[str, str]:
        return self._pairs("SELECT name, image_id FROM tags ORDER BY name")

    def delete_tag(self, name: str) -> None:
        with self._db.transaction(durable=True):
            self._db.execute("DELETE FROM tags WHERE name = ?", (name,))

    def set_digest(self, name_at_digest: str, image_id: str) -> None:
        """`name@sha256:…` as pulled or pushed.  Raises NoSuchImage."""
        self._set_name("digests", name_at_digest, image_id)

    def digests(self) -> dict[str, str]:
        return self._pairs("SELECT name, image_id FROM digests ORDER BY name")

    def delete_digest(self, name_at_digest: str) -> None:
        with self._db.transaction(durable=True):
            self._db.execute("DELETE FROM digests WHERE name = ?", (name_at_digest,))

    def _set_name(self, table: str, name: str, image_id: str) -> None:
        try:
            with self._db.transaction(durable=True):
                self._db.execute(
                    f"INSERT INTO {table} (name, image_id) VALUES (?, ?) ON CONFLICT (name) "
                    "DO UPDATE SET image_id = excluded.image_id",
                    (name, image_id),
                )
        except sqlite3.IntegrityError:
            raise NoSuchImage(image_id) from None

    def _pairs(self, sql: str) -> dict[str, str]:
        return {row[0]: row[1] for row in self._db.rows(sql)}

    # networks

    def put_network(self, network: Network) -> None:
        """Add or replace by id."""
        with self._db.transaction(durable=True):
            self._db.execute(
                "INSERT INTO networks (id, record) VALUES (?, ?) ON CONFLICT (id) "
                "DO UPDATE SET record = excluded.record",
                (network.id, codec.encode(network)),
            )

    def networks(self) -> list[Network]:
        return self._list("networks", "id", Network)

    def delete_network(self, network_id: str) -> None:
        with self._db.transaction(durable=True):
            self._db.execute("DELETE FROM networks WHERE id = ?", (network_id,))

    def put_endpoint(self, instance_id: str, endpoint: Endpoint, ports: Iterable[PortBinding] = ()) -> None:
        """Add or replace an instance's place on a network.  Raises Conflict when the address is taken."""
        try:
            self._db.execute(
                "INSERT INTO endpoints (instance_id, network_id, address, record, ports) "
                "VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT (instance_id, network_id) DO UPDATE SET address = excluded.address, "
                "record = excluded.record, ports = excluded.ports",
                (
                    instance_id,
                    endpoint.network_id,
                    endpoint.address,
                    codec.encode(endpoint),
                    codec.encode(tuple(ports)),
                ),
            )
        except sqlite3.IntegrityError:
            raise Conflict(
                f"address {endpoint.address} on network {endpoint.network_name} is already in use"
            ) from None

    def endpoints(self) -> list[tuple[str, Endpoint, Ports]]:
        """(instance id, endpoint, its published ports), in the order they were made."""
        found: list[tuple[str, Endpoint, Ports]] = []
        sql = "SELECT instance_id, network_id, record, ports FROM endpoints ORDER BY rowid"
        for instance_id, network_id, record, ports in self._db.rows(sql):
            key = f"{instance_id} on {network_id}"
            try:
                endpoint = self._decode("endpoints", key, record, Endpoint)
                found.append((instance_id, endpoint, self._decode("endpoints", key, ports, Ports)))
            except CorruptData:  # logged and kept for damage()
                continue
        return found

    def delete_endpoints(self, instance_id: str, network_id: str = "") -> None:
        """On one network, or on all.  Idempotent."""
        if network_id:
            sql = "DELETE FROM endpoints WHERE instance_id = ? AND network_id = ?"
            self._db.execute(sql, (instance_id, network_id))
        else:
            self._db.execute("DELETE FROM endpoints WHERE instance_id = ?", (instance_id,))

    # volumes

    def put_volume(self, volume: Volume) -> None:
        """Add or replace by name."""
        with self._db.transaction(durable=True):
            self._db.execute(
                "INSERT INTO volumes (name, record) VALUES (?, ?) ON CONFLICT (name) "
                "DO UPDATE SET record = excluded.record",
                (volume.name, codec.encode(volume)),
            )

    def volumes(self) -> list[Volume]:
        return self._list("volumes", "name", Volume)

    def delete_volume(self, name: str) -> None:
        with self._db.transaction(durable=True):
            self._db.execute("DELETE FROM volumes WHERE name = ?", (name,))

    # the journal

    def begin_operation(self, instance_id: str, kind: str, detail: str = "") -> int:
        """Note that something was begun; returns the id for `end_operation`."""
        cursor = self._db.execute(
            "INSERT INTO operations (instance_id, kind, detail, started_ns) VALUES (?, ?, ?, ?)",
            (instance_id, kind, detail, time.time_ns()),
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def end_operation(self, operation_id: int) -> None:
        """It was completed, or undone."""
        self._db.execute("DELETE FROM operations WHERE id = ?", (operation_id,))

    def operations(self) -> list[Operation]:
        """Those begun and not ended, oldest first: after a crash, the work of recovery."""
        sql = "SELECT id, instance_id, kind, detail, started_ns FROM operations ORDER BY id"
        return [
            Operation(id=int(row[0]), instance_id=row[1], kind=row[2], detail=row[3], started_ns=int(row[4]))
            for row in self._db.rows(sql)
        ]

    # meta: single values such as the daemon's id

    def get_meta(self, key: str) -> str | None:
        row = self._db.row("SELECT value FROM meta WHERE key = ?", (key,))
        return row[0] if row else None

    def set_meta(self, key: str, value: str) -> None:
        with self._db.transaction(durable=True):
            self._db.execute(
                "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) "
                "DO UPDATE SET value = excluded.value",
                (key, value),
            )


def _by_image(names: dict[str, str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for name, image_id in names.items():
        found.setdefault(image_id, []).append(name)
    return {image_id: tuple(sorted(of_one)) for image_id, of_one in found.items()}
