"""Reads a kernel as Metal: the exact text that MLX would compile, with clang's C++-for-OpenCL front end.

That front end has Metal's address spaces, half, vectors, and its bans (double, std, function pointers, threadgroup
variables in helpers). In front of the kernel stand MLX's own headers, from the installed package, and `msl_decl.h` for
<metal_stdlib>. What C++14, and so Metal, doesn't have is refused too.

Not covered: functions and overloads that `msl_decl.h` lacks (refused though right) or has too many of; vectors made
from parts through a template (`vec<T, 4>(a, b, c, d)`); that a float is no bfloat (the harness refuses that one);
attributes, resource limits, and Apple's own warnings.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
from msl.translate import bind_template, without_comments

DECLARATIONS = Path(__file__).parent / "msl_decl.h"
UTILS = "mlx/backend/metal/kernels/utils.h"  # what MLX puts in front of custom kernels, with all it includes
PROGRAMS = [*(f"clang-{version}" for version in range(23, 15, -1)), "clang"]
WARNINGS = [
    *("-Wall", "-Wno-unused", "-Wno-unknown-attributes", "-Wno-c++11-narrowing", "-Wno-opencl-unsupported-rgba"),
    *("-Wpre-c++17-compat", "-Wc++98-compat"),
]
LANGUAGE = ["-x", "clcpp", "-cl-std=clc++2021", "-cl-ext=-all,+cl_khr_fp16,-__opencl_c_generic_address_space"]
TARGET = ["-triple", "x86_64-linux-gnu", "-target-feature", "+sse2"]
DRIVER = ["--target=x86_64-linux-gnu", "-msse2", "-cl-no-stdinc", "-ferror-limit=0"]
SCALARS = ["float", "half", "bfloat", "int", "uint", "short", "ushort", "char", "uchar", "bool", "long", "ulong"]
KERNEL = '#line 1 "kernel.metal"'
# In Metal 1.0 is a float; and of what C++98 didn't have, only lambda expressions are missing.
IGNORED = re.compile(r"casting to single precision|^(?!.*lambda).* incompatible with C\+\+98\b")
RIGHT = "[[kernel]] void probe(const device half* x [[buffer(0)]], device float* y [[buffer(1)]]) { y[0] = x[0]; }\n"


def inlined(include: Path, name: str, seen: set[str]) -> str:
    """A header of MLX with those it includes, each once; Metal's own are left out."""
    seen.add(name)
    out = []
    for line in (include / name).read_text("utf-8").splitlines():
        included = re.match(r'\s*#include\s+(?:"(.*)"|<.*>)', line)
        if not included:
            out.append(line)
        elif included[1] and included[1] not in seen:
            out.append(inlined(include, included[1], seen))
    return "\n".join(line for line in out if "#pragma once" not in line)


@functools.cache
def preamble() -> str:
    """Everything before the kernel's text."""
    text = inlined(Path(mx.__file__).parent / "include", UTILS, set())
    # Complex results made from their parts are the one thing in there that OpenCL reads otherwise
    text = re.sub(r"return \{[^;]*\};", "__builtin_unreachable();", text)
    text = re.sub(r"static_assert\(\s*\(complex_t[^;]*;", lambda m: "\n" * m[0].count("\n"), text)
    builtins = sorted(set(re.findall(r"__metal_\w+", text)))
    stubs = "".join(
        f"template <class T, class... A> {'ushort' if name.endswith('simdgroup_size') else 'T'} {name}(T, A...);\n"
        for name in builtins
    )
    # Metal's float4(a, b, c, d) is OpenCL's (float4)(a, b, c, d)
    made = "".join(f"#define {t}{n}_(...) (({t}{n})(__VA_ARGS__))\n" for t in SCALARS for n in (2, 3, 4))
    return f'{DECLARATIONS.read_text("utf-8")}\n{stubs}#line 1 "mlx.h"\n{text}\n{made}'


def as_opencl(text: str) -> str:
    """The kernel's text, line for line, in the dialect that clang reads."""
    text = without_comments(text)
    name = re.search(r"\[\[kernel\]\]\s+void\s+(\w+)", text)
    if not name:
        raise ValueError("no kernel in this text")
    text = bind_template(text, name[1], "static constexpr constant")
    text = re.sub(rf"\[\[kernel\]\]\s+void {name[1]}\b|\bvoid {name[1]}\b", f"__kernel void {name[1]}", text, count=1)
    text = re.sub(r"\[\[\w+(\(\d+\))?\]\]", "", text)
    return re.sub(rf"\b((?:{'|'.join(SCALARS)})[234])\s*\(", r"\1_(", text)


