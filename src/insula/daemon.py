"""`insula daemon`: builds everything, connects it, and serves until it is told to stop.  Nobody imports this.

Instances do not depend on this process: conmon and QEMU hold theirs, and the next daemon finds them.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import click

from insula import __version__
from insula.api.server import serve
from insula.build.leftovers import remove_unfinished_builds
from insula.config import ACCELERATORS, DEFAULT_CONFIG, Settings, read_settings
from insula.engine.engine import Engine
from insula.errors import Conflict, DiskFull, Unavailable
from insula.events import EventBus
from insula.images.images import Images
from insula.images.roots import Roots
from insula.isolation.backend import Backend
from insula.isolation.process.backend import ProcessBackend
from insula.isolation.vm.backend import VmBackend
from insula.log import LEVELS, start_logging
from insula.model.isolation import Isolation
from insula.model.network import AddressRange
from insula.network.networks import Networks
from insula.store.store import Store
from insula.volumes.volumes import Volumes

log = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])


def raise_descriptor_limit() -> None:
    """As many as the hard limit allows: every attached client, published port and VM takes some."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def make_directories(settings: Settings) -> None:
    """Both roots; others may pass through them, and not list them.  Raises Unavailable or DiskFull when they
    cannot be made."""
    try:
        for path in (settings.data_root, settings.exec_root):
            os.makedirs(path, mode=0o711, exist_ok=True)
        for name in ("images", "instances", "volumes", "guest"):
            os.makedirs(os.path.join(settings.data_root, name), mode=0o711, exist_ok=True)
        for name in ("instances", "roots", "netns", "mounts"):
            os.makedirs(os.path.join(settings.exec_root, name), mode=0o711, exist_ok=True)
    except PermissionError as error:
        raise Unavailable(f"{error.filename}: permission denied", hint="the daemon needs root") from error
    except OSError as error:
        raise DiskFull(f"{error.filename}: {error.strerror}") from error


@contextlib.contextmanager
def start_lock(settings: Settings) -> Iterator[None]:
    """One daemon per data root.  Raises Conflict when another has it."""
    path = os.path.join(settings.data_root, "lock")
    with open(path, "a+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise Conflict(
                f"another daemon (pid {file.read().strip() or 'unknown'}) uses {settings.data_root}",
                hint="stop it, or give this one its own --data-root and --exec-root",
            ) from None
        with contextlib.suppress(OSError):  # a full disk: the lock holds without the number
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), f"{os.getpid()}\n".encode())
        yield


def make_backends(settings: Settings) -> Mapping[Isolation, Backend]:
    return {
        Isolation.PROCESS: ProcessBackend(settings),
        Isolation.VM: VmBackend(settings),
    }


async def run_daemon(settings: Settings) -> None:
    """Until SIGTERM or SIGINT.  Everything that was started is stopped in reverse order."""
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    loop.add_signal_handler(signal.SIGHUP, lambda: log.info("SIGHUP: settings are read at start only"))

    async with contextlib.AsyncExitStack() as stack:
        remove_unfinished_builds(settings)
        store = Store(os.path.join(settings.data_root, "insula.db"))
        stack.callback(store.close)
        events = EventBus()
        images_dir = os.path.join(settings.data_root, "images")
        images = Images(
            images_dir,
            store,
            events,
            mirrors=settings.registry_mirror,
            insecure=settings.insecure_registry,
            max_downloads=settings.max_downloads,
        )
        await images.start()
        roots = Roots(images_dir, os.path.join(settings.data_root, "instances"), settings.exec_root)
        networks = Networks(
            store,
            bridge=settings.bridge,
            subnet=settings.subnet,
            ipv6=AddressRange(subnet=settings.fixed_cidr_v6) if settings.ipv6 else None,
            exec_root=settings.exec_root,
            events=events,
        )
        await networks.start()
        stack.push_async_callback(networks.stop)
        volumes = Volumes(os.path.join(settings.data_root, "volumes"), store, events)
        await volumes.start()
        backends = make_backends(settings)
        for backend in backends.values():
            await backend.start()
            stack.push_async_callback(backend.stop)
            if problem := backend.info().problem:
                log.warning("isolation %s does not work on this host: %s", backend.isolation, problem)
        engine = Engine(settings, store, events, images, roots, networks, volumes, backends)
        await engine.start()
        stack.push_async_callback(engine.stop)
        await stack.enter_async_context(serve(engine, settings))
        notify_systemd("READY=1")
        log.info("insula %s listens on %s", __version__, ", ".join(settings.host))
        await stopping.wait()
        notify_systemd("STOPPING=1")
        log.info("stopping; instances go on")


