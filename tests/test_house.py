"""The rules of the repository itself, and the script that makes its environment."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
from pathlib import Path
from types import ModuleType

import pytest

import flashnorm_mlx
from flashnorm_mlx import architectures

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "flashnorm_mlx"
MADE = {"venv", "build", "dist", "htmlcov", "__pycache__"}
CODE = {".py", ".msl", ".h", ".metal", ".cu"}
TEXT = {*CODE, ".md", ".toml", ".json", ".txt", ".yml", ".yaml", ".jinja", ".sh"}
PROGRAMS = ("Makefile", ".ci/run")


def files() -> list[Path]:
    """Every file of the project, without what is made by running it."""
    found = [ROOT / ".ci" / "run"]
    for folder, folders, names in os.walk(ROOT):
        folders[:] = sorted(
            f for f in folders if f not in MADE and not f.startswith(".") and not f.endswith(".egg-info")
        )
        found += [Path(folder) / name for name in names]
    return [path for path in found if path.is_file()]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


FILES = files()
CODE_FILES = [path for path in FILES if path.suffix in CODE or relative(path) in PROGRAMS]
TEXT_FILES = [path for path in FILES if path.suffix in TEXT or relative(path) in PROGRAMS or path.name == ".gitignore"]
MODULES = [path for path in FILES if path.suffix == ".py" and PACKAGE in path.parents]


# ---- the files --------------------------------------------------------------------------------------------------


def test_no_file_is_over_300_lines() -> None:
    assert len(CODE_FILES) > 10
    lengths = {relative(path): len(path.read_text("utf-8").splitlines()) for path in CODE_FILES}
    assert {name: length for name, length in lengths.items() if length > 300} == {}


def test_no_file_names_a_machine_or_a_registry() -> None:
    private = re.compile(
        r"(?<![\w.])/(?:root|work|home/[a-z]\w*|Users/[A-Za-z]\w*)/|pypi\.(?:org)\b|python" + "hosted|-index-" + "url"
    )
    hits = []
    for path in TEXT_FILES:
        if path.stat().st_size < 2_000_000:
            lines = enumerate(path.read_text("utf-8").splitlines(), 1)
            hits += [
                f"{relative(path)}:{number}: {line.strip()[:80]}" for number, line in lines if private.search(line)
            ]
    assert hits == []


def test_only_the_architectures_ask_for_a_model_type() -> None:
    asks = re.compile(r"""model_type['"\])]*\s*(==|!=|in\s*[(\[{])""")
    others = [path for path in MODULES if PACKAGE / "architectures" not in path.parents]
    assert [relative(path) for path in others if asks.search(path.read_text("utf-8"))] == []


def test_only_the_terminal_prints() -> None:
    """A library's caller decides what is shown. The commands, and what they show, are the terminal's side."""
    terminal = {"cli", "chat", "commands", "__main__"}
    for path in MODULES:
        if path.relative_to(PACKAGE).with_suffix("").parts[0] not in terminal:
            calls = [node.func for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
            lines = [call.lineno for call in calls if isinstance(call, ast.Name) and call.id == "print"]
            assert lines == [], relative(path)


def test_the_version_is_written_once() -> None:
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    assert 'dynamic = ["version"]' in project
    assert 'path = "flashnorm_mlx/__init__.py"' in project
    assert not re.search(r"^version\s*=", project, re.M)
    assert re.fullmatch(r"\d+\.\d+\.\d+([a-z]+\d+)?", flashnorm_mlx.__version__)


def test_every_make_target_says_what_it_does() -> None:
    text = (ROOT / "Makefile").read_text("utf-8")
    targets = re.findall(r"^([a-z][a-z-]*):(?!=)", text, re.M)
    assert {"demo", "test", "check", "fmt", "bench"} <= set(targets)
    assert targets == re.findall(r"^([a-z][a-z-]*):.*## \S", text, re.M)
    phony = re.search(r"^\.PHONY: (.*)$", text, re.M)
    assert phony and targets == phony[1].split()


# ---- tools/bootstrap.py ------------------------------------------------------------------------------------------


def load_bootstrap() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "tools" / "bootstrap.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bootstrap = load_bootstrap()
GOOD = ("python3.12", (3, 12), "arm64", True)
OLD = ("python3", (3, 9), "arm64", True)


def test_bootstrap_is_read_by_an_old_python() -> None:
    ast.parse((ROOT / "tools" / "bootstrap.py").read_text("utf-8"), feature_version=(3, 6))


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        (("Darwin", "arm64", (14, 0)), None),
        (("Darwin", "arm64", (26, 1)), None),
        (("Darwin", "arm64", ()), None),
        (("Darwin", "arm64", (13, 6)), "macOS 14"),
        (("Darwin", "x86_64", (15, 0)), "Apple silicon"),
        (("Linux", "x86_64", (2, 35)), None),
        (("Linux", "aarch64", (2, 41)), None),
        (("Linux", "x86_64", (2, 31)), "glibc 2.35"),
        (("Linux", "x86_64", ()), "another C library"),
        (("Linux", "riscv64", (2, 41)), "riscv64"),
        (("Windows", "AMD64", ()), "WSL"),
    ],
)
def test_bootstrap_names_what_mlx_does_not_run_on(facts: tuple, says: str | None) -> None:
    line = bootstrap.unsupported(*facts)
    assert line is None if says is None else says in line and "\n" not in line


