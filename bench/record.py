"""Result files: which device they belong to, what they were measured with, and how rows join those that are there.

python bench/record.py FILE...      takes over what was measured on another machine, into bench/results: a report of
                                    `flashnorm bench` as it is, rows into the file of their name
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx

from flashnorm_mlx.info import device_name
from flashnorm_mlx.measure.files import SCHEMA, as_json, write

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"

#: Environment variables that change how MLX hands work to a GPU.
VARIABLES = ("MLX_MAX_OPS_PER_BUFFER", "MLX_MAX_MB_PER_BUFFER", "MLX_USE_CUDA_GRAPHS")


def folder_of(device: str) -> str:
    """The folder of bench/results for a device: ``gpu (NVIDIA H200)`` is ``nvidia-h200``, the CPU is ``cpu``."""
    inner = re.fullmatch(r"gpu \((.*)\)", device)
    return re.sub(r"[^a-z0-9]+", "-", (inner[1] if inner else device).lower()).strip("-")


def results_folder() -> Path:
    """This device's folder of bench/results."""
    return RESULTS / folder_of(device_name())


def circumstances() -> dict[str, Any]:
    """What a row was measured with, so that rows of one file may come from several runs."""
    return {
        "mlx_version": mx.__version__,
        "mlx_lm_version": version("mlx-lm"),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M"),
    }


def save_row(folder: Path, table: str, row: dict[str, Any], keys: Sequence[str]) -> None:
    """Put one row into ``folder/<table>.json`` at once; a row that agrees in ``keys`` and environment is replaced."""
    result = {"device": device_name(), "machine": platform.platform(), "keys": list(keys), "rows": [row]}
    _merge(folder / f"{table}.json", result | {"rows": [row | circumstances()]})


def _merge(target: Path, new: dict[str, Any]) -> None:
    """Write ``new`` to a file, with the rows that are there already and that no new one replaces."""
    names = [*new["keys"], "environment"]
    old = json.loads(target.read_text(encoding="utf-8"))["rows"] if target.exists() else []
    replaced = [[row.get(name) for name in names] for row in new["rows"]]
    kept = [row for row in old if [row.get(name) for name in names] not in replaced]
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")
    part.write_text(json.dumps(new | {"rows": kept + new["rows"]}, indent=1) + "\n", encoding="utf-8")
    part.replace(target)


def main() -> None:
    for name in sys.argv[1:]:
        found = json.loads(Path(name).read_text(encoding="utf-8"))
        is_report = found.get("schema") == SCHEMA
        target = RESULTS / folder_of((found["machine"] if is_report else found)["device"]) / Path(name).name
        if is_report:
            target.parent.mkdir(parents=True, exist_ok=True)
            write(as_json(found), str(target))
        else:
            _merge(target, found)
        print(f"{target}: {len(found['rows'])} rows taken over")


if __name__ == "__main__":
    main()
