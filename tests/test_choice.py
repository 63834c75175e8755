"""The choice between forms of an operation: by measurement, then by memory, on disk."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import pytest
from checkpoints import write_checkpoint

from flashnorm_mlx import info
from flashnorm_mlx.errors import FlashNormError
from flashnorm_mlx.kernels import choice
from flashnorm_mlx.loader import load_model

X = mx.ones((1, 64))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty memory, in a folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(choice, "_known", {})
    monkeypatch.setattr(choice, "LAUNCHES", 4)
    yield tmp_path


def quick(x: mx.array, residual: mx.array | None) -> mx.array:
    return x + 1


def slow(x: mx.array, residual: mx.array | None) -> mx.array:
    big = mx.broadcast_to(x, (256, 64))
    return x + mx.sum(mx.exp(big @ big.T))


def broken(x: mx.array, residual: mx.array | None) -> mx.array:
    raise RuntimeError("no such kernel\nand more")


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process."""
    monkeypatch.setattr(choice, "_known", {})


def test_the_faster_form_is_taken(home: Path) -> None:
    assert choice.fastest("op a", {"kernel": quick, "plain": slow}, X, None) == "kernel"
    assert choice.fastest("op b", {"kernel": slow, "plain": quick}, X, X) == "plain"
    known = json.loads(choice.file().read_text(encoding="utf-8"))
    assert len(known) == 2 and all(mx.__version__ in key for key in known)
    assert set(choice.measured()) == {"op a", "op b"}
    assert choice.measured()["op b"]["us"]["plain"] < choice.measured()["op b"]["us"]["kernel"]
    assert [f.name for f in choice.file().parent.iterdir()] == ["kernels.json"]


def test_it_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    choice.fastest("op", {"kernel": slow, "plain": quick}, X, None)
    forget(monkeypatch)
    start = time.perf_counter()
    assert choice.fastest("op", {"kernel": broken, "plain": broken}, X, None) == "plain"  # not even looked at
    assert time.perf_counter() - start < 0.1


def test_every_launch_is_made() -> None:
    """A compiled graph computes equal operations once; then a form would seem as fast as one launch of many."""
    seen: list[mx.array] = []

    def form(x: mx.array, residual: mx.array | None) -> mx.array:
        seen.append(x)
        return x if residual is None else residual + x

    choice._measure("op", {"kernel": form}, mx.ones((1, 8)), mx.ones((1, 8)))
    assert len({id(x) for x in seen}) == len(seen) == 1 + choice.LAUNCHES  # one more to see what it yields


def test_measuring_takes_little_memory() -> None:
    """Of large inputs, or of results, there are few."""
    for rows, yields in ((choice.MEMORY // 256, 1), (1, choice.MEMORY // 32)):
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        form = lambda x, residual: x[:, :1] * mx.ones((1, yields))  # noqa: B023, E731
        choice._measure("op", {"kernel": form, "plain": form}, mx.ones((rows, 64)), None)
        assert mx.get_peak_memory() - before < 5 * choice.MEMORY


def test_a_tie_goes_to_the_first() -> None:
    rounds = {"kernel": [10.0] * 7}
    assert choice.winner(rounds | {"plain": [9.9] * 7}) == "kernel"
    assert choice.winner(rounds | {"plain": [9.0] * 7}) == "plain"
    assert choice.winner(rounds | {"plain": [9.0] * 7, "third": [8.0] * 7}) == "third"


def test_noise_does_not_decide_against_the_first() -> None:
    """It takes all rounds but one: a machine that is slow for a while is slow for all forms, in turn."""
    calm, noisy = [10.0] * 7, [10.0, 10.0, 10.0, 10.0, 10.0, 25.0, 25.0]
    assert choice.winner({"kernel": noisy, "plain": calm}) == "kernel"
    assert choice.winner({"kernel": calm, "plain": [9.0] * 5 + [25.0] * 2}) == "kernel"
    assert choice.winner({"kernel": calm, "plain": [9.0] * 6 + [25.0]}) == "plain"
    slowed = [1.0, 1.0, 2.0, 3.0, 2.0, 1.0, 1.0]
    both = {"kernel": [10 * s for s in slowed], "plain": [8 * s for s in slowed]}
    assert choice.winner(both) == "plain"


def test_forms_are_timed_in_turn() -> None:
    turns: list[str] = []

    def form(name: str) -> choice.Form:
        def run(x: mx.array, residual: mx.array | None) -> mx.array:
            turns.append(name)
            return x + 1

        return run

    order: list[str] = []

    def compiled(chain):  # type: ignore[no-untyped-def]
        def run(*arguments):  # type: ignore[no-untyped-def]
            before = len(turns)
            out = chain(*arguments)
            order.append(turns[before])
            return out

        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice.mx, "compile", compiled)
        choice._measure("op", {"kernel": form("kernel"), "plain": form("plain")}, X, None)
    assert order == ["kernel", "plain"] * (1 + choice.REPEAT)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"x": 1}', '{"x": {"form": 3}}'])
def test_a_spoilt_file_is_measured_anew(content: str) -> None:
    choice.file().parent.mkdir(parents=True)
    choice.file().write_text(content, encoding="utf-8")
    assert choice.fastest("op", {"kernel": quick, "plain": slow}, X, None) == "kernel"
    assert choice.measured()["op"]["form"] == "kernel"


def test_a_file_that_cannot_be_written_is_no_harm(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "flashnorm").write_text("not a folder", encoding="utf-8")
    assert choice.fastest("op", {"kernel": quick, "plain": slow}, X, None) == "kernel"
    assert choice.measured() == {}


def test_a_form_that_is_gone_is_measured_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    choice.fastest("op", {"other": quick}, X, None)
    forget(monkeypatch)
    assert choice.fastest("op", {"kernel": quick, "plain": slow}, X, None) == "kernel"


def test_a_form_that_fails_is_reported_and_loses() -> None:
    with pytest.warns(UserWarning, match="kernel form of op fails, another is used: no such kernel"):
        assert choice.fastest("op", {"kernel": broken, "plain": slow}, X, None) == "plain"


def test_no_form_that_works() -> None:
    with (
        pytest.warns(UserWarning, match="fails"),
        pytest.raises(RuntimeError, match="no form of op works on this device"),
    ):
        choice.fastest("op", {"kernel": broken}, X, None)


def test_the_environment_replaces_auto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_checkpoint(tmp_path / "m")
    monkeypatch.setenv("FLASHNORM_KERNELS", "fused")
    with pytest.raises(FlashNormError, match="fused kernels need a GPU"):
        load_model(path)
    assert load_model(path, kernels="reference").kernels == "reference"
    monkeypatch.setenv("FLASHNORM_KERNELS", "quick")
    with pytest.raises(FlashNormError, match="kernels 'quick' is not known"):
        load_model(path)


def test_info_shows_what_was_measured_for_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_checkpoint(tmp_path / "m")
    assert "need a GPU" in info.inspect(path).kernels[0]
    monkeypatch.setattr(info, "backend", lambda: "metal")
    head, line = info.inspect(path).kernels
    assert head.startswith("metal: ") and "measured when the model is first loaded" in line
    args = load_model(path).args
    mine = f"project {2 * args.intermediate_size} x {args.hidden_size}, 4-bit in 64, float16, 1 rows"
    for operation in (mine, "project 7 x 11, 4-bit in 64, float16, 1 rows"):
        choice.fastest(operation, {"kernel": quick, "plain": slow}, X, None)
    _, line = info.inspect(path).kernels
    assert line.startswith(f"{mine}: kernel (kernel ") and "plain" in line
