"""What is pure in the API: versions, times, filters, detach keys, frames, routes, credentials."""

from __future__ import annotations

import base64
import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from insula.api import mux
from insula.api.auth import parse_auth_header
from insula.api.escape import DEFAULT_KEYS, EscapeScanner, parse_keys
from insula.api.filters import parse_filters
from insula.api.routing import Route, Router
from insula.api.times import format_time, human_duration, parse_time
from insula.api.translate_build import parse_registry_config
from insula.api.translate_stats import Measured, render_stats
from insula.api.versions import check_version, split_version
from insula.errors import InvalidRequest
from insula.model.instance import Instance, InstanceSpec, State
from insula.model.isolation import Isolation
from insula.model.stream import BlockSample, Channel, Sample

HOUR_NS = 3600 * 10**9


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1.47/info", ("1.47", "/info")),
        ("/info", (None, "/info")),
        ("/v1.47", (None, "/v1.47")),
        ("/volumes", (None, "/volumes")),
        ("/version", (None, "/version")),
    ],
)
def test_the_version_is_the_first_part_of_the_path(path: str, expected: tuple[str | None, str]) -> None:
    assert split_version(path) == expected


@pytest.mark.parametrize("word", ["1.23", "0.1", "1", "1.48", "2.0", "99999999999999.1", "..", "1..5"])
def test_other_versions_are_refused(word: str) -> None:
    with pytest.raises(InvalidRequest):
        check_version(word)


def test_known_versions() -> None:
    assert check_version(None) == (1, 47)
    assert check_version("1.40") == (1, 40)


@pytest.mark.parametrize(
    ("ns", "expected"),
    [
        (0, "0001-01-01T00:00:00Z"),
        (1_700_000_000_000_000_000, "2023-11-14T22:13:20Z"),
        (1_700_000_000_120_000_000, "2023-11-14T22:13:20.12Z"),
        (1_700_000_000_000_000_001, "2023-11-14T22:13:20.000000001Z"),
        (-1, "1969-12-31T23:59:59.999999999Z"),
        (-(1 << 63), "1677-09-21T00:12:43.145224192Z"),
        ((1 << 63) - 1, "2262-04-11T23:47:16.854775807Z"),
        (-(1 << 66), "0001-01-01T00:00:00Z"),
        (1 << 90, "9999-12-31T23:59:59.999999999Z"),
    ],
)
def test_times_are_written_as_go_writes_them(ns: int, expected: str) -> None:
    assert format_time(ns) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1700000000", 1_700_000_000_000_000_000),
        ("1700000000.000000001", 1_700_000_000_000_000_001),
        ("1700000000.5", 1_700_000_000_500_000_000),
        ("2023-11-14T22:13:20Z", 1_700_000_000_000_000_000),
        ("2023-11-14T23:13:20.5+01:00", 1_700_000_000_500_000_000),
        ("2023-11-14", 1_699_920_000_000_000_000),
        ("1h", 9 * HOUR_NS),
        ("90m", 10 * HOUR_NS - 3 * HOUR_NS // 2),
    ],
)
def test_times_are_read_in_every_form_of_docker_s(text: str, expected: int) -> None:
    assert parse_time(text, 10 * HOUR_NS, "since") == expected


@given(st.text(max_size=40))
def test_any_other_text_is_a_time_or_a_bad_request(text: str) -> None:
    with contextlib.suppress(InvalidRequest):
        parse_time(text, 0, "since")


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.5, "Less than a second"),
        (1, "1 second"),
        (59, "59 seconds"),
        (60, "About a minute"),
        (150, "2 minutes"),
        (3600, "About an hour"),
        (47 * 3600, "47 hours"),
        (72 * 3600, "3 days"),
        (15 * 86400, "2 weeks"),
        (70 * 86400, "2 months"),
        (800 * 86400, "2 years"),
    ],
)
def test_spans_of_time(seconds: float, expected: str) -> None:
    assert human_duration(seconds) == expected


def test_filters_in_both_forms() -> None:
    assert parse_filters('{"a":["b","c"]}').get("a") == ("b", "c")
    assert parse_filters('{"a":{"b":true,"c":false}}').get("a") == ("b",)
    assert not parse_filters("")
    assert not parse_filters("null")


@pytest.mark.parametrize("text", ["{", "[]", '{"a":1}', '{"a":[1]}', "5", "[" * 100_000])
def test_filters_of_another_shape_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_filters(text)


def test_filters_that_a_page_does_not_know_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="invalid filter 'b'"):
        parse_filters('{"b":["x"]}').accept("a")