def notify_systemd(state: str) -> None:
    """sd_notify(3), without its library."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


def _option(name: str, flag: str = "", **arguments: Any) -> Callable[[F], F]:
    """An option of a setting, with the setting's default in its help."""
    default = getattr(Settings(), name)
    if default and "[default:" not in arguments["help"]:
        arguments["help"] += f"  [default: {', '.join(default) if isinstance(default, tuple) else default}]"
    several = {"multiple": True} if isinstance(default, tuple) else {"default": None}
    flags = filter(None, (flag, f"--{name.replace('_', '-')}"))
    return click.option(*flags, name, **several, **arguments)


@click.command(name="daemon")
@click.option(
    "--config", metavar="FILE", help=f"Settings in TOML.  [default: {DEFAULT_CONFIG}, if it exists]"
)
@_option("host", flag="-H", metavar="ADDRESS", help="Listen here; may be repeated.")
@_option("tls", is_flag=True, help="On TCP speak TLS, to every client; --tlsverify is what keeps others out.")
@_option("tlsverify", is_flag=True, help="On TCP speak TLS, to clients with a certificate of --tlscacert.")
@_option("tlscacert", metavar="FILE", help="Who signs clients' certificates.")
@_option("tlscert", metavar="FILE", help="The daemon's own certificate.")
@_option("tlskey", metavar="FILE", help="Its key.")
@_option("data_root", metavar="DIR", help="What survives a reboot.")
@_option("exec_root", metavar="DIR", help="What does not.")
@_option("default_isolation", metavar="WORD", help="For instances that name none: process or vm.")
@_option("runtime", metavar="NAME", help="crun or runc.  [default: the first that works]")
@_option("accel", type=click.Choice(ACCELERATORS), help="Accelerator of VMs.")
@_option("vm_memory_mib", type=int, metavar="MIB", help="Memory of a VM without a limit.")
@_option("vm_vcpus", type=int, metavar="N", help="CPUs of a VM without a limit.")
@_option("vm_disk_gib", type=int, metavar="GIB", help="How far a VM's disk may grow.")
@_option("vm_pool", type=int, metavar="N", help="VMs of a size kept ready, once there was one; 0: none.")
@_option("vm_image_templates", type=int, metavar="N", help="Images with a template of their own; 0: none.")
@_option("vm_kernel", metavar="FILE", help="Kernel for VMs (vmlinuz).  [default: the distribution's]")
@_option("bridge", metavar="NAME", help="Link of the default network.")
@_option("subnet", metavar="NETWORK", help="Addresses of the default network.")
@_option("ipv6", is_flag=True, help="IPv6 on the default network, too.")
@_option("fixed_cidr_v6", metavar="NETWORK", help="Its IPv6 addresses.  [default: a free /64 of fd00::/8]")
@_option("dns", metavar="ADDRESS", help="Name server for instances; may be repeated.  [default: the host's]")
@_option("registry_mirror", metavar="URL", help="Ask this before Docker Hub; may be repeated.")
@_option("insecure_registry", metavar="HOST", help="Registry without TLS; may be repeated.")
@_option("max_downloads", type=int, metavar="N", help="Layers fetched at once.")
@_option("journal_socket", metavar="PATH", help="Where log driver journald sends to.")
@_option("log_level", type=click.Choice(LEVELS), help="How much to log.")
def command(config: str | None, **overrides: Any) -> None:
    """Run the engine in the foreground.

    Every option is also a key of the TOML file (data-root = "/srv/insula").
    """
    settings = read_settings(config, overrides)
    settings = dataclasses.replace(  # OCI runtimes refuse a path through a symbolic link, such as /var/run
        settings,
        data_root=os.path.realpath(settings.data_root),
        exec_root=os.path.realpath(settings.exec_root),
    )
    start_logging(settings.log_level)
    if os.geteuid() != 0:
        raise Unavailable("the daemon needs root", hint="sudo insula daemon, or systemctl start insula")
    log.debug("settings: %s", dataclasses.asdict(settings))
    os.umask(0o022)  # as dockerd: root's own may be 077, and what runs as another user has to read its files
    raise_descriptor_limit()
    sys.setswitchinterval(0.0005)  # threads do short work beside the loop: do not let them hold it for 5 ms
    make_directories(settings)
    with start_lock(settings):
        asyncio.run(run_daemon(settings))
