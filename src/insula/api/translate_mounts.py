"""Binds, Mounts, Tmpfs and Volumes of a create request to MountSpecs, in Docker's grammar.  Pure."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence

from insula.api.versions import NEWEST, Version
from insula.api.wire.host_config import BindOptions, Driver, Mount, VolumeOptions
from insula.errors import InvalidRequest, UnsupportedField
from insula.model.mounts import MountKind, MountSpec
from insula.model.paths import clean_path

_VOLUME_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_PROPAGATION = ("private", "rprivate", "shared", "rshared", "slave", "rslave")
# nothing to do on Linux without SELinux; Docker takes them too
_WITHOUT_EFFECT = ("z", "Z", "consistent", "cached", "delegated")


def parse_mounts(
    binds: Sequence[str],
    mounts: Sequence[Mount],
    tmpfs: Mapping[str, str],
    volumes: Mapping[str, object],
    *,
    driver: str = "",
    version: Version = NEWEST,
) -> tuple[MountSpec, ...]:
    """`driver`: of new volumes that are not in `mounts`.  Raises InvalidRequest, UnsupportedField."""
    found: dict[str, MountSpec] = {}
    specs = [parse_bind(text) for text in binds]
    specs += [parse_mount(mount, version) for mount in mounts]
    specs += [
        MountSpec(
            kind=MountKind.TMPFS,
            target=_target(path, path),
            options=tuple(o for o in options.split(",") if o),
            legacy=True,
        )
        for path, options in tmpfs.items()
    ]
    for spec in specs:
        if spec.target in found:
            raise InvalidRequest(f"Duplicate mount point: {spec.target}")
        found[spec.target] = spec
    for text in volumes:
        # `-v /data` alone arrives here; a mount of the same place wins
        spec = parse_bind(text) if ":" in text else anonymous(text)
        found.setdefault(spec.target, spec)
    return tuple(
        dataclasses.replace(spec, driver=driver) if spec.kind is MountKind.VOLUME and spec.legacy else spec
        for spec in found.values()
    )


def anonymous(path: str) -> MountSpec:
    return MountSpec(kind=MountKind.VOLUME, target=_target(path, path), legacy=True)


def parse_bind(text: str) -> MountSpec:
    """`source:target[:options]`; a source that is no absolute path names a volume.  Raises InvalidRequest."""
    parts = text.split(":")
    if len(parts) == 1:
        return dataclasses.replace(anonymous(text), text=text)
    if len(parts) > 3 or "" in parts[:2]:
        raise InvalidRequest(f"invalid volume specification: '{text}'")
    source, target = parts[0], _target(parts[1], text)
    options = [o for o in (parts[2] if len(parts) == 3 else "").split(",") if o]
    read_only, propagation, no_copy = False, "", False
    seen: set[str] = set()
    for option in options:
        group = "mode" if option in ("ro", "rw") else "propagation" if option in _PROPAGATION else option
        if group in seen:
            raise InvalidRequest(f"invalid mode: {parts[2]}")
        seen.add(group)
        if group == "mode":
            read_only = option == "ro"
        elif group == "propagation":
            propagation = option
        elif option == "nocopy":  # `copy` is of Windows only
            no_copy = True
        elif option not in _WITHOUT_EFFECT:
            raise InvalidRequest(f"invalid mode: {parts[2]}")
    if source.startswith("/"):
        if no_copy:
            raise InvalidRequest(f"invalid mode: {parts[2]}", hint="nocopy is for named volumes")
        kind, source = MountKind.BIND, clean_path(source)
    else:
        kind = MountKind.VOLUME
        if propagation:
            raise InvalidRequest(
                'invalid mount config for type "volume": field BindOptions must not be specified',
                hint=f"{propagation} is for binds",
            )
        _check_volume_name(source)
    return MountSpec(
        kind=kind,
        target=target,
        source=source,
        read_only=read_only,
        propagation=propagation,
        no_copy=no_copy,
        legacy=True,
        text=text,
    )


def parse_mount(given: Mount, version: Version = NEWEST) -> MountSpec:
    """One entry of HostConfig.Mounts.  Options newer than `version` mean nothing, as Docker's.  Raises
    InvalidRequest, UnsupportedField."""

    def invalid(why: str) -> InvalidRequest:
        return InvalidRequest(f'invalid mount config for type "{given.Type}": {why}')

    if given.Type not in ("bind", "volume", "tmpfs"):
        if given.Type in ("npipe", "cluster", "image"):
            raise UnsupportedField("HostConfig.Mounts.Type", f"mounts of type {given.Type} are not supported")
        raise InvalidRequest(f'invalid mount config for type "{given.Type}": mount type unknown')
    for name, kind in (("BindOptions", "bind"), ("VolumeOptions", "volume"), ("TmpfsOptions", "tmpfs")):
        if getattr(given, name) is not None and given.Type != kind and version >= (1, 42):
            raise invalid(f"field {name} must not be specified")
    if not given.Target:
        raise invalid("field Target must not be empty")
    if not given.Target.startswith("/"):
        raise invalid(f"invalid mount path: '{given.Target}' mount path must be absolute")
    target = _target(given.Target, given.Target)
    if given.Type == "bind":
        spec = _bind(given, target, invalid, version)
    elif given.Type == "volume":
        spec = _volume(given, target, invalid, version)
    else:
        spec = _tmpfs(given, target, invalid)
    return dataclasses.replace(spec, consistency=given.Consistency)


def _bind(given: Mount, target: str, invalid: Callable[[str], InvalidRequest], version: Version) -> MountSpec:
    if not given.Source:
        raise invalid("field Source must not be empty")
    if not given.Source.startswith("/"):
        raise invalid(f"invalid mount path: '{given.Source}' mount path must be absolute")
    options = given.BindOptions or BindOptions()
    propagation = options.Propagation
    if propagation and propagation not in _PROPAGATION:
        raise invalid(f"invalid propagation mode: {propagation}")
    above, below = options.ReadOnlyNonRecursive, options.ReadOnlyForceRecursive
    if version < (1, 44):
        above = False
        if below:
            raise InvalidRequest("BindOptions.ReadOnlyForceRecursive needs API v1.44 or newer")
    if above and below:
        raise invalid("ReadOnlyNonRecursive and ReadOnlyForceRecursive are conflicting options")
    if below and not given.ReadOnly:
        raise invalid("ReadOnlyForceRecursive requires ReadOnly")
    if below and propagation not in ("", "rprivate"):
        raise invalid("ReadOnlyForceRecursive requires the propagation to be rprivate")
    return MountSpec(
        kind=MountKind.BIND,
        target=target,
        source=clean_path(given.Source),
        read_only=given.ReadOnly,
        propagation=propagation,
        create_source=options.CreateMountpoint and version >= (1, 42),
        non_recursive=options.NonRecursive,
        read_only_above=above,
        read_only_below=below,
    )


def _volume(
    given: Mount, target: str, invalid: Callable[[str], InvalidRequest], version: Version
) -> MountSpec:
    options = given.VolumeOptions or VolumeOptions()
    driver = options.DriverConfig or Driver()
    if given.Source:
        _check_volume_name(given.Source)
    elif given.ReadOnly:
        raise invalid("must not set ReadOnly mode when using anonymous volumes")
    if options.Subpath and version < (1, 45):
        raise InvalidRequest("VolumeOptions.Subpath needs API v1.45 or newer")
    return MountSpec(
        kind=MountKind.VOLUME,
        target=target,
        source=given.Source,
        read_only=given.ReadOnly,
        no_copy=options.NoCopy,
        subpath=options.Subpath,
        labels=options.Labels,
        driver=driver.Name,
        driver_options=driver.Options,
    )


def _tmpfs(given: Mount, target: str, invalid: Callable[[str], InvalidRequest]) -> MountSpec:
    if given.Source:
        raise invalid("field Source must not be specified")
    words: list[str] = []
    if options := given.TmpfsOptions:
        if options.SizeBytes < 0 or options.Mode < 0:
            raise invalid("TmpfsOptions: values must not be negative")
        if options.SizeBytes:
            words.append(f"size={options.SizeBytes}")
        if options.Mode:
            words.append(f"mode={options.Mode:o}")
        words += ["=".join(pair) for pair in options.Options]
    return MountSpec(kind=MountKind.TMPFS, target=target, read_only=given.ReadOnly, options=tuple(words))


def _target(path: str, whole: str) -> str:
    if not path.startswith("/"):
        raise InvalidRequest(
            f"invalid volume specification: '{whole}': "
            f"invalid mount path: '{path}' mount path must be absolute"
        )
    clean = clean_path(path)
    if clean == "/":
        raise InvalidRequest(
            f"invalid volume specification: '{whole}': invalid specification: destination can't be '/'"
        )
    return clean


def _check_volume_name(name: str) -> None:
    if not _VOLUME_NAME.fullmatch(name):
        raise InvalidRequest(
            f'create {name}: "{name}" includes invalid characters for a local volume name, only '
            '"[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. '
            "If you intended to pass a host directory, use absolute path"
        )
