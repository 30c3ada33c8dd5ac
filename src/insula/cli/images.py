"""images, pull, push, tag, rmi and their like."""

from __future__ import annotations

import sys

import click

from insula.cli.connect import pass_client
from insula.cli.flags import FILTER, ROWS_FORMAT
from insula.cli.lifecycle import for_each
from insula.cli.progress import auth_of, pull_image, show_progress, split_reference
from insula.cli.table import age_of, human_size, print_rows, rfc3339, utc_text
from insula.cli.values import parse_filters
from insula.errors import InvalidRequest


@click.command()
@click.option("-a", "--all", "everything", is_flag=True, help="Also intermediate images.")
@click.option("-q", "--quiet", is_flag=True, help="Ids only.")
@FILTER
@click.option("--digests", is_flag=True, help="Show digests.")
@click.option("--no-trunc", is_flag=True, help="Do not shorten.")
@ROWS_FORMAT
@click.argument("name", required=False)
@click.pass_context
def images(
    ctx: click.Context,
    name: str | None,
    everything: bool,
    quiet: bool,
    filters: tuple[str, ...],
    digests: bool,
    no_trunc: bool,
    template: str | None,
) -> None:
    """List images."""
    wanted = parse_filters(filters)
    if name:
        wanted.setdefault("reference", []).append(name)
    listed = pass_client(ctx).get(
        "/images/json", all=everything, filters=wanted or None, digests=digests or None
    )
    rows = []
    for image in listed:
        ident = image["Id"] if no_trunc else image["Id"].removeprefix("sha256:")[:12]
        for tag in image.get("RepoTags") or ["<none>:<none>"]:
            repository, _, word = tag.rpartition(":")
            digest = next((d.partition("@")[2] for d in image.get("RepoDigests") or ()), "<none>")
            rows.append(
                {
                    "Repository": repository,
                    "Tag": word,
                    "Digest": digest,
                    "ID": ident,
                    "CreatedSince": age_of(image["Created"]),
                    "CreatedAt": utc_text(image["Created"]),
                    "Containers": "N/A",
                    "SharedSize": "N/A",
                    "UniqueSize": "N/A",
                    "Size": human_size(image["Size"]),
                    "VirtualSize": human_size(image["Size"]),
                }
            )
    if quiet:
        for row in rows:
            print(row["ID"])
        return
    columns = {
        "Repository": "REPOSITORY",
        "Tag": "TAG",
        "ID": "IMAGE ID",
        "CreatedSince": "CREATED",
        "Size": "SIZE",
    }
    if digests:
        columns = {"Repository": "REPOSITORY", "Tag": "TAG", "Digest": "DIGEST", **columns}
    print_rows(rows, columns, template=template)


