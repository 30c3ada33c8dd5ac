"""Images: the facade of the room, the only thing that the engine and the daemon hold of it.  Async.

An image is on the disk in full before its row is written, and its row is gone before anything of it is
removed: a crash leaves nothing but orphans, which `start` sweeps.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from insula.errors import (
    CorruptData,
    DiskFull,
    InvalidReference,
    InvalidRequest,
    NotFound,
    RegistryFailed,
    Unauthorized,
)
from insula.events import EventBus
from insula.images.catalog import Catalog
from insula.images.content import ContentStore
from insula.images.disks import Disks
from insula.images.layers import Layers
from insula.images.local import LocalImages
from insula.images.pull import Puller
from insula.images.push import Pusher
from insula.images.records import InUse, Removed, created_ns
from insula.images.registry.blobs import in_thread
from insula.images.registry.client import Registries
from insula.images.registry.endpoints import find_endpoints
from insula.images.registry.manifests import host_platform, parse_platform
from insula.images.registry.transport import STALL_S
from insula.images.removal import Removal, plan_prune, plan_removal
from insula.images.unpacking import Unpacking
from insula.images.upkeep import Upkeep
from insula.model.credentials import Credentials
from insula.model.image import HistoryEntry, Image, ImageConfig, Offer
from insula.model.progress import Progress, no_progress
from insula.model.reference import Reference, parse_reference
from insula.model.reports import PruneFilters, PruneReport
from insula.store.store import Store

_AMBIGUOUS_NAMES = ("sha256", "sha384", "sha512")


class Images:
    """`root` is data_root/images.  Credentials come with each request: what `docker login` left is read by
    the client.  `stall_s` and `retry_s` are for tests of bad networks."""

    def __init__(
        self,
        root: str,
        store: Store,
        events: EventBus,
        *,
        mirrors: Sequence[str] = (),
        insecure: Sequence[str] = (),
        max_downloads: int = 3,
        stall_s: float = STALL_S,
        retry_s: float = 0.5,
    ) -> None:
        self.content = ContentStore(root)
        self.layers = Layers(root, self.content)
        self._events = events
        self._insecure = tuple(insecure)
        self._registries = Registries(stall_s=stall_s)
        self._catalog = Catalog(store)
        self._disks = Disks(f"{root}/disks", f"{root}/tmp", f"{root}/layers/empty")
        self._upkeep = Upkeep(self._catalog, self.content, self.layers, self._disks)
        self._unpacking = Unpacking(self._catalog, self.content, self.layers)
        self._local = LocalImages(self.content, self._catalog, self._unpacking, self._upkeep, events)
        self._puller = Puller(
            self._registries,
            self.content,
            self._unpacking,
            mirrors=mirrors,
            insecure=insecure,
            max_downloads=max_downloads,
            retry_s=retry_s,
        )
        self._pusher = Pusher(
            self._registries, self._catalog, self.content, insecure=insecure, retry_s=retry_s
        )

    async def start(self) -> None:
        """Remove what a crash left half stored, and what no image needs."""
        await in_thread(self.content.clean)
        await in_thread(self.layers.clean)
        self._catalog.reload()
        await self._upkeep.sweep()

    # what there is

    def find(self, ref: str) -> Image:
        """By name, name:tag, name@digest, id or the beginning of one.  Raises NoSuchImage, InvalidReference,
        InvalidRequest when several ids begin so."""
        return self._catalog.find(ref)

    def list(self) -> tuple[Image, ...]:
        """Newest first."""
        return self._catalog.all()

    # from and to registries

    async def pull(
        self,
        ref: str,
        *,
        platform: str | None = None,
        auth: Credentials | None = None,
        progress: Progress = no_progress,
    ) -> Image:
        """Raises NotFound, RegistryFailed, CorruptData, DiskFull; the image is then not there,
        and nothing of it that failed a check."""
        reference = parse_reference(ref).tagged()
        wanted = parse_platform(platform) if platform else None
        if reference.tag:
            progress(f"Pulling from {reference.path}", id=reference.tag)
        before = self._catalog.named(reference)
        async with self._upkeep.busy():
            try:
                image, digest = await self._puller.pull(
                    reference, platform=wanted, credentials=auth, progress=progress
                )
            except (CorruptData, DiskFull, InvalidRequest):
                self._upkeep.want()
                raise
            except Unauthorized as error:
                raise _refused(error) from error
            by_digest = str(reference.with_digest(digest))
            image = self._catalog.add(
                image, tags=(str(reference),) if reference.tag else (), digest=by_digest
            )
        progress(f"Digest: {digest}")
        same = before is not None and before.id == image.id
        progress(f"Status: {'Image is up to date' if same else 'Downloaded newer image'} for {reference}")
        self._events.publish(
            "image", "pull", str(reference), name=reference.familiar_name, **image.config.labels
        )
        return image

    async def look(self, ref: str, auth: Credentials | None = None) -> Offer:
        """What a registry has under a name.  Raises NotFound, Unauthorized, RegistryFailed, CorruptData."""
        return await self._puller.look(parse_reference(ref).tagged(), auth)

    async def pull_all(
        self,
        ref: str,
        *,
        platform: str | None = None,
        auth: Credentials | None = None,
        progress: Progress = no_progress,
    ) -> tuple[Image, ...]:
        """Every tag of a repository (`docker pull --all-tags`)."""
        reference = parse_reference(ref)
        if reference.tag or reference.digest:
            raise InvalidRequest("tag can't be used with --all-tags/-a")
        try:
            tags = await self._puller.tags(reference, auth)
        except Unauthorized as error:
            raise _refused(error) from error
        return tuple(
            [
                await self.pull(str(reference.with_tag(tag)), platform=platform, auth=auth, progress=progress)
                for tag in tags
            ]
        )

    async def push(
        self,
        ref: str,
        *,
        auth: Credentials | None = None,
        progress: Progress = no_progress,
        all_tags: bool = False,
    ) -> str:
        """Returns the digest on the registry (of the last one, with `all_tags`).

        Raises NotFound if there is no such tag here, Forbidden, RegistryFailed.
        """
        reference = parse_reference(ref)
        if reference.digest:
            raise InvalidReference("cannot push a digest reference")
        if all_tags and reference.tag:
            raise InvalidReference("tag can't be used with --all-tags/-a")
        progress(f"The push refers to repository [{reference.name}]")
        references = self._tags_of(reference) if all_tags else (reference.tagged(),)
        digest = ""
        async with self._upkeep.busy():
            for one in references:
                image = self._catalog.named(one)
                if image is None:
                    raise NotFound(f"An image does not exist locally with the tag: {one.familiar_name}")
                try:
                    digest, size = await self._pusher.push(image, one, credentials=auth, progress=progress)
                except Unauthorized as error:
                    raise _refused(error) from error
                self._catalog.set_digest(str(one.with_digest(digest)), image.id)
                progress(f"{one.tag}: digest: {digest} size: {size}")
                self._events.publish("image", "push", str(one), name=one.familiar_name, **image.config.labels)
        return digest

    async def login(self, credentials: Credentials) -> None:
        """Ask a registry whether it takes these (`docker login`).  Raises Unauthorized."""
        server = credentials.server.removeprefix("https://").removeprefix("http://").split("/")[0]
        domain = "docker.io" if server in ("", "index.docker.io", "registry-1.docker.io") else server
        endpoint = find_endpoints(Reference(domain, "login"), insecure=self._insecure)[-1]
        async with self._registries.opened():
            await self._registries.check(endpoint, credentials)

    def _tags_of(self, reference: Reference) -> tuple[Reference, ...]:
        all_tags = (parse_reference(tag) for image in self._catalog.all() for tag in image.tags)
        found = sorted((tag for tag in all_tags if tag.name == reference.name), key=str)
        if not found:
            raise NotFound(f"An image does not exist locally with the tag: {reference.familiar_name}")
        return tuple(found)

    # from and to this machine

    def save(self, refs: Sequence[str], *, form: str = "docker") -> AsyncIterator[bytes]:
        """One tar that is a docker archive and an OCI layout at once, whichever `form` is asked for.
        A repository's name saves all its tags.  Raises NoSuchImage at once."""
        if form not in ("docker", "oci"):
            raise InvalidRequest(f"save: {form!r} is neither docker nor oci")
        return self._local.save(refs)

    async def load(
        self, archive: AsyncIterator[bytes], progress: Progress = no_progress
    ) -> tuple[Image, ...]:
        """Every image of an archive.  Raises CorruptData, InvalidRequest, DiskFull; then none is here."""
        return await self._local.load(archive, progress)

    async def import_(
        self,
        archive: AsyncIterator[bytes],
        *,
        ref: str | None,
        message: str = "",
        changes: Sequence[str] = (),
        platform: str | None = None,
        progress: Progress = no_progress,
    ) -> Image:
        """An image of one layer from a root file system's tar.  `changes` are Dockerfile instructions,
        `platform` is what it is said to be of: this host's by default.  Raises InvalidRequest."""
        wanted = parse_platform(platform) if platform else host_platform()
        return await self._local.import_(
            archive, ref=ref, message=message, changes=changes, platform=wanted, progress=progress
        )

    async def commit(
        self,
        layer: AsyncIterator[bytes] | None,
        *,
        base: Image | None,
        config: ImageConfig,
        author: str = "",
        message: str = "",
        ref: str | None = None,
        created_by: str = "",
        created: str = "",
        container: str = "",
        container_image: str = "",
        merged: Sequence[HistoryEntry] = (),
    ) -> Image:
        """`base` (None: nothing) with one more layer (None: as it is) and a configuration of its own.
        `created` is RFC 3339, "" for now.  `merged` are steps that the layer is made of, for its history."""
        return await self._local.commit(
            layer,
            base=base,
            config=config,
            author=author,
            message=message,
            ref=ref,
            created_by=created_by,
            created=created,
            container=container,
            container_image=container_image,
            merged=merged,
        )

    async def restore(
        self, source: Image, entries: int, *, parent: Image | None, config: ImageConfig
    ) -> Image:
        """The image that `source` was after the first `entries` of its history (`build --cache-from`)."""
        return await self._local.restore(source, entries, parent=parent, config=config)

    async def drop_disks(self, images: Sequence[Image]) -> None:
        """Disks for guests of images that nobody will start: those that no other image shares."""
        gone = {image.id for image in images}
        kept = {image.diff_ids for image in self._catalog.all() if image.id not in gone}
        wanted = {image.diff_ids for image in images} - kept
        await in_thread(self._disks.drop, sorted(wanted))

    async def bootstrap(self, name: str, progress: Progress = no_progress) -> Image:
        """`debian:12`, made from the distribution's packages with the host's apt sources (mmdebstrap)."""
        return await self._local.bootstrap(name, progress)

    # names

    async def tag(self, ref: str, new: str) -> None:
        """Let `new` mean the image `ref`, whatever it meant before.  Raises NoSuchImage, InvalidReference."""
        image = self._catalog.find(ref)
        reference = parse_reference(new)
        if reference.digest:
            raise InvalidReference("refusing to create a tag with a digest reference")
        if reference.familiar_name in _AMBIGUOUS_NAMES:
            raise InvalidReference("refusing to create an ambiguous tag using digest algorithm as name")
        name = str(reference.tagged())
        self._catalog.tag(name, image.id)
        self._events.publish("image", "tag", image.id, name=name, **image.config.labels)

    # removal

    async def remove(
        self, ref: str, *, force: bool = False, prune_children: bool = True, in_use: InUse
    ) -> Sequence[Removed]:
        """As `docker rmi`.  `prune_children` False keeps unnamed parents.  Raises NoSuchImage, Conflict."""
        plan = plan_removal(self._catalog, ref, force=force, prune_children=prune_children, in_use=in_use)
        removed = self._carry_out(plan, self._catalog.find(ref))
        if plan.delete:
            await self._upkeep.sweep()
        return removed

    async def prune(
        self,
        *,
        dangling_only: bool = True,
        in_use: InUse,
        filters: PruneFilters | None = None,
    ) -> PruneReport:
        """Images without a tag, or (`dangling_only` False) all that no instance uses.  In the report, what
        begins with `sha256:` was deleted, the rest untagged."""
        filters = filters or PruneFilters()
        wanted = [
            image
            for image in self._catalog.all()
            if filters.matches(created_ns(image.created), image.config.labels)
        ]
        plan = plan_prune(self._catalog, dangling_only=dangling_only, in_use=in_use, wanted=wanted)
        removed = self._carry_out(plan, None)
        freed = await self._upkeep.sweep() + await in_thread(self.content.drop_partial)
        self._events.publish("image", "prune", "", reclaimed=str(freed))
        return PruneReport(
            deleted=tuple(one.deleted or one.untagged for one in removed), reclaimed_bytes=freed
        )

    def _carry_out(self, plan: Removal, image: Image | None) -> Sequence[Removed]:
        """Rows first; what they leave behind is swept after."""
        named = {name: owner.id for owner in self._catalog.all() for name in (*owner.tags, *owner.digests)}
        self._catalog.untag(plan.untag)
        for name in plan.untag:
            owner = named.get(name) or (image.id if image else "")
            self._events.publish("image", "untag", owner, name=name)
        for one in plan.delete:
            self._catalog.delete(one.id)
            self._events.publish("image", "delete", one.id, name=one.id)
        return [
            *(Removed(untagged=name) for name in plan.untag),
            *(Removed(deleted=one.id) for one in plan.delete),
        ]


def _refused(error: Unauthorized) -> RegistryFailed:
    """A registry's 401 is not our 401: that would tell the docker client to ask its user for a password,
    terminal or not (moby answers 500 here too)."""
    return RegistryFailed(error.message, hint=error.hint)
