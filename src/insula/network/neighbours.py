"""Other programs' firewalls that stand in our way.  Synchronous, reads only; once per daemon.

A packet must be accepted by every table.  Docker sets the policy of iptables' FORWARD to drop; then
instances reach neither the outside nor (with br_netfilter, which Docker loads) each other, whatever our
table says.  We do not write to tables that are not ours: we say what to do.
"""

from __future__ import annotations

from insula.system.run import find_program, need_program, run

_LEGACY_TABLES = "/proc/net/ip_tables_names"


def find_forward_drop(bridge: str) -> str:
    """A sentence with the remedy, or "" if nothing drops what is forwarded for `bridge`."""
    rules = _forward_rules()
    if "-P FORWARD DROP" not in rules or bridge in rules:
        return ""
    chain = "DOCKER-USER" if "DOCKER-USER" in rules else "FORWARD"
    return (
        f"the host's iptables drop forwarded traffic: instances on {bridge} may reach neither each other nor "
        f"the outside; allow it with: iptables -I {chain} -i {bridge} -j ACCEPT; "
        f"iptables -I {chain} -o {bridge} -j ACCEPT"
    )


def _forward_rules() -> str:
    """As `iptables -S` shows them, of whichever iptables is in use.  Asking the other one would load its
    kernel modules."""
    chain = [need_program("nft"), "list", "chain", "ip", "filter", "FORWARD"]
    rules = _saved("iptables-nft") if run(chain, check=False).returncode == 0 else ""
    try:
        with open(_LEGACY_TABLES) as file:
            legacy = "filter" in file.read().split()
    except FileNotFoundError:
        legacy = False
    return rules + (_saved("iptables-legacy") if legacy else "")


def _saved(program: str) -> str:
    path = find_program(program)
    if path is None:
        return ""
    done = run([path, "-w", "-S"], check=False)
    return done.stdout.decode(errors="replace")