def program_scope(text: str) -> Iterator[str]:
    """Variables outside of functions, and static ones, that aren't `constant`: Metal refuses them, OpenCL doesn't."""
    plain, depth, kept = re.sub(r"^[ \t]*#(.*\\\n)*.*$", "", without_comments(text), flags=re.M), 0, ""
    for char in plain:
        depth -= char in ")}]"
        kept += char if depth == 0 or char == "\n" else ""
        depth += char in "({["
    outside = re.finditer(r"^[ \t]*(?:inline\s+)*(?:constexpr|const)\b[^(){};]*[=;]", kept, re.M)
    static = re.finditer(r"\bstatic\s[^(){};=]*[=;]", plain)
    for string, found in [(kept, match) for match in outside] + [(plain, match) for match in static]:
        if not re.search(r"\bconstant\b", found[0]):
            yield f"line {string[: found.start()].count(chr(10)) + 1}: error: this variable must be `constant`"


def located(kind: str, message: str, place: tuple[str, int], notes: Iterable[tuple[str, int]]) -> Iterator[str]:
    """One diagnostic with a line of the kernel: where it is, or where an error in a header was asked for."""
    lines = [line for file, line in (place, *notes) if file == "kernel.metal"]
    if place[0] == "kernel.metal" or kind == "error":
        yield f"line {lines[0] if lines else 0}: {kind}: {message}"


def run_clang(program: str, source: str) -> list[str]:
    command = [program, "-cc1", *TARGET, *LANGUAGE, "-fsyntax-only", "-ferror-limit", "0", *WARNINGS, "-"]
    result = subprocess.run(command, input=source, capture_output=True, text=True)
    said = re.findall(r"^(\S+?):(\d+):\d+: (?:fatal )?(error|warning|note): (.*)$", result.stderr, re.M)
    found: list[tuple[str, str, tuple[str, int], list[tuple[str, int]]]] = []
    for file, line, kind, message in said:
        if kind != "note":
            found.append((kind, message, (file, int(line)), []))
        elif found:
            found[-1][3].append((file, int(line)))
    if result.returncode not in (0, 1) or (result.returncode and not found):
        raise RuntimeError(f"{program} failed: {result.stderr[-500:]}")
    return [text for parts in found for text in located(*parts)]


def run_libclang(source: str) -> list[str]:
    from clang import cindex

    head = source[: source.index(KERNEL)].count("\n") + 1

    def place(found: Any) -> tuple[str, int]:
        line = found.location.line - head
        return ("kernel.metal", line) if line > 0 else ("mlx.h", 0)

    arguments = [*DRIVER, *LANGUAGE[:3], "-Xclang", LANGUAGE[3], *WARNINGS]
    unit = cindex.Index.create().parse("check.clcpp", arguments, [("check.clcpp", source)])
    kinds = {2: "warning", 3: "error", 4: "error"}
    found = [d for d in unit.diagnostics if d.severity in kinds]
    parts = [(kinds[d.severity], d.spelling, place(d), [place(note) for note in d.children]) for d in found]
    return [text for part in parts for text in located(*part)]


@functools.cache
def checker() -> Callable[[str], list[str]] | None:
    """The first clang here that reads a right kernel without complaint, and a wrong one with."""
    found: list[Callable[[str], list[str]]] = []
    for program in PROGRAMS:
        if shutil.which(program):
            found.append(functools.partial(run_clang, program))
    if importlib.util.find_spec("clang") and importlib.util.find_spec("clang.cindex"):
        found.append(run_libclang)
    for check in found:
        try:
            if not diagnose(check, RIGHT) and diagnose(check, RIGHT.replace("device half*", "device halt*")):
                return check
        except (RuntimeError, OSError, ImportError):
            continue
    return None


def diagnose(check: Callable[[str], list[str]], text: str) -> list[str]:
    found = check(f"{preamble()}\n{KERNEL}\n{as_opencl(text)}")
    return [message for message in found if not IGNORED.search(message)]


def available() -> bool:
    """Whether there is a clang that can do this: clang 16 or newer, or pip's libclang."""
    return checker() is not None


def typecheck(source_text: str) -> list[str]:
    """What is wrong with a kernel's text (as in `Recording.text`) as Metal, each with its line."""
    check = checker()
    if check is None:
        raise RuntimeError("no clang here reads C++ for OpenCL: install clang-19, or pip's libclang")
    lines = source_text.splitlines()
    found = [*program_scope(source_text), *diagnose(check, source_text)]
    found += [f"line {n}: error: no goto in Metal" for n, line in enumerate(lines, 1) if re.search(r"\bgoto\b", line)]
    return [re.sub(r"^line ([1-9]\d*)", lambda m: f"{m[0]}: `{lines[int(m[1]) - 1].strip()}`", line) for line in found]
