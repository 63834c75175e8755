"""What every test runs with: no network, nothing of this user's home, and hypothesis without deadlines."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Set before anything imports huggingface_hub, which reads them once.
SCRATCH = Path(tempfile.mkdtemp(prefix="flashnorm-tests-"))
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = str(SCRATCH / "huggingface")
for name in ("CACHE", "CONFIG", "DATA", "STATE"):
    os.environ[f"XDG_{name}_HOME"] = str(SCRATCH / name.lower())

# Exact float32 products, also on GPUs; MLX reads it once.
os.environ["MLX_ENABLE_TF32"] = "0"

from kernel_runs import DEVICES  # noqa: E402  MLX reads the environment when it is imported

settings.register_profile("default", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("default")


@pytest.fixture(scope="session", autouse=True)
def scratch() -> Iterator[Path]:
    """The folder that stands for this user's home; removed at the end."""
    yield SCRATCH
    shutil.rmtree(SCRATCH, ignore_errors=True)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where models decode by kernels: under the harness and, with ``-m gpu``, on the GPU."""
    from decode_runs import untraced

    with untraced(request.param) as name:
        yield name


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the passes that kernels made, once a model is ready."""
    from flashnorm_mlx.engine.decode import DecodeStep

    made: list[tuple[int, ...]] = []
    original = DecodeStep.__call__
    monkeypatch.setattr(
        DecodeStep, "__call__", lambda self, ids, c: made.append(tuple(ids.shape)) or original(self, ids, c)
    )
    return made


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none, also when pytest is run by hand."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import mlx.core as mx

        if not (mx.metal.is_available() or mx.cuda.is_available()):
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="no Metal or CUDA device"))
