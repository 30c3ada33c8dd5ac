"""Networks in requests.  Pure."""

from __future__ import annotations

from msgspec import Struct, field

from insula.api.wire.container_config import EndpointSettings


class IPAMConfig(Struct):
    Subnet: str = ""
    IPRange: str = ""
    Gateway: str = ""
    AuxiliaryAddresses: dict[str, str] = field(default_factory=dict)


class IPAM(Struct):
    Driver: str = ""
    Config: list[IPAMConfig] = field(default_factory=list)
    Options: dict[str, str] = field(default_factory=dict)


class ConfigReference(Struct):
    Network: str = ""


_IPAM = IPAM  # a field of that name hides the class


class NetworkCreateRequest(Struct):
    """`CheckDuplicate`: False only if the request says so, as clients of API 1.43 and older may."""

    Name: str = ""
    CheckDuplicate: bool = True
    Driver: str = ""
    Scope: str = ""
    EnableIPv4: bool = True
    EnableIPv6: bool = False
    IPAM: _IPAM = field(default_factory=_IPAM)
    Internal: bool = False
    Attachable: bool = False
    Ingress: bool = False
    ConfigOnly: bool = False
    ConfigFrom: ConfigReference = field(default_factory=ConfigReference)
    Options: dict[str, str] = field(default_factory=dict)
    Labels: dict[str, str] = field(default_factory=dict)


class NetworkConnectRequest(Struct):
    Container: str = ""
    EndpointConfig: EndpointSettings = field(default_factory=EndpointSettings)


class NetworkDisconnectRequest(Struct):
    Container: str = ""
    Force: bool = False