@click.command()
@click.option("-a", "--all-tags", is_flag=True, help="Every tag of the repository.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.option("--platform", metavar="OS/ARCH", help="Platform to pull.")
@click.option("--disable-content-trust", is_flag=True, hidden=True)
@click.argument("name")
@click.pass_context
def pull(
    ctx: click.Context,
    name: str,
    all_tags: bool,
    quiet: bool,
    platform: str | None,
    disable_content_trust: bool,
) -> None:
    """Get an image from a registry."""
    client = pass_client(ctx)
    if all_tags:
        if "@" in name or split_reference(name)[0] != name:
            raise InvalidRequest("tag can't be used with --all-tags/-a")
        pull_image(client, name, platform=platform, quiet=quiet, all_tags=True)
        print(name)
        return
    if not quiet and "@" not in name and split_reference(name)[0] == name:
        print("Using default tag: latest", file=sys.stderr)
    pull_image(client, name, platform=platform, quiet=quiet)
    print(name if "@" in name else ":".join(split_reference(name)))


@click.command()
@click.option("-a", "--all-tags", is_flag=True, help="Every tag that the repository has here.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.option("--disable-content-trust", is_flag=True, hidden=True)
@click.argument("name")
@click.pass_context
def push(ctx: click.Context, name: str, all_tags: bool, quiet: bool, disable_content_trust: bool) -> None:
    """Put an image into the registry that its name says."""
    repository, tag = split_reference(name)
    if all_tags:
        if repository != name:
            raise InvalidRequest("tag can't be used with --all-tags/-a")
        tag = ""
    elif not quiet and repository == name:
        print("Using default tag: latest", file=sys.stderr)
    headers = {"X-Registry-Auth": "e30=", **auth_of(name)}
    answer = pass_client(ctx).request(
        "POST", f"/images/{repository}/push", query={"tag": tag or None}, headers=headers
    )
    show_progress(answer.lines(), quiet=quiet)


@click.command()
@click.argument("source")
@click.argument("target")
@click.pass_context
def tag(ctx: click.Context, source: str, target: str) -> None:
    """Give an image one more name."""
    repository, word = split_reference(target)
    pass_client(ctx).post(f"/images/{source}/tag", repo=repository, tag=word)


@click.command()
@click.option("-f", "--force", is_flag=True, help="Also when stopped instances use it.")
@click.option("--no-prune", is_flag=True, help="Keep untagged parents.")
@click.argument("image", nargs=-1, required=True)
@click.pass_context
def rmi(ctx: click.Context, image: tuple[str, ...], force: bool, no_prune: bool) -> int:
    """Remove images."""
    client = pass_client(ctx)

    def act(ref: str) -> None:
        for removed in client.delete(f"/images/{ref}", force=force, noprune=no_prune):
            for verb, what in removed.items():
                print(f"{verb}: {what}")

    return for_each(image, act, echo=False, may_be_missing=force)


@click.command()
@click.option("--no-trunc", is_flag=True, help="Do not shorten.")
@click.option("-q", "--quiet", is_flag=True, help="Ids only.")
@click.option(
    "-H", "--human/--no-human", default=True, help="Sizes and times as people read them (default: yes)."
)
@ROWS_FORMAT
@click.argument("image")
@click.pass_context
def history(
    ctx: click.Context, image: str, no_trunc: bool, quiet: bool, human: bool, template: str | None
) -> None:
    """How an image was made, newest step first."""
    rows = []
    for step in pass_client(ctx).get(f"/images/{image}/history"):
        ident, created_by = step["Id"], step["CreatedBy"]
        if not no_trunc:
            ident = ident if ident == "<missing>" else ident.removeprefix("sha256:")[:12]
            created_by = created_by if len(created_by) <= 45 else created_by[:44] + "…"
        rows.append(
            {
                "ID": ident,
                "CreatedSince": (age_of if human else rfc3339)(step["Created"]) if step["Created"] else "N/A",
                "CreatedAt": rfc3339(step["Created"]) if step["Created"] else "N/A",
                "CreatedBy": created_by,
                "Size": human_size(step["Size"]) if human else str(step["Size"]),
                "Comment": step.get("Comment", ""),
            }
        )
    if quiet:
        for row in rows:
            print(row["ID"])
        return
    columns = {
        "ID": "IMAGE",
        "CreatedSince": "CREATED",
        "CreatedBy": "CREATED BY",
        "Size": "SIZE",
        "Comment": "COMMENT",
    }
    print_rows(rows, columns, template=template)


@click.command()
@click.option("-a", "--author", metavar="TEXT", help="Author of the image.")
@click.option("-m", "--message", metavar="TEXT", help="Comment of the image.")
@click.option("-c", "--change", multiple=True, metavar="INSTRUCTION", help="Dockerfile instruction to apply.")
@click.option("-p", "--pause/--no-pause", default=True, help="Freeze it meanwhile (default: yes).")
@click.argument("instance")
@click.argument("name", required=False)
@click.pass_context
def commit(
    ctx: click.Context,
    instance: str,
    name: str | None,
    author: str | None,
    message: str | None,
    change: tuple[str, ...],
    pause: bool,
) -> None:
    """An image from what an instance has changed."""
    repository, tag = split_reference(name) if name else (None, None)
    query = {
        "container": instance,
        "repo": repository,
        "tag": tag,
        "author": author,
        "comment": message,
        "pause": pause,
        "changes": "\n".join(change) or None,
    }
    print(pass_client(ctx).request("POST", "/commit", query=query, body={}).json()["Id"])


@click.command()
@FILTER
@click.option("--limit", type=int, metavar="N", help="How many, at most.")
@click.option("--no-trunc", is_flag=True, help="Do not shorten.")
@ROWS_FORMAT
@click.argument("term")
@click.pass_context
def search(
    ctx: click.Context,
    term: str,
    filters: tuple[str, ...],
    limit: int | None,
    no_trunc: bool,
    template: str | None,
) -> None:
    """Search a registry, with a daemon that can.

    insula's own says that registries have no search.
    """
    found = pass_client(ctx).get(
        "/images/search", term=term, limit=limit, filters=parse_filters(filters) if filters else None
    )
    rows = [
        {
            "Name": one["name"],
            "Description": one["description"] if no_trunc else one["description"][:45],
            "StarCount": one["star_count"],
            "IsOfficial": "[OK]" if one.get("is_official") else "",
        }
        for one in found
    ]
    columns = {"Name": "NAME", "Description": "DESCRIPTION", "StarCount": "STARS", "IsOfficial": "OFFICIAL"}
    print_rows(rows, columns, template=template)


@click.command()
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.argument("name", metavar="NAME[:RELEASE]")
@click.pass_context
def bootstrap(ctx: click.Context, name: str, quiet: bool) -> None:
    """Make an image from the distribution's packages.

    Where no registry is at hand: `insula bootstrap debian:12`.  Takes minutes.
    """
    answer = pass_client(ctx).request(
        "POST", "/insula/v1/images/bootstrap", query={"name": name}, versioned=False
    )
    aux = show_progress(answer.lines(), quiet=quiet)
    print(aux[-1]["ID"] if aux else name)
