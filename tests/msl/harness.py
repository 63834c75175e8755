"""Runs MLX's custom Metal kernels on the CPU, exactly as written: a stand-in for `mx.fast.metal_kernel`.

The text that is compiled is the one MLX generates. Every thread is a fiber, and every collective a meeting of fibers.
With `check`, shadow memory finds races, accesses out of bounds or misaligned, reads of what was never written, outputs
never written; threads that miss each other at a barrier are found always. Each of `seeds` runs the threads in another
order (0: in their own), and all have to give the same bytes. A kernel runs in a process of its own (`apart`), so that a
wild one takes no test run with it; that costs more than most launches.

Not covered: address spaces and Metal's overloads (`typecheck` reads those), Apple's rounding of fast functions,
flushing of denormals, arrays that aren't contiguous, speed.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from msl.build import BuildError, Library, build, missing
from msl.translate import Untranslatable, translate

__all__ = ["Kernel", "KernelError", "Recording", "metal_kernel", "missing", "warm"]

MAX_BUFFERS, MAX_TEXT = 32, 1 << 13
RECORDED = mx.fast.metal_kernel  # also where tests put the stand-in there
PADDING = 4096  # around every buffer, with a pattern that no kernel may change


class KernelError(AssertionError):
    """A kernel does not compile, or breaks a rule when it runs."""


class Buffer(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_uint64),
        ("read_only", ctypes.c_uint64),
        ("filled", ctypes.c_uint64),
        ("name", ctypes.c_char_p),
    ]


class Report(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_uint64) for name in ("finished", "errors", "switches", "barriers", "groups")),
        ("threadgroup_bytes", ctypes.c_uint64),
        *(
            (name, ctypes.c_uint64 * MAX_BUFFERS)
            for name in ("bytes_read", "bytes_written", "never_written", "first_unwritten")
        ),
        ("text", ctypes.c_char * MAX_TEXT),
    ]


class Launch(ctypes.Structure):
    _fields_ = [
        ("buffers", ctypes.POINTER(Buffer)),
        ("count", ctypes.c_uint64),
        ("grid", ctypes.c_uint32 * 3),
        ("threadgroup", ctypes.c_uint32 * 3),
        ("seed", ctypes.c_uint64),
        ("seconds", ctypes.c_uint64),
        ("apart", ctypes.c_uint64),
        ("report", ctypes.POINTER(Report)),
    ]


@dataclass(frozen=True)
class Recording:
    """What MLX would hand to Metal for one call."""

    name: str
    text: str
    grid: tuple[int, int, int]
    threadgroup: tuple[int, int, int]
    shape_infos: list[tuple[bool, bool, bool]]


@dataclass(frozen=True)
class Memory:
    """One buffer of a call, in memory that the child which runs the kernel shares."""

    name: str
    array: np.ndarray
    read_only: bool
    store: np.ndarray
    start: int

    @classmethod
    def of(cls, name: str, array: np.ndarray, read_only: bool, shift: int = 0) -> Memory:
        store = np.frombuffer(mmap.mmap(-1, array.nbytes + 2 * PADDING + 64 + shift), np.uint8)
        store[:] = 0xFF
        start = -store.ctypes.data % 64 + PADDING + shift
        store[start : start + array.nbytes] = np.frombuffer(array.tobytes(), np.uint8)
        return cls(name, array, read_only, store, start)

    def result(self) -> np.ndarray:
        end = self.start + self.array.nbytes
        if (self.store[: self.start] != 0xFF).any() or (self.store[end:] != 0xFF).any():
            raise KernelError(f"OUT OF BOUNDS write near '{self.name}'")
        return self.store[self.start : end].view(self.array.dtype).reshape(self.array.shape).copy()


def to_numpy(array: mx.array) -> np.ndarray:
    return np.ascontiguousarray(np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array))


def to_mlx(array: np.ndarray, dtype: mx.Dtype) -> mx.array:
    return mx.array(array).view(mx.bfloat16) if dtype == mx.bfloat16 else mx.array(array)


class Kernel:
    """What `mx.fast.metal_kernel` returns, run on the CPU.

    Of the last call: `seconds`, `compile_seconds`, counts in `report`, and with `check` the bytes read and written of
    each buffer in `traffic`.
    """

    def __init__(
        self,
        names: tuple[Sequence[str], Sequence[str]],
        kernel: Any,
        check: bool,
        seeds: Sequence[int],
        shift: int,
        apart: bool,
    ) -> None:
        self.input_names, self.output_names = names
        self.kernel, self.check, self.seeds, self.shift, self.apart = kernel, check, tuple(seeds), shift, apart
        self.report, self.seconds, self.compile_seconds = Report(), 0.0, 0.0
        self.traffic: dict[str, tuple[int, int]] = {}

    def record(self, *, inputs: Sequence[Any], stream: Any = None, verbose: bool = False, **call: Any) -> Recording:
        """The text and launch of a call, which MLX says without a Metal device while it exports a function."""
        found: list[dict] = []
        arrays = [value if isinstance(value, mx.array) else mx.array(value) for value in inputs]
        mx.export_function(found.append, lambda *xs: tuple(self.kernel(inputs=list(xs), **call)), *arrays)
        name, text, *rest = next(d for d in reversed(found) if d.get("name") == "CustomKernel")["arguments"]
        return Recording(name, text, tuple(rest[:3]), tuple(rest[3:6]), rest[6])

    def build(self, recording: Recording) -> Library:
        try:
            return build(translate(recording.text, recording.name), self.check)
        except (BuildError, Untranslatable) as error:
            raise KernelError(f"does not compile:\n{compiler_errors(str(error), recording)}") from None

    def __call__(
        self,
        *,
        inputs: Sequence[Any],
        output_shapes: Sequence[Sequence[int]],
        output_dtypes: Sequence[mx.Dtype],
        grid: tuple[int, int, int],
        threadgroup: tuple[int, int, int],
        template: Sequence[tuple[str, Any]] | None = None,
        init_value: float | None = None,
        verbose: bool = False,
        stream: Any = None,
    ) -> list[mx.array]:
        arrays = [value if isinstance(value, mx.array) else mx.array(value) for value in inputs]
        options = {"grid": grid, "threadgroup": threadgroup, "template": template, "init_value": init_value}
        recording = self.record(inputs=arrays, output_shapes=output_shapes, output_dtypes=output_dtypes, **options)
        library = self.build(recording)
        self.compile_seconds, self.seconds = library.seconds, 0.0
        given = list(self.given(arrays, recording))
        first: list[np.ndarray] = []
        for seed in self.seeds:
            blank = [
                to_numpy(mx.full(shape, init_value or 0, dtype))
                for shape, dtype in zip(output_shapes, output_dtypes, strict=True)
            ]
            if init_value is None:
                for array in blank:
                    array.reshape(-1).view(np.uint8)[:] = 0xFF
            outputs = [Memory.of(name, array, False) for name, array in zip(self.output_names, blank, strict=True)]
            self.run([*given, *outputs], recording, library, seed, filled=init_value is not None)
            results = [memory.result() for memory in outputs]
            for memory, one, other in zip(outputs, first, results, strict=False):
                if one.tobytes() != other.tobytes():
                    raise KernelError(f"'{memory.name}' depends on the order the threads run in (seed {seed}): a RACE")
            first = first or results
        return [to_mlx(result, dtype) for result, dtype in zip(first, output_dtypes, strict=True)]

    def given(self, arrays: list[mx.array], recording: Recording) -> Iterable[Memory]:
        """Inputs, each with its shape, strides and rank where the kernel asks for them."""
        for name, array, (shape, strides, rank) in zip(self.input_names, arrays, recording.shape_infos, strict=True):
            value = to_numpy(array)
            yield Memory.of(name, value, True, self.shift * value.itemsize)
            steps = [step // value.itemsize for step in value.strides]
            if array.ndim and shape:
                yield Memory.of(f"{name}_shape", np.array(array.shape, np.int32), True)
            if array.ndim and strides:
                yield Memory.of(f"{name}_strides", np.array(steps, np.int64), True)
            if array.ndim and rank:
                yield Memory.of(f"{name}_ndim", np.array(array.ndim, np.int32), True)

    def run(self, memories: list[Memory], recording: Recording, library: Library, seed: int, filled: bool) -> None:
        """One launch. Raises what the kernel did wrong."""
        buffers = (Buffer * len(memories))()
        for buffer, memory in zip(buffers, memories, strict=True):
            buffer.data, buffer.bytes = memory.store.ctypes.data + memory.start, memory.array.nbytes
            buffer.read_only, buffer.filled, buffer.name = memory.read_only, filled, memory.name.encode()
        report = Report.from_buffer(mmap.mmap(-1, ctypes.sizeof(Report)))
        limit = int(os.environ.get("MSL_TIMEOUT", "60"))
        grid, threadgroup = (ctypes.c_uint32 * 3)(*recording.grid), (ctypes.c_uint32 * 3)(*recording.threadgroup)
        launch = Launch(buffers, len(buffers), grid, threadgroup, seed, limit, self.apart, ctypes.pointer(report))
        start = time.perf_counter()
        status = ctypes.CDLL(str(library.path)).msl_launch(ctypes.byref(launch))
        self.seconds += time.perf_counter() - start
        self.report = report
        self.traffic = {m.name: (report.bytes_read[i], report.bytes_written[i]) for i, m in enumerate(memories)}
        if report.errors:
            raise KernelError(readable(report.text.decode(), recording, library))
        if not report.finished:
            late = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM
            raise KernelError(f"does not end within {limit} s" if late else f"CRASH of the kernel: status {status}")
        for index, memory in enumerate(memories):
            memory.result()
            if self.check and not filled and report.never_written[index]:
                at = report.first_unwritten[index] // memory.array.itemsize
                count = report.never_written[index]
                raise KernelError(f"UNWRITTEN output: {count} bytes of '{memory.name}', from element {at} on")


def metal_kernel(
    name: str,
    input_names: Sequence[str],
    output_names: Sequence[str],
    source: str,
    header: str = "",
    ensure_row_contiguous: bool = True,
    atomic_outputs: bool = False,
    compile_options: Any = None,
    *,
    check: bool = False,
    seeds: Sequence[int] = (0,),
    input_offset: int = 0,
    apart: bool = True,
) -> Kernel:
    """As `mx.fast.metal_kernel`. `input_offset` moves inputs by that many elements, as slices of larger arrays are."""
    if missing():
        raise RuntimeError(missing())
    options = {"ensure_row_contiguous": ensure_row_contiguous, "atomic_outputs": atomic_outputs}
    kernel = RECORDED(
        name=name, input_names=input_names, output_names=output_names, source=source, header=header, **options
    )
    return Kernel((input_names, output_names), kernel, check, seeds, input_offset, apart)


def warm(calls: Iterable[tuple[Kernel, dict[str, Any]]], workers: int | None = None) -> float:
    """Compiles what these calls (a kernel and its arguments) need, several at a time. Returns the seconds that took."""
    start = time.perf_counter()
    recorded = [(kernel, kernel.record(**arguments)) for kernel, arguments in calls]
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        list(pool.map(lambda pair: pair[0].build(pair[1]), recorded))
    return time.perf_counter() - start


def compiler_errors(text: str, recording: Recording) -> str:
    """The compiler's errors, with the lines they are about."""
    lines = [line for line in text.splitlines() if "error:" in line] or text.splitlines()
    return "\n".join(
        re.sub(r"kernel\.metal:(\d+)", lambda m: quoted(int(m[1]), recording), line) for line in lines[:20]
    )


def quoted(line: int, recording: Recording) -> str:
    lines = recording.text.splitlines()
    return f"line {line}: `{lines[line - 1].strip()}`" if 0 < line <= len(lines) else f"line {line}"


def readable(text: str, recording: Recording, library: Library) -> str:
    """A report with lines of the kernel for addresses of the program."""

    def address(match: re.Match[str]) -> str:
        at = hex(int(match[1], 16) - 1)
        command = ["addr2line", "-i", "-e", str(library.path), at]
        frames = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
        inside = [frame for frame in frames if "kernel.metal:" in frame]
        return f"in line {re.split('[: ]', inside[0])[1]}" if inside else f"at {(frames or [at])[0]}"

    text = re.sub(r"@\+(0x[0-9a-f]+)", address, text)
    text = re.sub(r"@line (\d+) of \S+", r"in line \1", text)
    return re.sub(r"\bline (\d+)", lambda m: quoted(int(m[1]), recording), text.strip())
