"""Compiling `native.cpp` with the compiler that is there, and keeping what comes out.

The library lies in the user's cache (`folder`) under a name made of two digests: of all that it was made from (source,
flags, compiler, processor), and of its own bytes. It is compiled beside its place and renamed, so processes that
compile at the same time do not disturb each other, and one that is damaged is not loaded but made again. The folder
may be deleted at any time.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("native.cpp")
COMMON = ("-O3", "-std=c++14", "-ffp-contract=fast", "-shared", "-fPIC", "-pthread")
PROCESSOR = (("-march=native",), ("-mcpu=native",), ())  # of which the first that the compiler knows is taken
COMPILERS = ("g++", "clang++", "c++")


class Unavailable(Exception):
    """There is no native library here, and why."""


def folder() -> Path:
    """Where compiled libraries are kept."""
    if given := os.environ.get("XDG_CACHE_HOME"):
        base = Path(given)
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home()))
    else:
        base = Path.home() / ".cache"
    return base / "bestiary" / "native"


@cache
def library() -> ctypes.CDLL | str:
    """The library, compiled if it has to be, or why there is none; found out once in a process."""
    try:
        command = compiler()
    except Unavailable as fault:
        log.info("no native backend: %s", fault)
        return str(fault)
    try:
        return load(folder(), command)
    except (Unavailable, OSError, RuntimeError) as fault:  # RuntimeError: there is no home folder
        log.warning("no native backend, and every process tries again unless its backend is torch: %s", fault)
        return str(fault) if isinstance(fault, Unavailable) else f"{type(fault).__name__}: {fault}"


def compiler() -> list[str]:
    """The command that compiles: `CXX`, or what is found. Raises Unavailable."""
    if given := shlex.split(os.environ.get("CXX", "")):
        if shutil.which(given[0]) is None:
            raise Unavailable(f"the compiler of CXX, {given[0]!r}, is not there")
        return given
    for name in COMPILERS:
        if (path := shutil.which(name)) is not None:
            return [path]
    raise Unavailable(f"no C++ compiler ({', '.join(COMPILERS)}) is on the PATH")


def load(place: Path, command: list[str]) -> ctypes.CDLL:
    """The library from the cache, or compiled into it. Raises Unavailable and OSError."""
    digest = digest_of(command)
    for path in sorted(place.glob(f"{digest}-*.so")):
        if path.stem.partition("-")[2] == digest_of_bytes(path.read_bytes()):
            try:
                return open_library(path)
            except (OSError, AttributeError) as fault:
                log.info("%s cannot be loaded (%s) and is compiled again", path, fault)
        path.unlink(missing_ok=True)
    path = compile_into(place, digest, command)
    try:
        return open_library(path)
    except (OSError, AttributeError) as fault:
        path.unlink(missing_ok=True)
        raise Unavailable(f"what {command[0]} makes cannot be loaded: {fault}") from fault


def open_library(path: Path) -> ctypes.CDLL:
    """The library, its functions given their types. Raises OSError, or AttributeError if it is another one."""
    found = ctypes.CDLL(str(path))
    for name in ("recurrence", "selective", "scan", "convolution", "norm"):
        for way in ("forward", "backward"):
            function = getattr(found, f"{name}_{way}")
            function.argtypes, function.restype = (ctypes.c_void_p,), ctypes.c_int
        if name in ("recurrence", "selective"):
            function = getattr(found, f"{name}_kept")
            function.argtypes, function.restype = (ctypes.c_void_p,), ctypes.c_int64
    return found


def compile_into(place: Path, digest: str, command: list[str]) -> Path:
    """Compile beside the place and rename. Raises Unavailable and OSError."""
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    log.info("compiling the native backend with %s into %s, once", command[0], place)
    with tempfile.TemporaryDirectory(dir=place, prefix="compiling-") as beside:
        output = Path(beside) / "native.so"
        compile_source(command, output)
        path = place / f"{digest}-{digest_of_bytes(output.read_bytes())}.so"
        os.replace(output, path)
    return path


def compile_source(command: list[str], output: Path) -> None:
    """Call the compiler. Raises Unavailable with what it says if it fails."""
    error = ""
    for flags in PROCESSOR:
        call = [*command, *COMMON, *flags, str(SOURCE), "-o", str(output)]
        try:
            done = subprocess.run(call, capture_output=True, text=True, errors="replace", timeout=600, check=False)
        except subprocess.TimeoutExpired:
            error = "it takes more than ten minutes"
            break
        if done.returncode == 0:
            return
        error = next((line for line in done.stderr.splitlines() if "error" in line), f"exit {done.returncode}")
    raise Unavailable(f"{command[0]} does not compile {SOURCE.name}: {error}")


def digest_of(command: list[str]) -> str:
    """All that a library is made from: another digest, another library."""
    version = subprocess.run([*command, "--version"], capture_output=True, text=True, errors="replace", check=False)
    parts = (SOURCE.read_text(), repr((command, COMMON, PROCESSOR)), version.stdout, processor())
    return digest_of_bytes("\0".join(parts).encode())


def digest_of_bytes(given: bytes) -> str:
    return hashlib.sha256(given).hexdigest()[:20]


def processor() -> str:
    """What the processor is and can do, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:
        lines = []
    told = [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))]
    return "\n".join((platform.machine(), platform.processor(), *told))
