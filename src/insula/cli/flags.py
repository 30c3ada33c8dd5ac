"""Options that many commands have, and switches in docker's spelling.  Pure.

docker takes `--flag=true` and `--flag=false` for every switch, click for none.
"""

from __future__ import annotations

from collections.abc import Mapping

import click

_TRUE = ("true", "1", "t")
_FALSE = ("false", "0", "f")

FILTER = click.option(
    "-f", "--filter", "filters", multiple=True, metavar="KEY=VALUE", help="Only those that match."
)
FORMAT = click.option(
    "-f", "--format", "template", metavar="TEMPLATE", help="json, or a template of {{.Fields}}."
)
ROWS_FORMAT = click.option(
    "--format", "template", metavar="TEMPLATE", help="json, table … or a template of {{.Fields}}."
)


def spelled_out(command: click.Command | None, words: list[str]) -> list[str]:
    """The same words, switches in click's form; what follows the first argument of `run` stays as it is."""
    if command is None or isinstance(command, click.Group):
        return words
    options: dict[str, click.Option] = {}
    for param in command.params:
        if isinstance(param, click.Option):
            options.update(dict.fromkeys((*param.opts, *param.secondary_opts), param))
    interspersed = command.context_settings.get("allow_interspersed_args", True)
    result: list[str] = []
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        option = options.get(name)
        if word == "--" or (not word.startswith("-") and not interspersed):
            return [*result, word, *rest]
        if option is not None and option.is_flag and equals and value.lower() in (*_TRUE, *_FALSE):
            result += [name] if value.lower() in _TRUE else option.secondary_opts[:1]
            continue
        result.append(word)
        last = option if option is not None else _last_short(options, word)
        if last is not None and not last.is_flag and not equals:
            result += [following] if (following := next(rest, None)) is not None else []
    return result


def _last_short(options: dict[str, click.Option], word: str) -> click.Option | None:
    """Of `-itu`: the option that takes the next word, if one does."""
    if not word.startswith("-") or word.startswith("--"):
        return None
    for index, letter in enumerate(word[1:], 1):
        option = options.get(f"-{letter}")
        if option is None or not option.is_flag:
            return option if index == len(word) - 1 else None
    return None


class Group(click.Group):
    """Commands under a noun; their switches in docker's spelling.  `aliases` are docker's other names."""

    aliases: Mapping[str, str] = {"list": "ls", "remove": "rm"}

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, cmd_name) or super().get_command(ctx, self.aliases.get(cmd_name, ""))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return name, command, spelled_out(command, rest)
