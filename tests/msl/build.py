"""Compiles translated kernels, once each: a cache of shared libraries, named by a hash of all that goes into them."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

RUNTIME = Path(__file__).parent / "runtime"
COMPILER = os.environ.get("MSL_CXX", "g++")
FAST_LINKER = ["-fuse-ld=gold"] if shutil.which("ld.gold") else []
# Every operation is rounded, and only fma() contracts; what isn't initialised gets a pattern that no test accepts.
COMMON = [
    *("-std=c++20", "-w", "-march=native", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing", "-fno-exceptions"),
    *("-ffp-contract=off", "-fsingle-precision-constant", "-fexcess-precision=16", "-fno-math-errno"),
    *("-ftrivial-auto-var-init=pattern", "-U_FORTIFY_SOURCE", "-fno-stack-protector", "-fcf-protection=none"),
]
UNCHECKED = ["-O1"]
CHECKED = [
    *("-O1", "-g1", "-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0"),
    "-fsanitize=bounds-strict,shift-exponent,integer-divide-by-zero,alignment",
]


class BuildError(Exception):
    """The compiler's own words."""


@dataclass(frozen=True)
class Library:
    """A compiled kernel, and how long that took (0 if it came from the cache)."""

    path: Path
    seconds: float


def missing() -> str | None:
    """Why kernels can't run here; None if they can."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return "Metal kernels are run on the CPU on Linux on x86-64 only"
    if not shutil.which(COMPILER):
        return f"{COMPILER} was not found: install g++ 12 or newer"
    if int(compiler_version().split(".")[0]) < 12:
        return f"{COMPILER} is version {compiler_version()}: g++ 12 or newer is needed"
    return None


@functools.cache
def compiler_version() -> str:
    return subprocess.run([COMPILER, "-dumpfullversion"], capture_output=True, text=True).stdout.strip()


@functools.cache
def machine() -> str:
    """What of this machine a library depends on: -march=native, and the compiler."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((line for line in lines if line.startswith("flags")), "")
    sources = "".join(path.read_text("utf-8") for path in sorted(RUNTIME.iterdir()))
    return compiler_version() + flags + sources


def cache() -> Path:
    """The folder of compiled kernels, which nobody else may write to: what lies there is run."""
    path = Path(os.environ.get("MSL_CACHE") or Path(tempfile.gettempdir()) / f"flashnorm-msl-{os.getuid()}")
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.stat().st_uid != os.getuid():
        raise BuildError(f"{path} belongs to another user: set MSL_CACHE")
    return path


def named(*parts: str) -> Path:
    return cache() / hashlib.sha256("\0".join((machine(), *parts)).encode()).hexdigest()[:24]


def compile_to(target: Path, arguments: list[str], source: str = "") -> None:
    """Runs the compiler, and puts its output in place at once: other processes see all of it, or nothing."""
    scratch = target.with_name(f"{target.name}.{os.getpid()}.{time.monotonic_ns()}")
    text = scratch.with_name(f"{scratch.name}.cpp")  # from standard input, gcc takes no precompiled header
    try:
        if source:
            text.write_text(source, "utf-8")
            arguments = [*arguments, "-x", "c++", "-c", str(text)]
        command = [COMPILER, *arguments, "-o", str(scratch)]
        result = subprocess.run(command, capture_output=True, text=True, cwd=RUNTIME)
        if result.returncode:
            raise BuildError(result.stderr)
        scratch.replace(target)
    finally:
        text.unlink(missing_ok=True)
        scratch.unlink(missing_ok=True)


def runtime(check: bool) -> Path:
    """The scheduler, and with `check` what watches memory: compiled once, unwatched."""
    units = ["scheduler.cpp", "checker.cpp"] if check else ["scheduler.cpp"]
    flags = [*COMMON, "-O2", *(["-DMSL_CHECK"] if check else [])]
    path = named("runtime", *flags).with_suffix(".o")
    if not path.exists():
        source = "".join(f'#include "{unit}"\n' for unit in units)
        compile_to(path, [*flags, "-I", str(RUNTIME)], source)
    return path


def header(flags: list[str]) -> Path:
    """The folder of the header that all kernels begin with, read by the compiler once: half of a kernel's time."""
    path = named("header", *flags)
    if not path.exists():
        scratch = Path(tempfile.mkdtemp(dir=cache()))
        try:
            compile_to(scratch / "functions.h.gch", [*flags, "-x", "c++-header", str(RUNTIME / "functions.h")])
            scratch.rename(path)
        except OSError:  # another process was first
            shutil.rmtree(scratch)
    return path


def build(source: str, check: bool) -> Library:
    """The library of one kernel."""
    flags = [*COMMON, *([*CHECKED, "-DMSL_CHECK"] if check else UNCHECKED)]
    path = named("kernel", source, *flags).with_suffix(".so")
    if path.exists():
        return Library(path, 0.0)
    support = runtime(check)
    start = time.perf_counter()
    unit = path.with_suffix(f".{os.getpid()}.{time.monotonic_ns()}.o")
    try:
        compile_to(unit, [*flags, "-I", str(header(flags)), "-I", str(RUNTIME)], source)
        compile_to(path, ["-shared", *FAST_LINKER, str(unit), str(support), "-lm"])
    finally:
        unit.unlink(missing_ok=True)
    return Library(path, time.perf_counter() - start)
