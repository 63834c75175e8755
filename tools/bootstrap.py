"""Make .venv and install flashnorm-mlx into it, once: python3 tools/bootstrap.py [EXTRA ...].

uv does it where it is there, else venv and pip. What was installed is noted in a stamp, written last: a later run that
finds it has nothing to do, and one that finds none starts over. Written for any Python from 3.6 on, so that one that
is too old for MLX can say so.
"""

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "flashnorm.json"

OLDEST_PYTHON = (3, 10)
UV_PYTHON = ">=3.10,<3.15"  # uv would fetch the newest, for which not everything is built yet
OLDEST_MACOS = (14, 0)
OLDEST_GLIBC = (2, 35)
NAMES = ["python3", *(f"python3.{minor}" for minor in range(14, OLDEST_PYTHON[1] - 1, -1))]
PROBE = "import platform, sys; print(*sys.version_info[:2], platform.machine()); import ensurepip, venv"


class Failure(Exception):
    """What is wrong and what to do about it, in one line."""


def dotted(version):
    return ".".join(str(part) for part in version)


def numbers(text):
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


# ---- what is there ----------------------------------------------------------------------------------------------


def output_of(*command):
    """What a command prints, stripped; empty if it can't be run."""
    try:
        result = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        return result.stdout.decode("utf-8", "replace").strip()
    except OSError:
        return ""


def machine_facts():
    """(system, machine, version of macOS or of glibc). Python's own answers may be those of Rosetta or an old SDK."""
    system, machine, version = platform.system(), platform.machine(), ""
    if system == "Darwin":
        machine = "arm64" if output_of("sysctl", "-n", "hw.optional.arm64") == "1" else machine
        version = output_of("sw_vers", "-productVersion") or platform.mac_ver()[0]
    elif system == "Linux":
        with contextlib.suppress(ValueError, OSError):  # not glibc
            version = os.confstr("CS_GNU_LIBC_VERSION") or ""
    return system, machine, numbers(version)


def unsupported(system, machine, version):
    """Why MLX can't be installed on this machine, or None."""
    if system == "Darwin":
        if machine != "arm64":
            return "MLX needs a Mac with Apple silicon, and this one has an Intel chip: use such a Mac, or Linux"
        if version and version < OLDEST_MACOS:
            oldest = OLDEST_MACOS[0]
            return f"MLX needs macOS {oldest} or newer, and this is {dotted(version)}: update it in System Settings"
    elif system == "Linux":
        if machine not in ("x86_64", "aarch64"):
            return f"MLX has Linux builds for x86_64 and aarch64, and this is {machine}: use such a machine"
        if version < OLDEST_GLIBC:
            there = dotted(version) or "another C library"
            return f"MLX needs glibc {dotted(OLDEST_GLIBC)} or newer, and this is {there}: Ubuntu 22.04 or Debian 12 do"
    else:
        return "MLX runs on macOS and Linux only: on Windows install WSL (wsl --install) and run this in it"
    return None


def probe(name):
    """(name, version, machine, whether it can make environments), or None if it doesn't run: pyenv's shims may not."""
    try:
        result = subprocess.run(
            [name, "-c", PROBE], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except OSError:
        return None
    words = result.stdout.decode("utf-8", "replace").split()
    if len(words) != 3:
        return None
    return name, (int(words[0]), int(words[1])), words[2], result.returncode == 0


def choose(found, system):
    """The first usable interpreter among what `probe` found; raises Failure with what is wrong with the newest one."""
    get = "brew install python@3.12" if system == "Darwin" else "install Python 3.12 and its venv with your system"
    get += ", or uv (docs.astral.sh/uv)"
    wrong = [((0,), "no Python was found: " + get)]
    for name, version, machine, complete in found:
        python = f"{name} is Python {dotted(version)}"
        if version < OLDEST_PYTHON:
            wrong.append((version, f"{python}, and MLX needs {dotted(OLDEST_PYTHON)} or newer: {get}"))
        elif system == "Darwin" and machine != "arm64":
            wrong.append((version, f"{python} for Intel, and MLX needs one for Apple silicon: {get}"))
        elif not complete:
            package = "sudo apt install python3-venv" if name == "python3" else f"sudo apt install {name}-venv"
            wrong.append((version, f"{python} without venv: {package} (Debian, Ubuntu), or install uv"))
        else:
            return name
    raise Failure(max(wrong, key=lambda pair: pair[0])[1])


# ---- the stamp --------------------------------------------------------------------------------------------------


def wanted(extras):
    """What the stamp says after everything went well."""
    project = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    return {"root": str(ROOT), "project": project, "extras": sorted(set(extras))}


def read_stamp():
    try:
        return json.loads(STAMP.read_text()) if PYTHON.exists() else None
    except (OSError, ValueError):
        return None


def decide(stamp, want):
    """What is to be done: nothing ("keep"), "install" into the environment that is there, or "remake" it."""
    if not stamp or stamp.get("root") != want["root"]:  # half-made, or its folder was moved or copied
        return "remake"
    missing = set(want["extras"]) - set(stamp["extras"])
    return "install" if missing or stamp["project"] != want["project"] else "keep"


# ---- doing it ---------------------------------------------------------------------------------------------------


def say(line):
    print("flashnorm: " + line, flush=True)


def run(command, doing):
    """Run a command and keep what it prints to itself, unless it fails."""
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=str(ROOT)
    )
    if result.returncode:
        output = result.stdout.decode("utf-8", "replace")
        lines = output.strip().splitlines()
        telling = [line for line in lines if re.search(r"ERROR|WARNING|error: |cause: ", line)]
        print("\n".join((telling or lines)[-6:]), file=sys.stderr)
        raise Failure(f"{doing} failed: {advice(output)}")


