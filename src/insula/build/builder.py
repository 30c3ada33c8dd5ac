"""A build from its first line to its image: stages in order, each instruction one step, one image.  Async.

The classic builder's ways, because its clients expect them: steps one after the other, an image for each,
which is the cache.  Only RUN needs an instance; it has the isolation that was asked for.  Files are copied
without one (`copying`).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from insula.build.arguments import Arguments, epoch_of, platform_arguments, with_origins
from insula.build.cache import Cache
from insula.build.context import Context
from insula.build.copying import Copying, Layers
from insula.build.files import FileSteps
from insula.build.mounting import Places, RunMounts
from insula.build.options import BuildOptions, Output, StepNote
from insula.build.running import Running
from insula.build.stage import StageState
from insula.dockerfile.configuration import env_of
from insula.dockerfile.expansion import expand_instruction
from insula.dockerfile.instructions import (
    Arg,
    Copy,
    From,
    Instruction,
    Label,
    Maintainer,
    Run,
    Step,
    WorkDir,
    parse_step,
)
from insula.dockerfile.reader import read_lines
from insula.dockerfile.stages import Dockerfile, Stage, find_stage, parse_dockerfile
from insula.errors import InsulaError, InvalidRequest, NoSuchImage
from insula.images.registry.manifests import parse_platform
from insula.model.ids import short_id
from insula.model.image import Image
from insula.model.reference import parse_reference
from insula.system.files import disk_errors, remove_tree

if TYPE_CHECKING:
    from insula.engine.engine import Engine

_LAYERS = (Copy, Run, WorkDir)  # what BuildKit counts, besides FROM
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Builder:
    """One build.  `ident` names what it holds while it runs."""

    def __init__(self, engine: Engine, options: BuildOptions, output: Output, ident: str) -> None:
        self._engine = engine
        self._images = engine.images
        self._options = options
        self._out = output
        self._ident = ident
        settings = engine.settings
        self._places = Places(
            run=f"{settings.exec_root}/build/{ident}",
            state=f"{settings.data_root}/build/{ident}",
            mounts=f"{settings.exec_root}/mounts/build-{ident}",
        )
        self._epoch_s = epoch_of(options.build_args)
        self._done: list[StageState] = []
        self._made: list[Image] = []
        self._holders: set[str] = set()
        self._total = self._number = 0

    async def build(self, receive: Callable[[str], Awaitable[Context]]) -> Image:
        """`receive` puts the context into an empty directory.  Raises InvalidRequest before anything is said
        when the request or the Dockerfile is wrong; and DiskFull."""
        async with AsyncExitStack() as stack:
            stack.enter_context(disk_errors("building an image"))
            for place in (self._places.run, self._places.state):
                os.makedirs(place, mode=0o700)
                stack.push_async_callback(asyncio.to_thread, remove_tree, place)  # a context may be large
            stack.callback(self._let_go)
            context = await receive(self._places.state)
            parsed = context.parsed
            if parsed is None:
                parsed = await asyncio.to_thread(parse_dockerfile, context.dockerfile)
            parsed = parsed.up_to(self._options.target)
            stack.push_async_callback(self._drop_disks)
            return await self._build(parsed, context)

    def _let_go(self) -> None:
        for holder in self._holders:
            self._engine.hold_image(holder, None)

    async def _drop_disks(self) -> None:
        """A guest's disk of an image between two steps is of no more use."""
        between = [image for image in self._made[:-1] if not self._engine.uses_image(image.id)]
        await self._images.drop_disks(between)

    async def _build(self, parsed: Dockerfile, context: Context) -> Image:
        options = self._options
        platform = platform_arguments(options.platform)
        self._arguments = Arguments(options.build_args, platform)
        self._escape = parsed.escape
        self._stages = parsed.stages
        empty = f"{self._places.state}/empty"
        mount_points = f"{self._places.run}/mounts"
        for directory in (empty, mount_points):
            os.mkdir(directory, 0o755)
        self._empty = empty
        self._context_layers: Layers = (context.directory, empty)
        self._named = {name: (directory, empty) for name, directory in context.named.items()}
        copying = Copying(mount_points, empty)
        self._files = FileSteps(
            copying,
            self._places.state,
            self._context_layers,
            self.find_root,
            may_be_nothing=options.buildkit,
            digests=context.digests,
        )
        mounts = RunMounts(self._places, copying, self._engine.volumes, options.client, self._find_mount_root)
        self._running = Running(
            self._engine,
            options,
            self._out,
            mounts=mounts,
            copying=copying,
            places=self._places,
            ident=self._ident,
        )
        sources = [image for ref in options.cache_from if (image := self._local(ref)) is not None]
        cache = Cache(self._images, sources if options.cache_from else None)
        self._cache = None if options.no_cache else cache
        last = (_label_step(options.labels),) if options.labels else ()
        needed = frozenset(range(len(parsed.stages)))
        if options.buildkit:
            resolved = await asyncio.to_thread(with_origins, parsed, options.build_args, platform)
            needed = resolved.needed()
        steps = sum(1 + len(stage.steps) for n, stage in enumerate(parsed.stages) if n in needed)
        self._total = len(parsed.arguments) + steps + len(last)
        for step in parsed.arguments:
            self._tell(StepNote(number=0, total=0, code=step.code, line=step.number))
            arg = await self._expanded(step.instruction, self._arguments.globals())
            assert isinstance(arg, Arg)
            self._arguments.add_global(arg)
        state = StageState()
        for number, stage in enumerate(parsed.stages):
            if number not in needed:
                self._done.append(StageState())
                continue
            extra = last if number == len(parsed.stages) - 1 else ()
            state = await self._stage(stage, extra)
            self._done.append(state)
            if state.image is not None:  # of each stage, as in Docker; clients take the last
                self._out.aux({"ID": state.image.id})
        if unused := self._arguments.unused():
            self._out.note(f"[Warning] One or more build-args [{' '.join(unused)}] were not consumed\n")
        image = state.image
        if image is None:
            raise InvalidRequest("No image was generated. Is your Dockerfile empty?")
        return await self._finish(image, state)

    async def _finish(self, image: Image, state: StageState) -> Image:
        if self._options.squash:
            image = await self._files.squash(
                self._images,
                image,
                below=state.origin,
                layers=self._layers(image),
                below_layers=self._layers(state.origin),
                created=self._created(),
            )
            self._made.append(image)
            self._out.aux({"ID": image.id})
        self._out.note(f"Successfully built {short_id(image.id)}\n")
        for tag in self._options.tags:
            await self._images.tag(image.id, tag)
            self._out.note(f"Successfully tagged {parse_reference(tag).tagged()}\n")
        return image

    # stages

    async def _stage(self, stage: Stage, extra: Sequence[Step]) -> StageState:
        counted = 1 + sum(isinstance(step.instruction, _LAYERS) for step in stage.steps)
        name = stage.origin.name or f"stage-{len(self._done)}"
        name = name if len(self._stages) > 1 else ""
        note = StepNote(number=0, total=0, code=stage.first.code, stage=name, layer=1, layers=counted)
        self._tell(dataclasses.replace(note, line=stage.first.number))
        origin = await self._expanded(stage.origin, self._arguments.globals())
        assert isinstance(origin, From)
        self._arguments.begin_stage()
        state = await self._begin(origin)
        cold = self._options.no_cache_stages
        state.missed = stage.origin.name in cold or str(len(self._done)) in cold
        triggers = state.take_triggers()
        if triggers:
            plural = "s" if len(triggers) > 1 else ""
            self._out.note(f"# Executing {len(triggers)} build trigger{plural}\n")
            for step in _trigger_steps(triggers):
                await self._step(state, step)
        layer = 1
        for step in (*stage.steps, *extra):
            makes = isinstance(step.instruction, _LAYERS)
            layer += makes
            here = dataclasses.replace(note, code=step.code, layer=layer if makes else 0, line=step.number)
            self._tell(here)
            await self._step(state, step)
        return state

    async def _begin(self, origin: From) -> StageState:
        """FROM: another stage, an image that is here or on a registry, or nothing."""
        name = origin.image
        if not name:
            raise InvalidRequest(f"base name ({name}) should not be blank")
        found = find_stage(self._stages[: len(self._done)], name)
        if found is not None and self._stages[found].origin.name == name.lower():
            base = self._done[found]
            image = base.image
            state = StageState(image=image, origin=image, author=base.author)
            state.configuration.config = base.configuration.config
        elif name == "scratch":
            state = StageState()
            if self._options.buildkit:
                config = state.configuration.config
                state.configuration.config = dataclasses.replace(config, working_dir="/")
        elif name.lower() in self._named:
            raise InvalidRequest(
                f"FROM {name}: that build context is a directory, not an image",
                hint=f"FROM scratch, then COPY --from={name} / /",
            )
        else:
            image = await self._find_image(
                name, origin.platform or self._options.platform, pull=self._options.pull
            )
            state = StageState(image=image, origin=image, author=image.author)
            state.configuration.config = image.config
        state.add_default_path(PATH)
        self._hold(state)
        self._out.note(f" ---> {short_id(state.image.id) if state.image else ''}\n")
        return state

    def _hold(self, state: StageState) -> None:
        if state.image is not None:
            self._hold_as(f"{self._ident}-{len(self._done)}", state.image)

    def _hold_as(self, holder: str, image: Image) -> None:
        self._holders.add(holder)
        self._engine.hold_image(holder, image.id)

    def _local(self, ref: str) -> Image | None:
        with contextlib.suppress(NoSuchImage):
            return self._images.find(ref)
        return None

    async def _find_image(self, name: str, platform: str, *, pull: bool = False) -> Image:
        """Here, or from a registry with the request's credentials."""
        name = renamed(self._options.renamed, name)
        wanted = parse_platform(platform) if platform else None
        image = None if pull else self._local(name)
        if image is not None and (wanted is None or image.platform.architecture == wanted.architecture):
            return image
        reference = parse_reference(name)
        credentials = await self._options.client.credentials(reference.domain)
        return await self._images.pull(
            name, platform=platform or None, auth=credentials, progress=self._out.status
        )

    # roots

    def _layers(self, image: Image | None) -> Layers:
        """An image's root, topmost first."""
        if image is None or not image.diff_ids:
            return (self._empty,)
        layers = tuple(self._images.layers.path(diff_id) for diff_id in reversed(image.diff_ids))
        return tuple(dict.fromkeys(layers)) if len(layers) > 1 else (*layers, self._empty)

    async def find_root(self, name: str) -> Layers:
        """What `--from` names: a stage that is done, by name or number, or an image."""
        number = find_stage(self._stages[: len(self._done)], name)
        if number is not None:
            return self._layers(self._done[number].image)
        here = self._stages[len(self._done)].origin.name if len(self._done) < len(self._stages) else ""
        if name == str(len(self._done)) or (here and name.lower() == here):
            raise InvalidRequest(f"invalid from flag value {name}: refers to current build stage")
        if name.isdecimal() or name.lower() in {
            stage.origin.name for stage in self._stages if stage.origin.name
        }:
            raise InvalidRequest(f"invalid from flag value {name}: it is no stage before this one")
        if name.lower() in self._named:
            return self._named[name.lower()]
        try:
            image = await self._find_image(name, "")
        except InsulaError as error:
            error.message = f"invalid from flag value {name}: {error.message}"
            raise
        self._hold_as(f"{self._ident}-from-{name}", image)
        return self._layers(image)

    async def _find_mount_root(self, name: str) -> Layers:
        return await self.find_root(name) if name else self._context_layers

    # steps

    def _tell(self, note: StepNote) -> None:
        self._number += 1
        self._out.step(dataclasses.replace(note, number=self._number, total=self._total))

    def _env(self, state: StageState) -> dict[str, str]:
        env = state.configuration.config.env
        return {**self._arguments.declared(env), **env_of(env)}

    async def _expanded(self, instruction: Instruction, env: Mapping[str, str]) -> Instruction:
        """In a thread: the text is a stranger's, and may be long."""
        return await asyncio.to_thread(expand_instruction, instruction, env, self._escape)

    async def _step(self, state: StageState, step: Step) -> None:
        await self._out.room()
        instruction = await self._expanded(step.instruction, self._env(state))
        match instruction:
            case Run():
                await self._run(state, instruction)
            case Copy():
                await self._copy(state, instruction)
            case WorkDir():
                await self._work_dir(state, instruction)
            case _:
                await self._plain(state, instruction)
        self._hold(state)

    async def _plain(self, state: StageState, instruction: Instruction) -> None:
        """Nothing but the configuration changes."""
        if isinstance(instruction, Arg):
            self._arguments.declare(instruction)
            said = "ARG " + " ".join(n if v is None else f"{n}={v}" for n, v in instruction.pairs)
        elif isinstance(instruction, Maintainer):
            state.author = instruction.name
            said = f"MAINTAINER {instruction.name}"
        else:
            said = state.configuration.apply(instruction) or ""
        await self._commit(state, None, state.nop(said))

    async def _work_dir(self, state: StageState, instruction: WorkDir) -> None:
        said = state.nop(state.configuration.apply(instruction) or "", spaced=False)
        layer = self._files.directory(
            self._layers(state.image),
            state.configuration.config.working_dir,
            created_ns=self._directory_ns(state),
            newest_ns=self._newest_ns,
        )
        await self._commit(state, layer, said)

    async def _copy(self, state: StageState, copy: Copy) -> None:
        order = await self._files.decide(
            copy,
            self._layers(state.image),
            state.configuration.config.working_dir,
            created_ns=self._directory_ns(state),
            newest_ns=self._newest_ns,
        )
        digest = await self._files.digest(order)
        chown = f"--chown={copy.chown} " if copy.chown else ""
        chmod = f"--chmod={copy.chmod} " if copy.chmod else ""
        said = state.nop(f"{copy.word} {chown}{chmod}{digest} in {copy.target} ", spaced=False)
        await self._commit(state, self._files.layer(order), said)

    async def _run(self, state: StageState, run: Run) -> None:
        env = state.configuration.config.env
        command = run.words if run.words is not None else (*state.configuration.shell, run.script)
        arguments = self._arguments.in_history(env)
        shown = [f"|{len(arguments)}", *arguments, *command] if arguments else list(command)
        created_by = " ".join(shown)
        if run.mounts or run.network:
            created_by += f" # {_run_flags(run)}"
        if await self._from_cache(state, created_by):
            return
        if state.image is None:  # a RUN in nothing: there has to be an image for its instance to be of
            state.image = await self._images.commit(None, base=None, config=state.configuration.config)
            self._hold(state)
        state.image = await self._running.run(
            run,
            command,
            state,
            layers=self._layers(state.image),
            env=self._arguments.for_run(env),
            created_by=created_by,
            created=self._created(),
            newest_ns=self._newest_ns,
        )
        self._committed(state)

    async def _from_cache(self, state: StageState, created_by: str) -> bool:
        """Take the step's image from the cache.  After one that is not there, a stage asks no more."""
        if self._cache is None or state.missed:
            return False
        image = await self._cache.find(state.image, state.configuration.config, created_by)
        if image is None:
            state.missed = True
            return False
        self._out.cached()
        state.image = image
        self._out.note(f" ---> {short_id(image.id)}\n")
        self._made.append(image)
        return True

    async def _commit(self, state: StageState, layer: AsyncIterator[bytes] | None, created_by: str) -> None:
        try:
            if await self._from_cache(state, created_by):
                return
            state.image = await self._images.commit(
                layer,
                base=state.image,
                config=state.configuration.config,
                author=state.author,
                created_by=created_by,
                created=self._created(),
            )
        finally:
            if layer is not None and hasattr(layer, "aclose"):
                await layer.aclose()
        self._committed(state)

    def _committed(self, state: StageState) -> None:
        assert state.image is not None
        self._made.append(state.image)
        self._out.note(f" ---> {short_id(state.image.id)}\n")

    # times

    def _created(self) -> str:
        """Of an image; "" for now."""
        if self._epoch_s is None:
            return ""
        made = datetime.datetime.fromtimestamp(self._epoch_s, datetime.UTC)
        return made.isoformat().replace("+00:00", "Z")

    @property
    def _newest_ns(self) -> int | None:
        return None if self._epoch_s is None else self._epoch_s * 1_000_000_000

    def _directory_ns(self, state: StageState) -> int:
        """Of directories that a step makes on the way: as old as the base, so the same each time."""
        if self._newest_ns is not None:
            return self._newest_ns
        created = state.origin.created if state.origin is not None else ""
        try:
            seconds = int(datetime.datetime.fromisoformat(created).timestamp())
        except ValueError:
            return 0
        return max(0, seconds) * 1_000_000_000


