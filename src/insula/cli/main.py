"""`insula`: the group of commands, its global options, and how errors become exit codes.

Commands load when they are named, so `insula ps` imports neither the daemon nor the other commands.
The table holds import strings for that reason; doors never import each other.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

from insula import __version__
from insula.cli.connect import Connection
from insula.cli.flags import spelled_out
from insula.errors import InsulaError, InvalidRequest

# command: (module:object, section of --help)
COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("insula.cli.run:run", "Instances"),
    "create": ("insula.cli.run:create", "Instances"),
    "start": ("insula.cli.run:start", "Instances"),
    "attach": ("insula.cli.run:attach", "Instances"),
    "exec": ("insula.cli.run:exec_", "Instances"),
    "ps": ("insula.cli.show:ps", "Instances"),
    "stop": ("insula.cli.lifecycle:stop", "Instances"),
    "restart": ("insula.cli.lifecycle:restart", "Instances"),
    "kill": ("insula.cli.lifecycle:kill", "Instances"),
    "rm": ("insula.cli.lifecycle:rm", "Instances"),
    "wait": ("insula.cli.lifecycle:wait", "Instances"),
    "pause": ("insula.cli.lifecycle:pause", "Instances"),
    "unpause": ("insula.cli.lifecycle:unpause", "Instances"),
    "rename": ("insula.cli.lifecycle:rename", "Instances"),
    "update": ("insula.cli.lifecycle:update", "Instances"),
    "fork": ("insula.cli.copies:fork", "Instances"),
    "logs": ("insula.cli.show:logs", "Instances"),
    "inspect": ("insula.cli.show:inspect", "Instances"),
    "top": ("insula.cli.show:top", "Instances"),
    "stats": ("insula.cli.show:stats", "Instances"),
    "port": ("insula.cli.show:port", "Instances"),
    "diff": ("insula.cli.show:diff", "Instances"),
    "cp": ("insula.cli.copy:cp", "Instances"),
    "export": ("insula.cli.copy:export", "Instances"),
    "commit": ("insula.cli.images:commit", "Images"),
    "build": ("insula.cli.build:build", "Images"),
    "images": ("insula.cli.images:images", "Images"),
    "pull": ("insula.cli.images:pull", "Images"),
    "push": ("insula.cli.images:push", "Images"),
    "tag": ("insula.cli.images:tag", "Images"),
    "rmi": ("insula.cli.images:rmi", "Images"),
    "history": ("insula.cli.images:history", "Images"),
    "save": ("insula.cli.archives:save", "Images"),
    "load": ("insula.cli.archives:load", "Images"),
    "import": ("insula.cli.archives:import_", "Images"),
    "search": ("insula.cli.images:search", "Images"),
    "bootstrap": ("insula.cli.images:bootstrap", "Images"),
    "login": ("insula.cli.registry:login", "Images"),
    "logout": ("insula.cli.registry:logout", "Images"),
    "container": ("insula.cli.groups:container", "Groups"),
    "image": ("insula.cli.groups:image", "Groups"),
    "builder": ("insula.cli.groups:builder", "Groups"),
    "network": ("insula.cli.networks:network", "Groups"),
    "volume": ("insula.cli.volumes:volume", "Groups"),
    "system": ("insula.cli.groups:system", "Groups"),
    "version": ("insula.cli.system:version", "Engine"),
    "info": ("insula.cli.system:info", "Engine"),
    "events": ("insula.cli.system:events", "Engine"),
    "compare": ("insula.compare.command:compare", "Engine"),
    "guest": ("insula.cli.groups:guest", "Engine"),
    "snapshot": ("insula.cli.copies:snapshot", "Groups"),
    "checkpoint": ("insula.cli.copies:checkpoint", "Groups"),
    "template": ("insula.cli.vm_templates:template", "Engine"),
    "daemon": ("insula.daemon:command", "Engine"),
}


SUMMARY = 62
"""Characters of a command's first sentence that stand beside its name on a terminal of 80 columns."""

# docker's commands that are not here, and what to do instead
ELSEWHERE = {
    "context": "`docker context` makes and lists them, `insula --context NAME` uses one",
    "buildx": "`insula build` builds",
    "compose": "docker-compose works with DOCKER_HOST=unix:///run/insula/insula.sock",
    "manifest": "what a registry has is not edited here; `insula image inspect` shows what was pulled",
    "trust": "signatures of images are not supported",
    "plugin": "there are no plugins",
    **dict.fromkeys(("swarm", "node", "service", "stack", "secret", "config"), "there is no swarm"),
}


