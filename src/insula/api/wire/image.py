"""Images in answers.  Pure."""

from __future__ import annotations

from msgspec import UNSET, Struct, UnsetType, field

from insula.api.wire.container import GraphDriverData
from insula.api.wire.container_config import ContainerConfig

_ContainerConfig = ContainerConfig  # a field of that name hides the class


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
    VirtualSize: int | UnsetType = UNSET


class RootFS(Struct):
    Type: str
    Layers: list[str]


_RootFS = RootFS  # a field of that name hides the class


class ImageInspect(Struct):
    Id: str
    RepoTags: list[str]
    RepoDigests: list[str]
    Parent: str
    Comment: str
    Created: str | UnsetType
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
    VirtualSize: int | UnsetType = UNSET
    Container: str | UnsetType = UNSET
    ContainerConfig: _ContainerConfig | UnsetType | None = UNSET


class HistoryResponseItem(Struct):
    Id: str
    Created: int
    CreatedBy: str
    Tags: list[str] | None
    Size: int
    Comment: str


class OCIDescriptor(Struct):
    media_type: str = field(name="mediaType")
    digest: str
    size: int


class OCIPlatform(Struct, omit_defaults=True):
    architecture: str = field()
    os: str = field()
    variant: str = ""


class DistributionInspect(Struct):
    Descriptor: OCIDescriptor
    Platforms: list[OCIPlatform]


class ImageDeleteResponseItem(Struct, omit_defaults=True):
    Untagged: str = ""
    Deleted: str = ""


class ImagePruneResponse(Struct):
    ImagesDeleted: list[ImageDeleteResponseItem] | None
    SpaceReclaimed: int