def renamed(others: Mapping[str, str], name: str) -> str:
    """The image to take for `name`, which may be written short or whole."""
    for known, other in others.items():
        if name in (known, other):
            return other
        with contextlib.suppress(InvalidRequest):
            if parse_reference(known).tagged() == parse_reference(name).tagged():
                return other
    return name


def _label_step(labels: Mapping[str, str]) -> Step:
    pairs = tuple((name, labels[name]) for name in sorted(labels))
    code = "LABEL " + " ".join(f"{name}={value}" for name, value in pairs)
    quoted = tuple((_literal(name), _literal(value)) for name, value in pairs)
    return Step(number=0, code=code, instruction=Label(pairs=quoted))


def _literal(text: str) -> str:
    """As a word that expands to just this."""
    return "'" + text.replace("'", "'\"'\"'") + "'"


def _trigger_steps(triggers: Sequence[str]) -> list[Step]:
    source = read_lines(triggers)
    steps = [parse_step(line, source.escape) for line in source.lines]
    for step in steps:
        if isinstance(step.instruction, From | Maintainer):
            raise InvalidRequest(f"{step.code.split()[0].upper()} isn't allowed as an ONBUILD trigger")
    return steps


def _run_flags(run: Run) -> str:
    flags = [f"--network={run.network}"] if run.network else []
    for mount in run.mounts:
        fields = dataclasses.asdict(mount)
        flags.append("--mount=" + ",".join(f"{name}={value}" for name, value in fields.items() if value))
    return " ".join(flags)
