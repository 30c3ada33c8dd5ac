"""Other programs' firewalls that stand in our way.  Synchronous, reads only; once per daemon.

A packet must be accepted by every table.  Docker sets the policy of iptables' FORWARD to drop; then
instances reach neither the outside nor (with br_netfilter, which Docker loads) each other, whatever our
table says.  We do not write to tables that are not ours: we say what to do.
"""

from __future__ import annotations

from insula.system.run import find_program, need_program, run

# nft's family, the program, and where the kernel lists the tables of its older form
_FAMILIES = (
    ("ip", "iptables", "/proc/net/ip_tables_names"),
    ("ip6", "ip6tables", "/proc/net/ip6_tables_names"),
)


def find_forward_drop(bridge: str, *, ipv6: bool = False) -> str:
    """A sentence with the remedy, or "" if nothing drops what is forwarded for `bridge`; `ipv6`: of which
    that is carried, too."""
    remedies: list[str] = []
    for family, program, tables in _FAMILIES[: 2 if ipv6 else 1]:
        rules = _forward_rules(family, program, tables)
        if "-P FORWARD DROP" in rules and bridge not in rules:
            chain = "DOCKER-USER" if "DOCKER-USER" in rules else "FORWARD"
            remedies += [f"{program} -I {chain} {way} {bridge} -j ACCEPT" for way in ("-i", "-o")]
    if not remedies:
        return ""
    programs = " and ".join(dict.fromkeys(remedy.partition(" ")[0] for remedy in remedies))
    return (
        f"the host's {programs} drop forwarded traffic: instances on {bridge} may reach neither each other "
        f"nor the outside; allow it with: {'; '.join(remedies)}"
    )


def _forward_rules(family: str, program: str, tables: str) -> str:
    """As `iptables -S` shows them, of whichever iptables is in use.  Asking the other one would load its
    kernel modules."""
    chain = [need_program("nft"), "list", "chain", family, "filter", "FORWARD"]
    rules = _saved(f"{program}-nft") if run(chain, check=False).returncode == 0 else ""
    try:
        with open(tables) as file:
            legacy = "filter" in file.read().split()
    except FileNotFoundError:
        legacy = False
    return rules + (_saved(f"{program}-legacy") if legacy else "")


def _saved(program: str) -> str:
    path = find_program(program)
    if path is None:
        return ""
    done = run([path, "-w", "-S"], check=False)
    return done.stdout.decode(errors="replace")
