"""What a restart, a crash and a reboot leave of networks, and two daemons on one host."""

from __future__ import annotations

import os
import subprocess

import pytest

from insula.errors import Failure
from insula.model.network import Endpoint, LinkKind, PortBinding
from insula.network.networks import Networks
from insula.store.store import Store
from insula.system import links, mounts, namespaces

from .conftest import Host
from .test_networks import HERE, A, B, C, both, nft, serve, source_seen, veth

pytestmark = pytest.mark.integration

BINDING = PortBinding(container_port=80, host_port=8080)


async def crash(networks: Networks, store: Store) -> None:
    """What kill -9 does: sockets closed, threads gone, nothing else."""
    await networks._publishing.relays.stop()
    for member in networks._members.values():
        member.let_go()
    await networks._fabric.fall_silent()
    for pool in (networks._slots, networks._namespaces):
        assert pool._keeper is not None
        pool._keeper.cancel()
    networks._plumbing._thread.shutdown()
    networks._plumbing._maker.close()
    networks._fabric.firewall.close()
    store.close()


async def crashed(host: Host) -> dict[str, Endpoint]:
    """Two containers, one with a port, a virtual machine, one without network, and slots left by a crash."""
    store = host.store()
    networks = host.networks(store)
    await networks.start()
    first, second = await veth(networks, A), await veth(networks, B)
    await networks.publish(A, [BINDING])
    machine = await networks.connect(C, "bridge", LinkKind.TAP)
    await networks.empty_namespace("d" * 64)
    await crash(networks, store)
    return {A: first, B: second, C: machine}


async def test_the_living_keep_their_network_and_the_dead_lose_it(host: Host) -> None:
    before = await crashed(host)
    store = host.store()
    networks = host.networks(store)
    await networks.start()
    await networks.recover({A, "d" * 64})
    assert networks.endpoints(A) == (before[A],)
    assert networks.ports(A) == both(BINDING)
    assert networks.endpoints(B) == ()
    assert (
        before[C].link not in [link for link in host.links() if link == before[C].link]
        or networks._plumbing._releases
    )
    with serve(before[A].netns, 80) as listener:
        source_seen(listener, HERE, "127.0.0.1", 8080)
    await veth(networks, B)
    with pytest.raises(Failure, match="already allocated"):  # held again
        await networks.publish(B, [BINDING])
    await networks.disconnect(A)
    await networks.disconnect(B)
    await networks.disconnect("d" * 64)
    await networks.stop()
    assert host.links() == []
    assert os.listdir(host.exec_root) == []
    assert store.endpoints() == []
    store.close()


async def test_slots_of_a_killed_daemon_are_not_kept(host: Host) -> None:
    before = await crashed(host)
    left = set(os.listdir(f"{host.exec_root}/netns"))
    assert len(left) >= 4
    store = host.store()
    networks = host.networks(store)
    await networks.start()
    kept = {os.path.basename(before[A].netns), os.path.basename(before[B].netns), "of-" + "d" * 64}
    now = set(os.listdir(f"{host.exec_root}/netns"))
    assert kept < now & left
    assert len(now & left) == 4
    await networks.recover(set())
    await networks.stop()
    assert host.links() == []
    store.close()


async def test_after_a_reboot_nothing_is_live_and_everything_starts(host: Host) -> None:
    await crashed(host)
    mounts.umount_below(host.exec_root)  # what a reboot does to this test's host
    for name in os.listdir(f"{host.exec_root}/netns"):
        os.unlink(f"{host.exec_root}/netns/{name}")
    with links.open_route() as route:
        for name in host.links():
            links.delete_link(route, name)
    nft("flush", "ruleset")
    store = host.store()
    networks = host.networks(store)
    await networks.start()
    await networks.recover(set())
    assert store.endpoints() == []
    endpoint = await veth(networks, A)
    await networks.publish(A, [BINDING])
    with serve(endpoint.netns, 80) as listener:
        source_seen(listener, HERE, "127.0.0.1", 8080)
    await networks.disconnect(A)
    await networks.stop()
    assert host.links() == []
    store.close()


