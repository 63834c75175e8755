"""Reports as files: JSON, JSON lines, CSV and Markdown; and the reading of JSON.

The JSON, version 1. Speeds are tokens a second over all rows of a batch (of "generate": new tokens over all of the
time, the prompt's included), times seconds, sizes bytes; what could not be told is null. Keys may be added within a
version; none is removed or changes its meaning.

    schema, version     "flashnorm-bench", 1
    machine             device, chip, gpu_cores, memory_bytes, os, python, mlx, mlx_lm, flashnorm_mlx, power_source,
                        low_power_mode, thermal, environment (MLX_* and FLASHNORM_* variables), date (UTC)
    model               name, source ("model": a checkpoint, "shape": random weights), converted, model_type, bits,
                        group_size, dtype (that all arms compute in), parameters, file_bytes
    settings            arms, repeat, delay, seed (of the bootstrap), level (of its intervals)
    bandwidth           read, copy: bytes a second, measured before the trials
    loading             for each arm: load_s, first_token_s (compilation included), model_bytes
    unavailable         for each arm that could not be loaded: why
    interrupted         whether the run was ended before its end
    warnings            lines about the machine
    rows                one for each trial:
      test              "prefill" (prompt to first token), "decode" (the bare loop), "generate" (mlx-lm's, end to end)
      prompt, generated, depth, batch     sizes in tokens; depth: positions in the cache before
      repetitions       that are whole; the warm-up is not among them
      arms              for each arm: an error, or
        tokens_per_second       median, mean, sd, runs (one for each repetition, in their order)
        first_token_s           median, mean, sd: time to first token (prefill and generate)
        first_run_s             of the warm-up, compilation included
        over_baseline, over_mlx_lm, over_none   value, low, high: median of the ratios within a repetition
        active_bytes, peak_bytes        the model's, and at most, without the other arms
        bytes_per_token, bandwidth, bandwidth_share     decode: bytes read, those a second, and over the measured one
        launches                decode: operations that one step hands to the device (launches.py says what counts)
      recovered         value, low, high: (baseline − flashnorm) / (baseline − none), in seconds; null where
                        baseline − none can't be told from zero
      drift             last repetitions' speed over the first's, less 1
      warnings          lines about the repetitions

JSON lines and CSV have a line for each row and arm, with all that is in neither lists nor tables above flattened into
columns (``tokens_per_second_median``, ``over_baseline_low``).
"""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import FlashNormError
from ..paths import check_finite, local

SCHEMA, VERSION = "flashnorm-bench", 1

ROW_KEYS = ("test", "prompt", "generated", "depth", "batch")


def as_json(report: dict[str, Any]) -> str:
    return json.dumps(report, indent=1, allow_nan=False) + "\n"


def as_jsonl(report: dict[str, Any]) -> str:
    return "".join(json.dumps(line, allow_nan=False) + "\n" for line in flat(report))


def as_csv(report: dict[str, Any]) -> str:
    lines = list(flat(report))
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for line in lines for key in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def as_markdown(report: dict[str, Any]) -> str:
    from .report import HEAD, cells, circumstances

    lines = [f"{line}  " for line in circumstances(report)]
    lines += ["", f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    lines += [f"| {' | '.join(found)} |" for row in report["rows"] for found in cells(row)]
    return "\n".join(lines) + "\n"


FORMATS: dict[str, Callable[[dict[str, Any]], str]] = {
    "json": as_json,
    "jsonl": as_jsonl,
    "csv": as_csv,
    "markdown": as_markdown,
}


def flat(report: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A dict without inner ones for each row and arm."""
    machine = {k: v for k, v in report["machine"].items() if k != "environment"}
    machine["environment"] = " ".join(f"{k}={v}" for k, v in report["machine"]["environment"].items())
    model = {"model" if k == "name" else k: v for k, v in report["model"].items()}
    for row in report["rows"]:
        shared = {k: row[k] for k in (*ROW_KEYS, "repetitions", "drift")}
        for arm, found in row["arms"].items():
            yield {"version": report["version"], **machine, **model, **shared, "arm": arm, **_flattened(found)}


def _flattened(found: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in found.items():
        if isinstance(value, dict):
            out |= {f"{key}_{k}": v for k, v in value.items() if k not in ("runs", "value")}
            if "value" in value:
                out[key] = value["value"]
        else:
            out[key] = value
    return out


def check_target(target: str) -> None:
    """Raise a FlashNormError now rather than after the measurement if a file can't be written."""
    path = Path(target).expanduser()
    if target != "-" and (path.is_dir() or not path.parent.is_dir()):
        raise FlashNormError(f"{target}: {'is a folder' if path.is_dir() else 'its folder does not exist'}")
    if target != "-" and not os.access(path.parent, os.W_OK):
        raise FlashNormError(f"{target}: its folder can't be written to")


def write(text: str, target: str) -> None:
    """Write to a file, whole or not at all; ``-`` is standard output."""
    if target == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    path = Path(target).expanduser()
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as part:
            part.write(text)
        Path(part.name).chmod(0o644)
        Path(part.name).replace(path)
    except OSError as error:
        raise FlashNormError(f"{target}: {error.strerror}") from None


def read(file: str) -> dict[str, Any]:
    """A report that was written as JSON.

    Raises:
        FlashNormError: if it is none, or of another version.
    """
    path = local(file)
    try:
        check_finite(path)
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FlashNormError(f"{file}: {error.strerror}") from None
    except ValueError as error:
        raise FlashNormError(f"{file}: not JSON (written with --json): {error}") from None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise FlashNormError(f"{file}: not a report of `flashnorm bench --json`")
    if found.get("version") != VERSION:
        raise FlashNormError(f"{file}: version {found.get('version')!r} of the schema; this program reads {VERSION}")
    for key in ("rows", "model", "machine"):
        if key not in found:
            raise FlashNormError(f"{file}: {key} is missing")
    return found
