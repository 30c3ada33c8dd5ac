"""What a link tells of the other: moby's names."""

from __future__ import annotations

from insula.engine.links import link_environment


def test_the_environment_of_a_link() -> None:
    found = link_environment(
        "web",
        "my-db",
        "172.17.0.5",
        ("WHO=db", "PATH=/bin", "HOME=/", "EMPTY="),
        ("53/udp", "80", "81/tcp", "443"),
    )
    assert found == (
        "MY_DB_PORT=tcp://172.17.0.5:80",
        "MY_DB_PORT_80_TCP=tcp://172.17.0.5:80",
        "MY_DB_PORT_80_TCP_ADDR=172.17.0.5",
        "MY_DB_PORT_80_TCP_PORT=80",
        "MY_DB_PORT_80_TCP_PROTO=tcp",
        "MY_DB_PORT_81_TCP=tcp://172.17.0.5:81",
        "MY_DB_PORT_81_TCP_ADDR=172.17.0.5",
        "MY_DB_PORT_81_TCP_PORT=81",
        "MY_DB_PORT_81_TCP_PROTO=tcp",
        "MY_DB_PORT_443_TCP=tcp://172.17.0.5:443",
        "MY_DB_PORT_443_TCP_ADDR=172.17.0.5",
        "MY_DB_PORT_443_TCP_PORT=443",
        "MY_DB_PORT_443_TCP_PROTO=tcp",
        "MY_DB_PORT_53_UDP=udp://172.17.0.5:53",
        "MY_DB_PORT_53_UDP_ADDR=172.17.0.5",
        "MY_DB_PORT_53_UDP_PORT=53",
        "MY_DB_PORT_53_UDP_PROTO=udp",
        "MY_DB_PORT_80_TCP_START=tcp://172.17.0.5:80",
        "MY_DB_PORT_80_TCP_PORT_START=80",
        "MY_DB_PORT_80_TCP_END=tcp://172.17.0.5:81",
        "MY_DB_PORT_80_TCP_PORT_END=81",
        "MY_DB_NAME=/web/my-db",
        "MY_DB_ENV_WHO=db",
        "MY_DB_ENV_EMPTY=",
    )


def test_one_that_exposes_nothing_is_named_all_the_same() -> None:
    assert link_environment("web", "db", "172.17.0.5", (), ()) == ("DB_NAME=/web/db",)
