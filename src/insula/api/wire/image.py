"""Images in answers.  Pure."""

from __future__ import annotations

from msgspec import UNSET, Struct, UnsetType

from insula.api.wire.container import GraphDriverData
from insula.api.wire.container_config import ContainerConfig


class ImageSummary(Struct):
    Id: str
    ParentId: str
    RepoTags: list[str]
    RepoDigests: list[str]
    Created: int
    Size: int
    SharedSize: int
    Labels: dict[str, str] | None
    Containers: int


class RootFS(Struct):
    Type: str
    Layers: list[str]


# a field of that name hides the class
_RootFS = RootFS
_ContainerConfig = ContainerConfig


class ImageInspect(Struct):
    Id: str
    RepoTags: list[str]
    RepoDigests: list[str]
    Parent: str
    Comment: str
    Created: str
    DockerVersion: str
    Author: str
    Config: ContainerConfig
    Architecture: str
    Variant: str
    Os: str
    Size: int
    GraphDriver: GraphDriverData
    RootFS: _RootFS
    Metadata: dict[str, str]
    # up to API 1.44 only
    Container: str | UnsetType = UNSET
    ContainerConfig: _ContainerConfig | UnsetType = UNSET


class HistoryResponseItem(Struct):
    Id: str
    Created: int
    CreatedBy: str
    Tags: list[str] | None
    Size: int
    Comment: str


class ImageDeleteResponseItem(Struct, omit_defaults=True):
    Untagged: str = ""
    Deleted: str = ""


class ImagePruneResponse(Struct):
    ImagesDeleted: list[ImageDeleteResponseItem] | None
    SpaceReclaimed: int