class Lazy(click.Group):
    """A group whose commands are import strings until they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        loaded = getattr(importlib.import_module(module), name)
        assert isinstance(loaded, click.Command)
        return loaded

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for name, (_, section) in COMMANDS.items():
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                sections.setdefault(section, []).append((name, command.get_short_help_str(limit=SUMMARY)))
        for section, rows in sections.items():
            with formatter.section(section):
                formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            name, command, rest = super().resolve_command(ctx, args)
            return name, command, spelled_out(command, rest)
        except click.UsageError as error:
            if args[0] in ELSEWHERE:
                raise click.UsageError(
                    f"there is no command {args[0]!r}: {ELSEWHERE[args[0]]}.", ctx
                ) from error
            import difflib

            close = difflib.get_close_matches(args[0], COMMANDS, n=3)
            hint = f"  Did you mean {' or '.join(close)}?" if close else ""
            raise click.UsageError(f"there is no command {args[0]!r}.{hint}", ctx) from error


@click.group(
    cls=Lazy,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="\b\nExamples:\n"
    "  insula run --rm debian:12 uname -r                  # the host's kernel\n"
    "  insula run --rm --isolation vm debian:12 uname -r   # a kernel of its own",
)
@click.option(
    "-H",
    "--host",
    metavar="ADDRESS",
    help="Daemon to talk to: unix:///path, tcp://host:port or ssh://user@host.",
)
@click.option("-c", "--context", metavar="NAME", help="Docker's context that has its address.")
@click.option("--tls", is_flag=True, help="TLS, whoever the daemon is; --tlsverify implies it.")
@click.option("--tlsverify", is_flag=True, help="TLS, and the daemon must have a certificate.")
@click.option("--tlscacert", metavar="FILE", help="Who signs its certificate.  [default: ~/.docker/ca.pem]")
@click.option("--tlscert", metavar="FILE", help="Our certificate.  [default: ~/.docker/cert.pem]")
@click.option("--tlskey", metavar="FILE", help="Our key.  [default: ~/.docker/key.pem]")
@click.version_option(__version__, "-v", "--version", prog_name="insula", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context, /, host: str | None, context: str | None, **tls: Any) -> None:
    """Run an OCI image as a container, or as a virtual machine: the same image, command and API."""
    if host and context:
        raise InvalidRequest("--host and --context both name a daemon", hint="leave one of them out")
    named = context or ("" if host or os.environ.get("INSULA_HOST") else os.environ.get("INSULA_CONTEXT"))
    if not named and not any(tls.values()) and not os.environ.get("DOCKER_TLS_VERIFY"):
        ctx.obj = Connection(host or os.environ.get("INSULA_HOST"))
        return
    from insula.cli.remote import choose  # rarely needed

    ctx.obj = Connection(*choose(host or os.environ.get("INSULA_HOST"), named, **tls))


def _is_of_flags(error: click.UsageError) -> bool:
    """docker's: a wrong flag or value of one is 125, a missing or superfluous word is 1."""
    if isinstance(error, click.BadParameter):
        return not isinstance(error, click.MissingParameter) and isinstance(error.param, click.Option)
    return isinstance(error, (click.NoSuchOption, click.BadOptionUsage))


def main() -> None:
    """Entry point of the `insula` program."""
    try:
        status = cli.main(prog_name="insula", standalone_mode=False)
        sys.stdout.flush()
        sys.exit(status if isinstance(status, int) else 0)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.Abort:
        sys.exit(130)
    except click.UsageError as error:
        error.show()
        sys.exit(125 if _is_of_flags(error) else 1)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except InsulaError as error:
        print(f"insula: {error}", file=sys.stderr)
        # 125 tells apart our failures from the workload's exit code; other commands have no workload, and
        # 125 for wrong flags only
        of_flag = isinstance(error, InvalidRequest) and error.message.startswith("--")
        whole = of_flag or {"run", "exec"} & set(sys.argv[1:])
        sys.exit(error.exit_code if whole else min(error.exit_code, 1))
    except BrokenPipeError:
        # whoever read our output has gone (`insula ps | head -1`); don't complain again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except UnicodeEncodeError as error:
        print(f"insula: not UTF-8: {os.fsencode(error.object)!r}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        print(f"insula: {error.filename or error}: {error.strerror or ''}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
