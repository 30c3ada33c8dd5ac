"""All pages, in the order in which they are tried."""

from __future__ import annotations

from insula.api.routes import (
    absent,
    build,
    buildkit,
    container_files,
    container_io,
    containers,
    copies,
    exec,
    images,
    insula,
    networks,
    system,
    volumes,
)

ROUTES = (
    *system.ROUTES,
    *containers.ROUTES,
    *container_io.ROUTES,
    *container_files.ROUTES,
    *copies.ROUTES,
    *exec.ROUTES,
    *images.ROUTES,
    *build.ROUTES,
    *buildkit.ROUTES,
    *networks.ROUTES,
    *volumes.ROUTES,
    *insula.ROUTES,
    *absent.ROUTES,
)
