"""The benchmarks' harness, not their speed: they run, and the README shows what their files say."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import mlx.core as mx
import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> object:
    """Imports a script of bench/ by name."""
    monkeypatch.syspath_prepend(ROOT / "bench")

    def script(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, ROOT / "bench" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return script


def test_the_readmes_tables_are_the_results(bench) -> None:  # type: ignore[no-untyped-def]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert bench("tables").with_tables(readme) == readme
    for table in ("decode", "quality"):
        rows = readme.partition(f"<!-- table: {table} -->")[2].partition("<!-- end -->")[0].count("\n| ")
        assert rows >= 6, table


def test_decode_compares_all_contestants_on_one_checkpoint(bench, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    decode = bench("decode")
    folder = decode.rewrite(ROOT / "models" / "demo", tmp_path / "demo", mx.float32, 4)
    found = decode.compare(folder, tokens=3, repeat=2)
    assert list(found) == ["mlx-lm", "baseline", "flashnorm", "none"]
    assert found["mlx-lm"]["over_mlx_lm"] == 1
    for arm in found.values():
        assert len(arm["runs"]) == 2
        assert min(arm["runs"]) <= arm["tokens_per_second"] <= max(arm["runs"])
