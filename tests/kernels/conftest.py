"""Kernels' tests run under the harness, and with `-m gpu` on the GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kernel_runs import DEVICES, on_device


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    with on_device(request.param) as name:
        yield name
