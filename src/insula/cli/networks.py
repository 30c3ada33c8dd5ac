"""`insula network …`: networks of one's own, and who is on them."""

from __future__ import annotations

import contextlib
import ipaddress
import sys
from collections.abc import Sequence
from typing import Any

import click

from insula.cli import show
from insula.cli.connect import pass_client
from insula.cli.endpoints import make_endpoint
from insula.cli.flags import FILTER, FORMAT, ROWS_FORMAT, Group
from insula.cli.lifecycle import for_each
from insula.cli.prune import ask, prune, prune_options
from insula.cli.table import joined, print_rows
from insula.cli.values import parse_filters, parse_pairs
from insula.errors import InvalidRequest


@click.group(cls=Group)
def network() -> None:
    """Networks."""


@network.command(name="ls")
@FILTER
@click.option("-q", "--quiet", is_flag=True, help="Ids only.")
@click.option("--no-trunc", is_flag=True, help="Whole ids.")
@ROWS_FORMAT
@click.pass_context
def list_networks(
    ctx: click.Context, filters: tuple[str, ...], quiet: bool, no_trunc: bool, template: str | None
) -> None:
    """List networks."""
    rows = [
        {
            "ID": n["Id"] if no_trunc else n["Id"][:12],
            "Name": n["Name"],
            "Driver": n["Driver"],
            "Scope": n["Scope"],
            "IPv4": str(n.get("EnableIPv4", True)).lower(),
            "IPv6": str(n.get("EnableIPv6", False)).lower(),
            "Internal": str(n.get("Internal", False)).lower(),
            "Labels": joined(n.get("Labels")),
            "CreatedAt": n.get("Created", ""),
        }
        for n in pass_client(ctx).get("/networks", filters=parse_filters(filters) or None)
    ]
    if quiet:
        for row in rows:
            print(row["ID"])
        return
    columns = {"ID": "NETWORK ID", "Name": "NAME", "Driver": "DRIVER", "Scope": "SCOPE"}
    print_rows(rows, columns, template=template)


@network.command(name="inspect")
@FORMAT
@click.option("-v", "--verbose", is_flag=True, hidden=True)  # of swarm's networks only
@click.argument("name", nargs=-1, required=True)
@click.pass_context
def inspect_network(ctx: click.Context, name: tuple[str, ...], template: str | None, verbose: bool) -> int:
    """Everything about networks, as JSON."""
    return show.inspect_all(pass_client(ctx), name, template, kind="network")


@network.command(name="create")
@click.option(
    "-d", "--driver", default="bridge", metavar="NAME", help="bridge, macvlan or ipvlan.  [default: bridge]"
)
@click.option("--ipv6", is_flag=True, help="IPv6, too.")
@click.option("--ipv4", type=bool, hidden=True)
@click.option("--ipam-driver", default="default", metavar="NAME", help="Who hands out addresses: default.")
@click.option("--ipam-opt", multiple=True, hidden=True)
@click.option("--scope", hidden=True)
@click.option("--ingress", is_flag=True, hidden=True)
@click.option("--config-only", is_flag=True, hidden=True)
@click.option("--config-from", hidden=True)
@click.option(
    "--subnet",
    multiple=True,
    metavar="NETWORK",
    help="Addresses, such as 10.5.0.0/16; one more for IPv6.  [default: free ones]",
)
@click.option(
    "--gateway",
    multiple=True,
    metavar="ADDRESS",
    help="The host's address; on macvlan and ipvlan the router's.  [default: the first]",
)
@click.option(
    "--ip-range", multiple=True, metavar="NETWORK", help="The part of the subnet that is handed out from."
)
@click.option("--aux-address", multiple=True, metavar="NAME=ADDRESS", help="An address to leave alone.")
@click.option("--internal", is_flag=True, help="No way in or out.")
@click.option("--attachable", is_flag=True, help="Accepted; networks of this host always are.")
@click.option("--label", multiple=True, metavar="KEY=VALUE", help="Set a label.")
@click.option(
    "-o",
    "--opt",
    multiple=True,
    metavar="KEY=VALUE",
    help="Option of the driver: parent=eth0 or eth0.10, macvlan_mode=, ipvlan_mode=, ipvlan_flag=, "
    "com.docker.network.driver.mtu=, com.docker.network.bridge.*=.",
)
@click.argument("name")
@click.pass_context
def create_network(ctx: click.Context, /, name: str, **o: Any) -> None:
    """Make a network: instances on it find each other by name.

    One of driver macvlan puts them into the LAN behind a link of the host's: -d macvlan -o parent=eth0
    --subnet 192.168.1.0/24 --gateway 192.168.1.1 --ip-range 192.168.1.192/27.
    """
    body: dict[str, Any] = {
        "Name": name,
        "Driver": o["driver"],
        "Internal": o["internal"],
        "Attachable": o["attachable"],
        "EnableIPv6": o["ipv6"],
        "IPAM": {
            "Driver": o["ipam_driver"],
            "Config": finalize_ipam(o["subnet"], o["gateway"], o["ip_range"], o["aux_address"]),
            "Options": parse_pairs(o["ipam_opt"], "--ipam-opt"),
        },
        "Options": parse_pairs(o["opt"], "--opt"),
        "Labels": parse_pairs(o["label"], "--label"),
    }
    # the daemon refuses these by name; it, and not the parser, says why
    refused = {"EnableIPv4": o["ipv4"], "Scope": o["scope"], "Ingress": o["ingress"] or None}
    refused["ConfigOnly"] = o["config_only"] or None
    refused["ConfigFrom"] = {"Network": o["config_from"]} if o["config_from"] else None
    body |= {key: value for key, value in refused.items() if value is not None}
    made = pass_client(ctx).post("/networks/create", body)
    if made.get("Warning"):
        print(f"WARNING: {made['Warning']}", file=sys.stderr)
    print(made["Id"])


