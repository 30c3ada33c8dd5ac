"""Copies of running instances: fork, snapshots, and Docker's checkpoints, which are the same snapshots."""

from __future__ import annotations

from aiohttp import web

from insula.api.call import Call, answer, empty, streaming
from insula.api.routing import Route
from insula.api.times import format_time
from insula.api.wire.copies import CheckpointCreateOptions, ForkConfig, RestoreConfig, SnapshotConfig
from insula.engine.types import SnapshotView
from insula.errors import Conflict, InvalidRequest
from insula.model.instance import State


def refuse_directory(path: str) -> None:
    """Docker's containerd refuses it too.  Raises InvalidRequest."""
    if path:
        raise InvalidRequest(
            "custom checkpointdir is not supported",
            hint="checkpoints are kept with their container; insula snapshot export makes a file of one",
        )


async def fork(call: Call) -> web.StreamResponse:
    asked = await call.json(ForkConfig, optional=True)
    forked = await call.engine.fork(call.names["id"], count=asked.Count, name=asked.Name)
    return answer(
        {
            "Copies": [{"Id": each.id, "Name": each.name, "Error": each.error} for each in forked.copies],
            "PauseMs": round(forked.pause_ns / 1e6, 1),
            "Warnings": list(forked.warnings),
        },
        status=201,
    )


def _shown(view: SnapshotView) -> dict[str, object]:
    return {
        "Name": view.name,
        "Instance": view.instance_id,
        "InstanceName": view.instance_name,
        "Image": view.image,
        "MemoryMiB": view.memory_mib,
        "Created": format_time(view.created_ns),
        "Size": view.size_bytes,
    }


async def list_snapshots(call: Call) -> web.StreamResponse:
    return answer([_shown(view) for view in call.engine.snapshots(call.text("container") or None)])


async def make_snapshot(call: Call) -> web.StreamResponse:
    asked = await call.json(SnapshotConfig, optional=True)
    view = await call.engine.make_snapshot(call.names["id"], asked.Name, leave_running=asked.LeaveRunning)
    return answer(_shown(view), status=201)


async def remove_snapshot(call: Call) -> web.StreamResponse:
    await call.engine.remove_snapshot(call.names["id"], call.names["name"])
    return empty()


async def restore(call: Call) -> web.StreamResponse:
    """The instance itself, or with `Name` another one that goes on from there."""
    asked = await call.json(RestoreConfig, optional=True)
    if asked.Name:
        made = await call.engine.restore_as(call.names["id"], call.names["name"], asked.Name)
    else:
        instance = call.engine.find(call.names["id"])
        if instance.state in (State.RUNNING, State.PAUSED, State.RESTARTING):
            raise Conflict(
                f"container {instance.name} is {instance.state}",
                hint="stop it first, or give the restored one a name of its own: --as NAME",
            )
        made = instance.id
        await call.engine.restore(made, call.names["name"])
    return answer({"Id": made}, status=201)


async def export_snapshot(call: Call) -> web.StreamResponse:
    pieces = await call.engine.export_snapshot(call.names["id"], call.names["name"])
    response = streaming("application/x-tar")
    await response.prepare(call.http)
    async for piece in pieces:
        await response.write(piece)
    return response


async def import_snapshot(call: Call) -> web.StreamResponse:
    instance_id, name = await call.engine.import_snapshot(call.pieces(), call.text("name"))
    made = call.engine.find(instance_id)
    return answer({"Id": instance_id, "Name": made.name, "Snapshot": name}, status=201)


async def list_checkpoints(call: Call) -> web.StreamResponse:
    refuse_directory(call.text("dir"))
    return answer([{"Name": view.name} for view in call.engine.snapshots(call.names["id"])])


async def make_checkpoint(call: Call) -> web.StreamResponse:
    asked = await call.json(CheckpointCreateOptions)
    refuse_directory(asked.CheckpointDir)
    if not asked.CheckpointID:
        raise InvalidRequest("CheckpointID: a checkpoint needs a name")
    await call.engine.make_snapshot(call.names["id"], asked.CheckpointID, leave_running=not asked.Exit)
    return empty(201)


async def remove_checkpoint(call: Call) -> web.StreamResponse:
    refuse_directory(call.text("dir"))
    return await remove_snapshot(call)


_ONE = "/insula/v1/containers/{id}/snapshots/{name}"

ROUTES = (
    Route("POST", "/insula/v1/containers/{id}/fork", fork, completes=True),
    Route("GET", "/insula/v1/snapshots", list_snapshots),
    Route("POST", "/insula/v1/snapshots/import", import_snapshot, archive=True),
    Route("POST", "/insula/v1/containers/{id}/snapshots", make_snapshot, completes=True),
    Route("POST", f"{_ONE}/restore", restore, completes=True),
    Route("GET", f"{_ONE}/export", export_snapshot),
    Route("DELETE", _ONE, remove_snapshot, completes=True),
    Route("GET", "/containers/{id}/checkpoints", list_checkpoints),
    Route("POST", "/containers/{id}/checkpoints", make_checkpoint, completes=True),
    Route("DELETE", "/containers/{id}/checkpoints/{name}", remove_checkpoint, completes=True),
)
