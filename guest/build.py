"""Build the guest agent, and the probe, QEMU's helper and what confines it: made by `ziglang`'s C compiler.

For the Makefile (`python guest/build.py`) and, through build_hook.py, for the wheel.  Writes
src/insula/_guest/<program>-<arch> and does nothing when that is newer than every source.  Sync.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from pathlib import Path

GUEST = Path(__file__).resolve().parent
PROGRAMS = ("agent", "probe", "jail")  # each a folder of C files; static, the last for the host
LIBRARIES = ("discard",)  # the same, for a process of the host's
DEFAULT_OUTPUT = GUEST.parent / "src" / "insula" / "_guest"

ARCHITECTURES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}

WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wshadow", "-Wstrict-prototypes", "-Wmissing-prototypes")
COMMON = ("-std=gnu11", "-D_GNU_SOURCE", "-Os", "-s", "-fno-sanitize=all")
SHARED = (*COMMON, "-shared", "-fPIC", "-Wl,-z,now")
GLIBC = "2.28"  # or later, on the host; older than any distribution that has a QEMU for us
FLAGS = (
    *COMMON,
    "-static",
    "-fstack-protector-strong",
    "-ffunction-sections",
    "-fdata-sections",
    "-Wl,--gc-sections",
)


def find_architecture(name: str | None = None) -> str:
    """The machine's, or `name`, as the kernel writes it."""
    machine = (name or os.environ.get("INSULA_GUEST_ARCH") or platform.machine()).lower()
    try:
        return ARCHITECTURES[machine]
    except KeyError:
        known = ", ".join(sorted(set(ARCHITECTURES.values())))
        raise SystemExit(
            f"guest/build.py: no agent for architecture {machine!r} (there is one for {known})"
        ) from None


def is_current(output: Path, sources: Path) -> bool:
    inputs = [Path(__file__), *sources.glob("*.[ch]")]
    return output.exists() and all(path.stat().st_mtime <= output.stat().st_mtime for path in inputs)


def finalize_command(
    name: str, architecture: str, sources: Path, output: Path, compiler: str = sys.executable
) -> list[str]:
    library = name in LIBRARIES
    return [
        compiler, "-m", "ziglang", "cc",
        "-target", f"{architecture}-linux-{f'gnu.{GLIBC}' if library else 'musl'}",
        *(SHARED if library else FLAGS),
        *WARNINGS,
        *(str(path) for path in sorted(sources.glob("*.c"))),
        "-o", str(output),
    ]  # fmt: skip


def build_one(name: str, architecture: str, directory: Path, *, force: bool = False) -> Path:
    """The binary's path.  Built under another name and renamed, so that a half-built one is never used."""
    suffix = ".so" if name in LIBRARIES else ""
    sources, output = GUEST / name, directory / f"{name}-{architecture}{suffix}"
    if is_current(output, sources) and not force:
        return output
    directory.mkdir(parents=True, exist_ok=True)
    fresh = directory / f".{name}-{architecture}.{os.getpid()}"
    try:
        subprocess.run(finalize_command(name, architecture, sources, fresh), check=True)
        fresh.chmod(0o755)
        fresh.rename(output)
    finally:
        fresh.unlink(missing_ok=True)
    return output


def build_all(architecture: str, directory: Path = DEFAULT_OUTPUT, *, force: bool = False) -> list[Path]:
    return [build_one(name, architecture, directory, force=force) for name in (*PROGRAMS, *LIBRARIES)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the guest agent and the small programs beside it.")
    parser.add_argument("--arch", help="x86_64 or aarch64 (this machine's by default)")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="directory for <name>-<arch>")
    parser.add_argument("--force", action="store_true", help="build even when up to date")
    args = parser.parse_args()
    for path in build_all(find_architecture(args.arch), args.output, force=args.force):
        print(path)


if __name__ == "__main__":
    main()
