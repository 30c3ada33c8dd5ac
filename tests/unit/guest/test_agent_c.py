"""The agent's own unit tests and fuzzers, in C, built with the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

GUEST = Path(__file__).resolve().parents[3] / "guest"
SOURCES = sorted(path for path in (GUEST / "agent").glob("*.c") if path.name != "main.c")
PROGRAMS = sorted(path.stem for path in (GUEST / "tests").glob("*.c"))
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
FLAGS = ("-std=gnu11", "-D_GNU_SOURCE", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-Wshadow", *SANITIZE)
ROUNDS = os.environ.get("INSULA_FUZZ_ROUNDS", "20000")

pytestmark = pytest.mark.skipif(
    shutil.which("gcc") is None, reason="gcc with its sanitizers is needed for the agent's unit tests"
)


def compile_c(*arguments: str | Path, cwd: Path) -> None:
    done = subprocess.run(
        ["gcc", *FLAGS, f"-I{GUEST / 'agent'}", *map(str, arguments)], capture_output=True, text=True, cwd=cwd
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Everything but main, as an archive."""
    directory = tmp_path_factory.mktemp("agent")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda source: compile_c("-c", source, cwd=directory), SOURCES))
    archive = directory / "libagent.a"
    subprocess.run(["ar", "rcs", archive, *sorted(directory.glob("*.o"))], check=True)
    yield archive
    shutil.rmtree(directory)


@pytest.mark.parametrize("name", PROGRAMS)
def test_agent(name: str, library: Path, tmp_path: Path) -> None:
    program = tmp_path / name
    compile_c(GUEST / "tests" / f"{name}.c", library, "-o", program, cwd=tmp_path)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    argument = ROUNDS if name.startswith("fuzz_") else str(scratch)
    done = subprocess.run([program, argument], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
