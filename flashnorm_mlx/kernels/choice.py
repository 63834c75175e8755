"""Which form of an operation is fastest here: measured once a device, dtype and shape, and remembered on disk."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..errors import first_line
from ..paths import cache_folder

#: A form of an operation: ``(x [rows, in], residual [rows, out] or None) -> [rows, out]``.
Form = Callable[[mx.array, mx.array | None], mx.array]

#: Launches that are timed together, as far as what they read and yield takes no more memory than this; and how often.
LAUNCHES, MEMORY, REPEAT = 32, 2**21, 7

#: Of the first form's time another takes at most this much, if it is to be preferred.
MARGIN = 0.95

_known: dict[str, dict[str, Any]] = {}


def fastest(operation: str, forms: Mapping[str, Form], x: mx.array, residual: mx.array | None) -> str:
    """The name of the fastest of ``forms``, by measurement or by memory; a form that fails loses, and is reported.

    Args:
        operation: names the operation, its shape and its dtype.
        forms: the preferred one first.

    Raises:
        RuntimeError: if none works.
    """
    key = f"{device()}; {operation}"
    if not _known:
        _known.update(_load())
    known = _known.get(key)
    if known is None or known["form"] not in forms:
        known = _measure(operation, forms, x, residual)
        _known[key] = known
        _save()
    return str(known["form"])


def measured() -> dict[str, dict[str, Any]]:
    """What is known for this device, by operation: ``form``, and ``us``, microseconds for each form."""
    prefix = f"{device()}; "
    return {key.removeprefix(prefix): known for key, known in _load().items() if key.startswith(prefix)}


def device() -> str:
    """What the measurements hold for: the device and MLX's version."""
    return f"{mx.device_info().get('device_name', 'gpu')}, mlx {mx.__version__}"  # type: ignore[attr-defined]


def file() -> Path:
    """Where measurements are kept."""
    return cache_folder() / "kernels.json"


def _measure(operation: str, forms: Mapping[str, Form], x: mx.array, residual: mx.array | None) -> dict[str, Any]:
    """Time the forms in turn, so that what slows the machine down for a while slows all of them."""
    launches = max(2, min(LAUNCHES, MEMORY // max(1, _bytes(forms, x, residual))))
    inputs = [x + 0 for _ in range(launches)]
    mx.eval(inputs)
    chains = {name: mx.compile(partial(_chained, form)) for name, form in forms.items()}
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(1 + REPEAT):  # the first time, it is compiled
        for name, chain in list(chains.items()):
            try:
                start = time.perf_counter()
                mx.eval(chain(inputs, residual))
                times[name].append(time.perf_counter() - start)
                mx.synchronize()  # so that the next takes no memory before this one's is given back
            except (RuntimeError, ValueError) as error:
                said = f"flashnorm: {name} form of {operation} fails, another is used: {first_line(error)}"
                warnings.warn(said, stacklevel=3)
                del chains[name]
    if not chains:
        raise RuntimeError(f"no form of {operation} works on this device")
    rounds = {name: [1e6 * seconds / launches for seconds in times[name][1:]] for name in chains}
    return {"form": winner(rounds), "us": {name: round(statistics.median(us), 2) for name, us in rounds.items()}}


def _bytes(forms: Mapping[str, Form], x: mx.array, residual: mx.array | None) -> int:
    """What a launch reads and yields."""
    for form in forms.values():
        try:
            return x.nbytes + form(x, residual).nbytes  # nothing is computed for it
        except (RuntimeError, ValueError):  # reported when it is measured
            pass
    return x.nbytes


def winner(rounds: Mapping[str, Sequence[float]]) -> str:
    """The fastest form, given its times in each round, or the first: a noisy machine must not decide against that.

    Another wins if it takes less than :data:`MARGIN` of the first's time in the median round, and less time in all
    rounds but one.
    """
    first, *others = rounds
    best, least = first, MARGIN
    for name in others:
        ratios = sorted(other / own for other, own in zip(rounds[name], rounds[first], strict=True))
        middle = statistics.median(ratios)
        if middle < least and ratios[-2] < 1:
            best, least = name, middle
    return best


def _chained(form: Form, inputs: list[mx.array], residual: mx.array | None) -> list[mx.array]:
    """Launches that wait for one another, as they do in a model, where the shapes allow it.

    Each has an input of its own: of equal operations on one input, all but the first are left out of a compiled graph.
    """
    results: list[mx.array] = []
    for x in inputs:
        if results and residual is None and len(x) == 1 and results[-1].shape[1] >= x.shape[1]:
            x = results[-1][:, : x.shape[1]]
        results.append(form(x, residual if residual is None or not results else results[-1]))
    return results


def _load() -> dict[str, dict[str, Any]]:
    """The file's content; a file that can't be read counts as empty, for everything in it can be measured again."""
    try:
        content = json.loads(file().read_text(encoding="utf-8"))
        return {
            k: v
            for k, v in content.items()
            if isinstance(v, dict) and isinstance(v.get("form"), str) and isinstance(v.get("us"), dict)
        }
    except (OSError, ValueError, AttributeError, RuntimeError):  # RuntimeError: no home, or nested too deeply
        return {}


def _save() -> None:
    """Write through a file beside it, so that another process never reads half of one."""
    try:
        file().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file().parent, delete=False, encoding="utf-8") as scratch:
            json.dump(_load() | _known, scratch, indent=1)
        Path(scratch.name).replace(file())
    except (OSError, RuntimeError):
        pass  # measured again next time
