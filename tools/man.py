"""Man pages from the command line's own tables: `python tools/man.py DIRECTORY`.

`render_all` is what the style test compares with the files in docs/man.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from insula.cli.main import COMMANDS, cli


def escape(text: str) -> str:
    """Plain text for roff."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join("\\&" + line if line.startswith((".", "'")) else line for line in text.split("\n"))


def paragraphs(text: str) -> Iterator[str]:
    """A click help text as roff: `\\b` blocks keep their lines."""
    for block in text.strip().split("\n\n"):
        lines = [line.strip() for line in block.split("\n")]
        if lines[0] == "\b":
            yield ".nf\n" + "\n".join(escape(line) for line in lines[1:]) + "\n.fi"
        else:
            yield escape(" ".join(lines))


def commands() -> Iterator[tuple[str, click.Command, click.Context]]:
    """Every command by its full name, groups' subcommands included."""
    top = click.Context(cli, info_name="insula")
    yield "insula", cli, top
    for name in sorted(COMMANDS):
        command = cli.get_command(top, name)
        assert command is not None
        ctx = click.Context(command, info_name=name, parent=top)
        yield f"insula {name}", command, ctx
        if isinstance(command, click.Group):
            for sub in sorted(command.list_commands(ctx)):
                inner = command.get_command(ctx, sub)
                assert inner is not None
                yield f"insula {name} {sub}", inner, click.Context(inner, info_name=sub, parent=ctx)


def page(name: str, command: click.Command, ctx: click.Context) -> str:
    title = name.replace(" ", "-")
    summary = command.get_short_help_str(limit=200)
    parts = [
        f'.TH "{title.upper()}" "1" "" "insula" "User Commands"',
        ".SH NAME",
        f"{escape(title)} \\- {escape(summary)}",
        ".SH SYNOPSIS",
        f"\\fB{escape(name)}\\fR {escape(' '.join(command.collect_usage_pieces(ctx)))}",
        ".SH DESCRIPTION",
        "\n.PP\n".join(paragraphs(command.help or summary)),
    ]
    options = [p for p in command.get_params(ctx) if isinstance(p, click.Option)]
    records = [record for record in (option.get_help_record(ctx) for option in options) if record]
    if records:
        parts.append(".SH OPTIONS")
        parts += [f".TP\n\\fB{escape(flags)}\\fR\n{escape(text)}" for flags, text in records]
    if isinstance(command, click.Group):
        parts.append(".SH COMMANDS")
        for sub in command.list_commands(ctx):
            inner = command.get_command(ctx, sub)
            assert inner is not None
            parts.append(f".TP\n\\fB{escape(sub)}\\fR\n{escape(inner.get_short_help_str(limit=200))}")
    if name == "insula":
        parts.append(
            ".SH EXIT STATUS\nAs docker's: that of the workload for run and exec; 125 when insula failed,"
        )
        parts.append("126 when the program cannot be executed, 127 when it is not there, 1 for other errors.")
        parts.append(
            ".SH ENVIRONMENT\n.TP\n\\fBINSULA_HOST\\fR\nDaemon to talk to when \\-\\-host is not given."
        )
        parts.append(".TP\n\\fBDOCKER_CONFIG\\fR\nDirectory of Docker's configuration file, for credentials.")
    return "\n".join(parts) + "\n"


def render_all() -> dict[str, str]:
    """File name to text of every page."""
    return {f"{name.replace(' ', '-')}.1": page(name, command, ctx) for name, command, ctx in commands()}


def main() -> None:
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    pages = render_all()
    for old in directory.glob("*.1"):
        if old.name not in pages:
            old.unlink()
    for name, text in pages.items():
        (directory / name).write_text(text)
    print(f"{len(pages)} man pages in {directory}", file=sys.stderr)


if __name__ == "__main__":
    main()