def test_a_filter_that_is_no_regular_expression_is_searched_as_it_is() -> None:
    assert parse_filters('{"name":["a("]}').searches("name", ["xa(y"])


def test_detach_keys() -> None:
    assert parse_keys("") == DEFAULT_KEYS == b"\x10\x11"
    assert parse_keys("ctrl-a,b,ctrl-]") == b"\x01b\x1d"
    for bad in ("ctrl-", "ctrl-A", "abc", "é", ",", "ctrl-1"):
        with pytest.raises(InvalidRequest):
            parse_keys(bad)


def test_the_sequence_detaches_also_in_pieces() -> None:
    scanner = EscapeScanner(b"\x10\x11")
    assert scanner.feed(b"ls\n") == (b"ls\n", False)
    assert scanner.feed(b"x\x10") == (b"x", False)
    assert scanner.feed(b"\x11rest") == (b"", True)


def test_a_sequence_that_breaks_off_is_passed_on() -> None:
    scanner = EscapeScanner(b"\x10\x11")
    assert scanner.feed(b"\x10") == (b"", False)
    assert scanner.feed(b"p\x10\x10\x10") == (b"\x10p\x10\x10", False)
    assert scanner.feed(b"\x11") == (b"", True)


@given(st.lists(st.binary(max_size=8)))
def test_nothing_is_lost_without_the_sequence(pieces: list[bytes]) -> None:
    scanner = EscapeScanner(b"\xfe\xff")
    clean = [p.replace(b"\xff", b"") for p in pieces]
    passed = b"".join(scanner.feed(p)[0] for p in clean)
    whole = b"".join(clean)
    assert whole == passed or whole == passed + b"\xfe"


def test_frames_carry_channel_and_length() -> None:
    assert mux.frame(Channel.STDERR, b"abc") == b"\x02\0\0\0\0\0\0\x03abc"


def test_routes_by_method_and_names() -> None:
    async def handler(call: object) -> None: ...

    one = Route("GET", "/containers/{id}/json", handler)  # type: ignore[arg-type]
    many = Route("GET", "/images/{name*}/json", handler)  # type: ignore[arg-type]
    router = Router([one, many])
    assert router.find("GET", "/containers/x/json") == (one, {"id": "x"})
    assert router.find("GET", "/images/a/b:c/json") == (many, {"name": "a/b:c"})
    for method, path in (
        ("POST", "/containers/x/json"),
        ("GET", "/containers/x/y/json"),
        ("GET", "/"),
        ("GET", ""),
    ):
        assert router.find(method, path) is None


def test_credentials_of_a_request() -> None:
    def header(document: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(document).encode()).decode()

    found = parse_auth_header(header({"username": "u", "password": "ÿ?>", "serveraddress": "r"}))
    assert found is not None
    assert (found.username, found.password, found.server) == ("u", "ÿ?>", "r")
    packed = parse_auth_header(header({"auth": base64.b64encode(b"u:p:q").decode()}))
    assert packed is not None
    assert (packed.username, packed.password) == ("u", "p:q")
    assert parse_auth_header("") is None
    assert parse_auth_header(header({})) is None
    assert "secret" not in repr(parse_auth_header(header({"username": "u", "password": "secret"})))
    # as in moby: whoever has none sends any word, and the registry says whether it wants some
    for bad in ("!", "AAAA", "placeholder", header([1]), header({"username": 5}), "A" * 100_000):
        assert parse_auth_header(bad) is None
        assert parse_registry_config(bad) == {}
    assert (
        parse_registry_config(header({"r:5000": {"username": "u", "password": "p"}}))["r:5000"].password
        == "p"
    )


def test_block_io_is_told_by_device() -> None:
    instance = Instance(
        id="1",
        name="one",
        spec=InstanceSpec(image="", isolation=Isolation.PROCESS),
        image_id="",
        state=State.RUNNING,
        created_ns=1,
    )
    disk = BlockSample(major=8, minor=0, read_bytes=10, write_bytes=20, reads=1, writes=2)
    loop = BlockSample(major=7, minor=3, read_bytes=1)
    sample = Sample(taken_ns=1, cpu_total_ns=1, blocks=(disk, loop))
    told = render_stats(instance, Measured(sample, 1), None)["blkio_stats"]
    assert [(8, "read", 10), (8, "write", 20), (7, "read", 1), (7, "write", 0)] == [
        (each["major"], each["op"], each["value"]) for each in told["io_service_bytes_recursive"]
    ]
    assert [(8, 0, "read", 1), (8, 0, "write", 2)] == [
        tuple(each.values()) for each in told["io_serviced_recursive"]
    ]