async def test_a_lost_bridge_is_made_again_and_the_living_are_plugged_in(host: Host) -> None:
    before = await crashed(host)
    with links.open_route() as route:
        links.delete_link(route, "insulat0")
    store = host.store()
    networks = host.networks(store)
    await networks.start()
    await networks.recover({A, B, C})
    with serve(before[A].netns, 80) as listener:
        assert source_seen(listener, before[B].netns, before[A].address, 80) == before[B].address
        source_seen(listener, HERE, "127.0.0.1", 8080)
    for instance_id in (A, B, C, "d" * 64):
        await networks.disconnect(instance_id)
    await networks.stop()
    assert host.links() == []
    store.close()


async def test_instances_keep_bridge_and_ports_while_the_daemon_is_away(host: Host) -> None:
    store = host.store()
    networks = host.networks(store)
    await networks.start()
    endpoint = await veth(networks, A)
    await networks.publish(A, [BINDING])
    await networks.stop()
    with serve(endpoint.netns, 80) as listener:
        source_seen(listener, HERE, "127.0.0.1", 8080)
    assert sorted(host.links()) == sorted(["insulat0", endpoint.link])
    again = host.networks(store)
    await again.start()
    await again.recover({A})
    await again.disconnect(A)
    await again.stop()
    assert host.links() == []
    store.close()


async def test_two_daemons_do_not_meet(host: Host, networks: Networks) -> None:
    os.mkdir(f"{host.data_root}/second")
    store = Store(f"{host.data_root}/second/insula.db")
    second = host.networks(
        store, bridge="insulat1", subnet="172.31.0.0/24", exec_root=f"{host.data_root}/other"
    )
    await second.start()
    first, other = await veth(networks, A), await veth(second, A)
    await second.publish(A, [BINDING])
    with pytest.raises(Failure, match="already allocated"):
        await networks.publish(A, [BINDING])
    with serve(other.netns, 80) as listener:
        source_seen(listener, HERE, "127.0.0.1", 8080)
    await second.disconnect(A)
    await second.stop()
    store.close()
    assert "table inet insulat0" in nft("list", "tables")
    with serve(first.netns, 80) as listener:
        source_seen(listener, HERE, first.address, 80)


async def test_a_subnet_that_the_host_uses_is_refused_with_the_reason(host: Host) -> None:
    store = host.store()
    networks = host.networks(store, subnet="198.51.100.0/24")
    await networks.start()  # the daemon starts all the same
    with pytest.raises(Failure, match=r"in use on this host.*--subnet"):
        await veth(networks, A)
    assert store.endpoints() == []
    await networks.stop()
    store.close()


async def test_a_namespace_held_by_a_process_does_not_hold_the_link(host: Host, networks: Networks) -> None:
    endpoint = await veth(networks, A)
    holder = os.open(endpoint.netns, os.O_RDONLY)
    try:
        await networks.disconnect(A)
        await networks.stop()
        assert host.links() == []
    finally:
        os.close(holder)


def test_the_directory_of_namespaces_is_a_shared_mount(host: Host) -> None:
    """Namespaces kept later show up in mount namespaces split off before, where crun may run."""
    path = f"{host.exec_root}/netns"
    namespaces.share_directory(path)
    look = "echo; read x; grep -c netns/later /proc/self/mountinfo"
    with subprocess.Popen(
        ["unshare", "-m", "--propagation", "slave", "sh", "-c", look],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as elsewhere:
        assert elsewhere.stdout is not None
        elsewhere.stdout.readline()
        namespaces.keep_netns(f"{path}/later")
        out, _ = elsewhere.communicate(b"\n")
    assert out == b"1\n"
    namespaces.drop_netns(f"{path}/later")
    namespaces.unshare_directory(path)
    assert not os.path.exists(path)