def advice(output):
    """What to do after pip or uv failed with this output."""
    if re.search(r"no space left", output, re.I):
        return "the disk is full; free 2 GB and run this again"
    network = r"name ?resolution|to resolve|connection|timed out|unreachable|proxy|certificate|dns error"
    if re.search(network, output, re.I):
        return "the package index can't be reached; check the network and run this again"
    if "from versions: none" in output:
        return "the package index can't be reached or has nothing for this machine; check both and run this again"
    return "the lines above say why; mend that and run this again"


def make(uv, python):
    if VENV.is_symlink():
        VENV.unlink()
    elif VENV.exists():
        shutil.rmtree(str(VENV))
    if uv:
        run([uv, "venv", "--python", UV_PYTHON, str(VENV)], "making .venv with uv")
    else:
        run([python, "-m", "venv", str(VENV)], "making .venv with " + python)


def install(uv, extras):
    project = ".[{}]".format(",".join(extras)) if extras else "."
    if uv:
        run([uv, "pip", "install", "--python", str(PYTHON), "-e", project], "installing with uv")
    else:
        pip = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--retries", "2"]
        run([*pip, "-e", project], "installing with pip")


def bootstrap(extras):
    if decide(read_stamp(), wanted(extras)) == "keep":
        return
    facts = machine_facts()
    if unsupported(*facts):
        raise Failure(unsupported(*facts))

    import fcntl  # not on Windows

    lock = os.open(str(ROOT), os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)  # another make may be at it: wait, and look again
    stamp, want = read_stamp(), wanted(extras)
    action = decide(stamp, want)
    if action == "keep":
        return
    uv, python = shutil.which("uv"), None
    if action == "install":
        want["extras"] = sorted(set(want["extras"]) | set(stamp["extras"]))
        if not uv and not (VENV / "bin" / "pip").exists():  # uv made it, and is gone
            action = "remake"
    if action == "remake":
        if not uv:
            folders = os.environ["PATH"].split(os.pathsep)  # .venv may be active, and is about to go
            os.environ["PATH"] = os.pathsep.join(folder for folder in folders if folder != str(VENV / "bin"))
            python = choose([found for found in map(probe, NAMES) if found], facts[0])
        say("making .venv with " + ("uv" if uv else python))
        make(uv, python)
    else:
        STAMP.unlink()  # whatever interrupts the installation, the next run starts over
    say("installing flashnorm-mlx [{}] into .venv (a minute or two)".format(", ".join(want["extras"]) or "no extras"))
    start = time.time()
    install(uv, want["extras"])
    STAMP.write_text(json.dumps(want))
    say(f"installed in {time.time() - start:.0f} s")


def main():
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda *_: sys.exit("flashnorm: stopped; run this again"))
    try:
        bootstrap(sys.argv[1:])
    except Failure as failure:
        sys.exit(f"flashnorm: {failure}")
    except OSError as error:
        sys.exit(f"flashnorm: {error}")
    except KeyboardInterrupt:
        sys.exit("\nflashnorm: interrupted; run this again")


if __name__ == "__main__":
    main()