def test_bootstrap_takes_the_first_python_that_fits() -> None:
    assert bootstrap.choose([OLD, GOOD, ("python3.11", (3, 11), "arm64", True)], "Darwin") == "python3.12"
    assert bootstrap.choose([("python3", (3, 15), "x86_64", True)], "Linux") == "python3"


@pytest.mark.parametrize(
    ("found", "system", "says"),
    [
        ([], "Darwin", ["no Python", "brew install python@3.12", "uv"]),
        ([OLD], "Darwin", ["python3 is Python 3.9", "3.10", "brew install python@3.12"]),
        ([OLD], "Linux", ["python3 is Python 3.9", "install Python 3.12", "uv"]),
        ([("python3", (3, 12), "x86_64", True)], "Darwin", ["Intel", "Apple silicon"]),
        ([("python3", (3, 12), "x86_64", False), OLD], "Linux", ["apt install python3-venv"]),
        ([OLD, ("python3.12", (3, 12), "x86_64", False)], "Linux", ["apt install python3.12-venv"]),
    ],
)
def test_bootstrap_says_in_one_line_what_to_install(found: list, system: str, says: list[str]) -> None:
    with pytest.raises(bootstrap.Failure) as failure:
        bootstrap.choose(found, system)
    line = str(failure.value)
    assert all(part in line for part in says) and "\n" not in line


def test_bootstrap_ignores_a_python_that_does_not_run(tmp_path: Path) -> None:
    shim = tmp_path / "python3"
    shim.write_text("#!/bin/sh\necho 'pyenv: python3: command not found' >&2\nexit 127\n")
    shim.chmod(0o755)
    assert bootstrap.probe(str(shim)) is None
    assert bootstrap.probe(str(tmp_path / "missing")) is None


@pytest.mark.parametrize(
    ("change", "action"),
    [
        ({}, "keep"),
        ({"extras": []}, "install"),
        ({"extras": ["dev", "plot"]}, "keep"),
        ({"project": "other"}, "install"),
        ({"root": "/elsewhere"}, "remake"),
        (None, "remake"),
    ],
)
def test_bootstrap_installs_only_what_is_missing(change: dict | None, action: str) -> None:
    want = bootstrap.wanted(["dev"])
    assert bootstrap.decide(None if change is None else {**want, **change}, want) == action


def test_bootstrap_takes_an_environment_without_a_stamp_for_half_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "STAMP", tmp_path / "stamp")
    monkeypatch.setattr(bootstrap, "PYTHON", tmp_path / "python")
    assert bootstrap.read_stamp() is None
    (tmp_path / "stamp").write_text('{"root": "here"}')
    assert bootstrap.read_stamp() is None  # the interpreter is gone
    (tmp_path / "python").touch()
    assert bootstrap.read_stamp() == {"root": "here"}
    (tmp_path / "stamp").write_text('{"ro')
    assert bootstrap.read_stamp() is None


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("NewConnectionError: Failed to resolve 'index'", "network"),
        ("ERROR: Could not find a version (from versions: none)", "for this machine"),
        ("OSError: [Errno 28] No space left on device", "disk"),
        ("ERROR: ResolutionImpossible", "lines above"),
    ],
)
def test_bootstrap_says_what_to_do_when_an_installation_fails(output: str, says: str) -> None:
    assert says in bootstrap.advice(output)


def test_every_model_type_is_a_family() -> None:
    """A module in architectures/ that is none, and is not said to be none, would be offered as one."""
    for model_type in architectures.supported():
        family = architectures.find(model_type)
        assert all(hasattr(family, name) for name in ("Config", "Model", "TINY")), model_type
