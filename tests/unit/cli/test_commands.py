"""The command line's own grammar: switches, other names, and what is said of commands that are not here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from insula.cli.flags import spelled_out
from insula.cli.main import ELSEWHERE, SUMMARY, cli, main
from insula.cli.system import _named
from insula.model.go_template import render


@click.command()
@click.option("-p", "--pause/--no-pause", default=True)
@click.option("-q", "--quiet", is_flag=True)
@click.option("-u", "--user")
def switches(**_: Any) -> None:
    pass


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--pause=false x", "--no-pause x"),
        ("-p=false x", "--no-pause x"),
        ("--pause=true x", "--pause x"),
        ("--quiet=false x", "x"),
        ("--quiet=1 x", "--quiet x"),
        ("-u --quiet=false x", "-u --quiet=false x"),
        ("-- --quiet=false", "-- --quiet=false"),
    ],
)
def test_switches_are_spelled_as_dockers(words: str, expected: str) -> None:
    assert expected.split() == spelled_out(switches, words.split())


@pytest.mark.parametrize(
    ("words", "same"),
    [
        ("container ps", "container ls"),
        ("container list", "container ls"),
        ("container remove", "container rm"),
        ("image list", "image ls"),
        ("image remove", "image rm"),
        ("volume list", "volume ls"),
        ("network remove", "network rm"),
    ],
)
def test_dockers_other_names(words: str, same: str) -> None:
    def help_of(text: str) -> list[str]:
        result = CliRunner().invoke(cli, [*text.split(), "--help"])
        assert result.exit_code == 0, result.output
        return result.output.splitlines()[1:]

    assert help_of(same) == help_of(words)


@pytest.mark.parametrize("command", sorted(ELSEWHERE))
def test_a_command_of_dockers_that_is_not_here_says_what_to_do(command: str) -> None:
    result = CliRunner().invoke(cli, [command, "ls"])
    assert result.exit_code == 2
    assert ELSEWHERE[command] in result.output


# docker's flags that have no meaning here: swarm's, BuildKit's, of registries with several platforms
WITHOUT = {
    **dict.fromkeys(("run", "create"), "--use-api-socket"),
    **dict.fromkeys(("push", "save", "load", "rmi", "history"), "--platform"),
    "images": "--tree",
    "network connect": "--gw-priority",
    "volume ls": "--cluster",
    "volume create": "--availability --group --limit-bytes --required-bytes --scope --secret --sharing "
    "--topology-preferred --topology-required --type",
}
# of docker 28, one line for each command
FLAGS = (Path(__file__).parent / "docker_flags.txt").read_text().splitlines()


@pytest.mark.parametrize("line", FLAGS, ids=[line.partition(":")[0] for line in FLAGS])
def test_every_flag_of_dockers_is_taken(line: str) -> None:
    name, _, flags = line.partition(":")
    command: click.Command | None = cli
    for word in name.split():
        assert isinstance(command, click.Group)
        command = command.get_command(click.Context(command), word)
    assert command is not None
    ours = {flag for p in command.params for flag in (*p.opts, *p.secondary_opts)}
    assert set(WITHOUT.get(name, "").split()) == set(flags.split()) - ours


def test_an_event_without_an_attribute_ends_no_stream() -> None:
    event = {
        "Type": "network", "Action": "prune", "Actor": {"ID": "", "Attributes": {"reclaimed": "0"}},
        "scope": "local", "time": 1, "timeNano": 1_000_000_000,
    }  # fmt: skip
    form = "{{.Action}} {{.Scope}} {{.Time}} {{.Actor.Attributes.name}} {{.Actor.Attributes.reclaimed}}"
    assert "prune local 1 <no value> 0" == render(form, _named(event))


@pytest.mark.parametrize("answer", ["n\n", "", "\n"])
def test_a_no_to_a_clean_up_is_no_failure(answer: str) -> None:
    """And nothing is asked of a daemon, of which there is none here."""
    result = CliRunner().invoke(cli, ["-H", "unix:///nowhere", "volume", "prune"], input=answer)
    assert result.exit_code == 0


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("run --odd x", 125),
        ("run --cpus x y", 125),
        ("run --memory x y", 125),
        ("run --pull odd x", 125),
        ("run -a odd x", 125),
        ("create --label =x y", 125),
        ("ps --filter odd", 125),
        ("ps -n odd", 125),
        ("run", 1),
        ("inspect", 1),
        ("rename x", 1),
        ("odd", 1),
        ("ps", 1),
    ],
)
def test_exit_codes_are_dockers(words: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["insula", "-H", "unix:///nowhere/at/all", *words.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    assert code == ended.value.code


def all_commands(group: click.Group, name: str) -> dict[str, click.Command]:
    found = {}
    for word in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), word)
        assert command is not None
        found[f"{name} {word}"] = command
        if isinstance(command, click.Group):
            found |= all_commands(command, f"{name} {word}")
    return found


def test_help_fits_a_terminal_of_80_columns() -> None:
    """Summaries are whole, and no line is longer."""
    for name, command in all_commands(cli, "insula").items():
        assert not command.get_short_help_str(SUMMARY).endswith("..."), f"{name}: a shorter first sentence"
        text = command.get_help(click.Context(command, info_name=name, terminal_width=80))
        assert [] == [line for line in text.splitlines() if len(line) > 80], name
    top = cli.get_help(click.Context(cli, info_name="insula", terminal_width=80))
    assert [] == [line for line in top.splitlines() if len(line) > 80]
