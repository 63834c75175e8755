"""What a measurement ran on, what memory it takes and gives, and what a step reads of it."""

from __future__ import annotations

import re
from pathlib import Path

import mlx.core as mx
import pytest
from checkpoints import write_checkpoint

from flashnorm_mlx import FlashNormError
from flashnorm_mlx.measure import machine, memory


def test_power_as_macos_tells_it() -> None:
    said = {
        "pmset -g batt": "Now drawing from 'Battery Power'\n -InternalBattery-0 (id=1)\t93%; discharging",
        "pmset -g": "System-wide power settings:\nCurrently in use:\n lowpowermode         1\n sleep 1",
        "pmset -g therm": "Note: No thermal warning level has been recorded",
    }
    found = machine.power(lambda command: said[" ".join(command)])
    assert found == {"power_source": "Battery Power", "low_power_mode": True, "thermal": "no warning"}
    assert len(machine.warnings(found)) == 2
    assert machine.power(lambda command: "") == {"power_source": None, "low_power_mode": None, "thermal": None}
    assert machine.gpu_cores(lambda command: '  "gpu-core-count" = 10\n') == 10
    hot = machine.power(lambda command: "CPU_Speed_Limit \t= 60" if "therm" in command else "")
    assert "60 %" in machine.warnings(hot)[0]


def test_machine_has_versions_and_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_MAX_OPS_PER_BUFFER", "7")
    found = machine.machine()
    assert found["environment"]["MLX_MAX_OPS_PER_BUFFER"] == "7"
    assert found["device"] == "cpu" or found["device"].startswith("gpu")
    assert re.match(r"\d+\.\d+", found["mlx"])
    assert re.match(r"\d+\.\d+", found["mlx_lm"])


def test_bandwidth_is_that_of_a_fake_memory() -> None:
    """1 GB/s and a fixed cost a launch, which is subtracted."""
    from flashnorm_mlx.measure.traffic import read_and_copy

    big = mx.zeros(1 << 20)
    taken = iter([0.5 + big.nbytes / 1e9, 0.5 + big.nbytes / 2e9, 0.5 + 2 * big.nbytes / 1e9, 0.5 + big.nbytes / 1e9])
    found = read_and_copy(big, lambda build: next(taken))
    assert found["read"] == pytest.approx(1e9)
    assert found["copy"] == pytest.approx(1e9)


def test_memory_is_estimated_from_sizes() -> None:
    four = memory.weight_bytes(10**9, size=2, bits=4, group_size=64)
    assert four == 10**9 * (4 / 8 + 4 / 64)
    assert memory.weight_bytes(10**9, size=2, bits=None, group_size=64) == 2 * 10**9
    assert memory.needed(100, 4, 0) > 4 * 100
    assert memory.needed(100, 4, 50, scratch=7) == memory.needed(100, 4, 50) + 7
    memory.check(5, None, "it")
    memory.check(5, 5, "it")
    with pytest.raises(FlashNormError, match="it would take"):
        memory.check(6, 5, "it")
    have = memory.available()
    assert have is None or have > 10**6


def test_bytes_a_token_are_the_checkpoints(tmp_path: Path) -> None:
    from flashnorm_mlx.info import inspect
    from flashnorm_mlx.measure.traffic import traffic

    folder = write_checkpoint(tmp_path / "m", tokenizer=False)
    info = inspect(folder)
    found = traffic(folder, mx.float32)
    assert (found.weights, found.position) == (info.bytes_per_token, info.cache_bytes_per_position)
    half = write_checkpoint(tmp_path / "half", dtype=mx.float16, tokenizer=False)
    assert traffic(half, mx.float32) == found
    assert traffic(half, mx.float16).weights == found.weights / 2
    assert found.step(100, 4) == found.weights + 400 * found.position
