"""The public surface: these names, these arguments, and imports that don't wait for what isn't needed."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import mlx_lm
import pytest

import flashnorm_mlx


def test_public_names() -> None:
    assert flashnorm_mlx.__all__ == [
        "FlashNormError",
        "__version__",
        "convert",
        "generate",
        "load",
        "stream_generate",
    ]
    assert re.fullmatch(r"\d+\.\d+\.\d+", flashnorm_mlx.__version__)
    assert issubclass(flashnorm_mlx.FlashNormError, Exception)
    assert flashnorm_mlx.generate is mlx_lm.generate
    assert flashnorm_mlx.stream_generate is mlx_lm.stream_generate
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = flashnorm_mlx.lod


def test_signatures() -> None:
    def arguments(f: object) -> dict[str, object]:
        parameters = inspect.signature(f).parameters.values()  # type: ignore[arg-type]
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    assert arguments(flashnorm_mlx.load) == {
        "arm": "flashnorm",
        "dtype": None,
        "kernels": "auto",
        "revision": None,
        "progress": None,
    }
    assert arguments(flashnorm_mlx.convert) == {
        "bits": 4,
        "group_size": 64,
        "quantize": True,
        "dtype": None,
        "revision": None,
        "progress": None,
    }


@pytest.mark.parametrize("name", flashnorm_mlx.__all__)
def test_public_names_have_docstrings(name: str) -> None:
    if name != "__version__":
        assert getattr(flashnorm_mlx, name).__doc__


def test_importing_the_package_imports_no_framework() -> None:
    code = "import sys, flashnorm_mlx.cli; print([m for m in ('mlx', 'transformers', 'rich') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
