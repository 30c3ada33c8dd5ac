"""`insula system df`: what takes disk space, summed up or item by item."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from insula.cli.connect import pass_client
from insula.cli.flags import ROWS_FORMAT
from insula.cli.show import print_found, row_of
from insula.cli.table import age_of, human_size, print_rows

_ACTIVE = ("running", "paused", "restarting")
_IMAGE_HEADINGS = (
    *("REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"),
    *("SHARED SIZE", "UNIQUE SIZE", "CONTAINERS"),
)
_CACHE_HEADINGS = ("CACHE ID", "CACHE TYPE", "SIZE", "LAST USED", "USAGE")


@click.command()
@click.option("-v", "--verbose", is_flag=True, help="Each image, instance, volume and cache by itself.")
@ROWS_FORMAT
@click.pass_context
def df(ctx: click.Context, verbose: bool, template: str | None) -> None:
    """Disk space of images, instances, volumes and caches."""
    found = pass_client(ctx).get("/system/df")
    if verbose:
        if template:
            parts = {key: found.get(key) or [] for key in ("Images", "Containers", "Volumes", "BuildCache")}
            print_found([parts], template)
        else:
            _show_all(found)
        return
    columns = {
        "Type": "TYPE",
        "TotalCount": "TOTAL",
        "Active": "ACTIVE",
        "Size": "SIZE",
        "Reclaimable": "RECLAIMABLE",
    }
    print_rows(make_summary(found), columns, template=template)


def make_summary(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the API's answer to /system/df, as docker sums them up.  Pure."""
    images, containers = found.get("Images") or [], found.get("Containers") or []
    volumes, caches = found.get("Volumes") or [], found.get("BuildCache") or []
    layers = int(found.get("LayersSize") or 0)
    # what several images share is nobody's own, and stays when one of them goes
    held = sum(_own_size(image) for image in images if image.get("Containers", 0) > 0)
    idle = [one for one in containers if one.get("State") not in _ACTIVE]
    free = [one for one in volumes if _count(one) == 0]
    used = [one for one in caches if one.get("InUse")]
    return [
        _row("Images", images, sum(i.get("Containers", 0) > 0 for i in images), layers, layers - held),
        _row("Containers", containers, len(containers) - len(idle), _sum(containers), _sum(idle)),
        _row("Local Volumes", volumes, sum(_count(one) > 0 for one in volumes), _sum(volumes), _sum(free)),
        _row("Build Cache", caches, len(used), _sum(caches), _sum(caches) - _sum(used), percent=False),
    ]


def _own_size(image: dict[str, Any]) -> int:
    size, shared = int(image.get("Size", -1)), int(image.get("SharedSize", -1))
    return 0 if size < 0 or shared < 0 else size - shared


def _count(volume: dict[str, Any]) -> int:
    return int((volume.get("UsageData") or {}).get("RefCount") or 0)


def _size(item: dict[str, Any]) -> int:
    """Of a container what it has written, of a volume or a cache all; -1 is not known."""
    usage = item.get("UsageData") or item
    return max(0, int(usage.get("SizeRw") or usage.get("Size") or 0))


def _sum(items: Sequence[dict[str, Any]]) -> int:
    return sum(map(_size, items))


def _row(
    title: str, items: Sequence[Any], active: int, size: int, free: int, *, percent: bool = True
) -> dict[str, Any]:
    free = max(0, free)
    share = f" ({free * 100 // size}%)" if percent and size > 0 else ""
    return {
        "Type": title,
        "TotalCount": len(items),
        "Active": active,
        "Size": human_size(size),
        "Reclaimable": human_size(free) + share,
    }


def _show_all(found: dict[str, Any]) -> None:
    print("Images space usage:\n")
    headings = (
        "REPOSITORY",
        "TAG",
        "IMAGE ID",
        "CREATED",
        "SIZE",
        "SHARED SIZE",
        "UNIQUE SIZE",
        "CONTAINERS",
    )
    print_rows([row for one in found.get("Images") or () for row in _image_rows(one)], _same(headings))
    print("\nContainers space usage:\n")
    columns = {
        "ID": "CONTAINER ID",
        "Image": "IMAGE",
        "Command": "COMMAND",
        "LocalVolumes": "LOCAL VOLUMES",
        "Size": "SIZE",
        "RunningFor": "CREATED",
        "Status": "STATUS",
        "Names": "NAMES",
    }
    rows = [row_of(one, False) | {"Size": human_size(_size(one))} for one in found.get("Containers") or ()]
    print_rows(rows, columns)
    print("\nLocal Volumes space usage:\n")
    volumes = [
        {"VOLUME NAME": one["Name"], "LINKS": _count(one), "SIZE": _known_size(one["UsageData"])}
        for one in found.get("Volumes") or ()
    ]
    print_rows(volumes, _same(("VOLUME NAME", "LINKS", "SIZE")))
    caches = found.get("BuildCache") or []
    print(f"\nBuild cache usage: {human_size(_sum(caches))}\n")
    print_rows([_cache_row(one) for one in caches], _same(_CACHE_HEADINGS))


def _same(headings: Sequence[str]) -> dict[str, str]:
    return {heading: heading for heading in headings}


def _known_size(usage: dict[str, Any]) -> str:
    return "N/A" if usage["Size"] < 0 else human_size(usage["Size"])


def _image_rows(image: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for tag in image.get("RepoTags") or ["<none>:<none>"]:
        repository, _, word = tag.rpartition(":")
        rows.append(
            {
                "REPOSITORY": repository,
                "TAG": word,
                "IMAGE ID": image["Id"].removeprefix("sha256:")[:12],
                "CREATED": age_of(image["Created"]),
                "SIZE": human_size(image["Size"]),
                "SHARED SIZE": human_size(max(0, image.get("SharedSize", 0))),
                "UNIQUE SIZE": human_size(_own_size(image)),
                "CONTAINERS": image.get("Containers", 0),
            }
        )
    return rows


def _cache_row(cache: dict[str, Any]) -> dict[str, Any]:
    return {
        "CACHE ID": cache["ID"][:12],
        "CACHE TYPE": cache.get("Type", ""),
        "SIZE": human_size(_size(cache)),
        "LAST USED": cache.get("LastUsedAt") or "",
        "USAGE": cache.get("UsageCount", 0),
    }