def finalize_ipam(
    subnets: Sequence[str], gateways: Sequence[str], ranges: Sequence[str], kept: Sequence[str]
) -> list[dict[str, Any]]:
    """Each with the subnet that it is of, as the docker client does it.  Raises InvalidRequest."""
    configs: list[dict[str, Any]] = [{"Subnet": subnet} for subnet in subnets]

    def of(address: str) -> dict[str, Any]:
        for config in configs:
            with contextlib.suppress(ValueError, TypeError):
                if ipaddress.ip_interface(address).ip in ipaddress.ip_network(config["Subnet"], strict=False):
                    return config
        raise InvalidRequest(f"no --subnet has {address}", hint="give the --subnet that it is of")

    for key, given in (("Gateway", gateways), ("IPRange", ranges)):
        for text in given:
            config = of(text)
            if key in config:
                raise InvalidRequest(f"{config['Subnet']} has two of --gateway or --ip-range")
            config[key] = text
    for name, address in parse_pairs(tuple(kept), "--aux-address").items():
        of(address).setdefault("AuxiliaryAddresses", {})[name] = address
    return configs


@network.command(name="connect")
@click.option("--ip", metavar="ADDRESS", help="IPv4 address.  [default: a free one]")
@click.option("--ip6", metavar="ADDRESS", help="IPv6 address.  [default: a free one]")
@click.option("--alias", multiple=True, metavar="NAME", help="One more name on that network.")
@click.option(
    "--link", multiple=True, metavar="INSTANCE[:ALIAS]", help="Find another by a name of one's own."
)
@click.option("--link-local-ip", multiple=True, metavar="ADDRESS", help="One more address, link-local.")
@click.option(
    "--driver-opt",
    multiple=True,
    metavar="KEY=VALUE",
    help="com.docker.network.endpoint.sysctls of one that starts; all others are kept and shown.",
)
@click.argument("network_name", metavar="NETWORK")
@click.argument("instance")
@click.pass_context
def connect(ctx: click.Context, /, network_name: str, instance: str, **o: Any) -> None:
    """Put an instance on one more network, running or not."""
    endpoint = make_endpoint(
        aliases=o["alias"],
        links=o["link"],
        ip=o["ip"],
        ip6=o["ip6"],
        link_local=o["link_local_ip"],
        driver_opts=o["driver_opt"],
    )
    body = {"Container": instance, "EndpointConfig": endpoint}
    pass_client(ctx).post(f"/networks/{network_name}/connect", body)


@network.command(name="disconnect")
@click.option("-f", "--force", is_flag=True, help="Also from a network that does not exist any more.")
@click.argument("network_name", metavar="NETWORK")
@click.argument("instance")
@click.pass_context
def disconnect(ctx: click.Context, force: bool, network_name: str, instance: str) -> None:
    """Take an instance off a network, running or not."""
    body = {"Container": instance, "Force": force}
    pass_client(ctx).post(f"/networks/{network_name}/disconnect", body)


@network.command(name="rm")
@click.option("-f", "--force", is_flag=True, help="Fine if it does not exist.")
@click.argument("name", nargs=-1, required=True)
@click.pass_context
def remove_networks(ctx: click.Context, force: bool, name: tuple[str, ...]) -> int:
    """Remove networks that no running instance is on."""
    client = pass_client(ctx)

    def remove(ref: str) -> None:
        client.request("DELETE", f"/networks/{ref}", ok=(404,) if force else ()).close()

    return for_each(name, remove)


@network.command(name="prune")
@prune_options
@click.pass_context
def prune_networks(ctx: click.Context, force: bool, filters: tuple[str, ...]) -> None:
    """Remove all networks that no running instance is on."""
    ask("Remove all networks that no running instance is on?", force)
    prune(pass_client(ctx), ("networks", parse_filters(filters)))
