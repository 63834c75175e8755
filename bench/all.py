"""All experiments, one after another; then the READMEs' tables.

    make bench                    on a GPU, sized for 20 minutes: what norms cost; on a CPU: quality, and decoding
    make bench ARGS=--quick       the scripts themselves, on tiny models, into a new folder; a few minutes on a CPU

What a GPU measures says nothing on a CPU, and quality is the same on both, so each is run in one place only. A script
that fails doesn't stop the others; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
from record import results_folder

HERE = Path(__file__).parent


class Job(NamedTuple):
    """A script, and its arguments on a GPU, on a CPU and to see whether it runs; None: it isn't run there."""

    script: str
    gpu: str | None
    cpu: str | None
    quick: str | None


#: What is decoded on a CPU, where nothing else is said of speed.
SHORT = "--depth 16 --batch --prefill --tokens 16"

JOBS = (
    Job(
        "speed", "--shape SmolLM2-135M Llama-3.2-1B", f"--shape models/demo SmolLM2-135M --bits 0 4 {SHORT}", "--quick"
    ),
    Job("speed", "--shape OpenELM-270M --depth 16 1024 --batch --prefill", None, None),  # kernels differ by layer
    Job("norm_share", "", None, "--quick"),
    Job("memory", "", None, "--quick"),
    Job("norm_then_project", "", None, "--quick"),
    Job("kernels", "", None, "--quick"),
    Job("quality", None, "", "--quick"),
    Job("epsilon", None, "", "--rms 1 --eps 1e-5 --seeds 1"),
    Job("multipliers", None, "", "--shape SmolLM2-135M"),
    Job("quantisation", None, "", "--quick"),
)

#: Figures, and the scripts whose results they are of.
FIGURES = {"norm_then_project": "norm_then_project_plot", "quantisation": "quantisation_plot"}


def commands(where: str, out: Path) -> list[list[str]]:
    """Scripts with their arguments, for ``gpu``, ``cpu`` or ``quick``."""
    found = []
    for job in JOBS:
        given = getattr(job, where)
        if given is None:
            continue
        found.append([job.script, *given.split(), "--out", str(out)])
        if job.script in FIGURES and importlib.util.find_spec("matplotlib"):
            found.append([FIGURES[job.script], str(out / f"{job.script}.json")])
    return found if where == "quick" else [*found, ["tables"]]


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, help="folder for the results (default bench/results/<device>, quick: new)")
    args = parser.parse_args(given)
    where = "quick" if args.quick else "gpu" if mx.default_device() == mx.gpu else "cpu"
    out = (args.out or (Path(tempfile.mkdtemp(prefix="bench-")) if args.quick else results_folder())).resolve()
    failed = []
    for script, *rest in commands(where, out):
        print(f"--- {script} {' '.join(rest)}", flush=True)
        start = time.perf_counter()
        code = subprocess.run(
            [sys.executable, str(HERE / f"{script}.py"), *rest], cwd=HERE.parent, check=False
        ).returncode
        failed += [script] * (code != 0)
        print(f"--- {script}: {time.perf_counter() - start:.0f} s{', failed' * (code != 0)}", flush=True)
    print(f"failed: {', '.join(failed)}" if failed else f"all done; results are in {out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
