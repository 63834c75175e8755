"""Whether the kernels' tests would notice a wrong kernel: changes the sources in many small ways, and runs the tests.

    python tests/msl/mutate.py [--file NAME]... [--limit N [--seed S]] [--tests SELECTION]

Every change is made in a copy of all sources, which FLASHNORM_KERNEL_SOURCES names to the package. A mutant that no
test notices is reported with its line: a test is missing, or the change changes nothing, and then it belongs into
equivalent.txt, with the reason.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
SOURCES = ROOT / "flashnorm_mlx" / "kernels" / "source"
EQUIVALENT = Path(__file__).parent / "equivalent.txt"
TESTS = "tests -m 'not gpu' -k kernel --ignore=tests/msl"
DROPPED = "(dropped) "


def pairs(text: str) -> dict[str, str]:
    words = text.split()
    return dict(zip(words[::2], words[1::2], strict=True))


# Between blanks, so that neither pointers nor template brackets are meant.
OPERATORS = pairs("""
    + -   - +   * /   / *   % /   & |   | &   ^ |   << >>   >> <<   < <=   <= <   > >=   >= >   == !=   != ==
    && ||   || &&   += -=   -= +=   *= /=   /= *=   |= &=   &= |=   ^= |=   >>= <<=   <<= >>=
""")
WORDS = pairs("""
    min max   max min   simd_sum simd_max   simd_max simd_sum   simd_shuffle_xor simd_shuffle_down   rsqrt sqrt
    true false   false true   mem_threadgroup mem_none   .x .y   .y .x   .z .w   .w .z
""")
BOUND = r"\b"
# Whole lines that can be left out: assignments (with an `if` in front of them, or not), calls, i++ and return.
ASSIGNMENT = r"[\w.>-]+(?:\[[^;]*\])? (?:[-+*/|&^]|<<|>>)?= [^;]*"
CALL = r"[\w:]+(?:<[^;]*>)?\([^;]*\)"
STATEMENT = re.compile(rf"^[ \t]*(?:if \([^{{}};]*\) )?(?:{ASSIGNMENT}|{CALL}|[\w.]+\+\+|return);[ \t]*$", re.M)


@dataclass(frozen=True)
class Mutant:
    """One change of one line, and what became of it."""

    file: str
    line: int
    before: str
    after: str
    start: int
    end: int
    text: str
    status: str = ""
    by: str = ""
    seconds: float = 0.0

    @property
    def key(self) -> tuple[str, str]:
        """By which equivalent.txt knows it: without a line number, which moves."""
        return self.file, self.after

    def __str__(self) -> str:
        after = self.after if self.after.startswith(DROPPED) else f"{self.before}\n      -> {self.after}"
        return f"{self.file}:{self.line}: {after}"


def code_of(text: str) -> str:
    """The text with blanks for what isn't changed: comments, preprocessor lines, static assertions."""

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match[0])

    text = re.sub(r"//[^\n]*|/\*.*?\*/", blank, text, flags=re.S)
    text = re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", blank, text, flags=re.M)
    return re.sub(r"\bstatic_assert\([^;]*;", blank, text)


def number(match: re.Match[str]) -> str:
    """Another number: a mask moved by a bit, anything else one more (twice as much where one more is lost)."""
    word = match[0]
    if "x" in word:
        return f"{int(word.rstrip('uU'), 16) >> 1:#x}{'u' if word[-1] in 'uU' else ''}"
    word = match[0].rstrip("uUlLfh")
    suffix = match[0][len(word) :]
    if re.search(r"[.e]", word):
        value = float(word)
        return f"{value + 1 if value + 1 != value else value * 2!r}{suffix}"
    return f"{int(word) + 1}{suffix}"


def edits(code: str) -> Iterator[tuple[int, int, str]]:
    """Every change: from where to where, and what comes there."""
    for operator, other in OPERATORS.items():
        for found in re.finditer(rf"(?<= ){re.escape(operator)}(?=[ \n])", code):
            yield *found.span(), other
    for word, other in WORDS.items():
        for found in re.finditer(rf"{'' if word[0] == '.' else BOUND}{re.escape(word)}{BOUND}", code):
            yield *found.span(), other
    for found in re.finditer(
        r"(?<![\w.])(?:0x[0-9a-fA-F]+[uU]?|(?:\d+\.\d*|\.\d+|\d+)(?:e[-+]?\d+)?[uUlLfh]*)\b", code
    ):
        yield *found.span(), number(found)
    for found in re.finditer(r"\bif \(([^;{}\n]*)\)(?= )", code):
        yield *found.span(1), f"!({found[1]})"
    for found in re.finditer(r"\w\(([^(),;{}\n]+), ([^(),;{}\n]+)\)", code):
        yield found.start(1), found.end(2), f"{found[2]}, {found[1]}"
    for found in re.finditer(r"\[([^\[\]\n]+)\]\[([^\[\]\n]+)\]", code):
        yield *found.span(), f"[{found[2]}][{found[1]}]"
    for found in STATEMENT.finditer(code):
        yield *found.span(), ""


def mutants(file: str, text: str) -> list[Mutant]:
    """All mutants of a source, from its top to its end."""
    found: dict[tuple[int, str], Mutant] = {}
    code = code_of(text) + "\n"
    for start, end, new in edits(code):
        begin, stop = code.rfind("\n", 0, start) + 1, code.find("\n", end)
        before, after = code[begin:stop].strip(), (code[begin:start] + new + code[end:stop]).strip()
        line = code.count("\n", 0, start) + 1
        if after != before:
            after = after if new else DROPPED + before
            found.setdefault((line, after), Mutant(file, line, before, after, start, end, new))
    return sorted(found.values(), key=lambda mutant: (mutant.start, mutant.end, mutant.text))


def read_equivalent(path: Path) -> dict[tuple[str, str], str]:
    """The mutants that are no mistakes: `file: the changed line`, and below it, indented, the reason."""
    known: dict[tuple[str, str], str] = {}
    entry: tuple[str, str] | None = None
    for line in path.read_text("utf-8").splitlines() if path.exists() else []:
        if line.startswith("#") or not line.strip():
            continue
        if line[0] in " \t" and entry:
            known[entry] = f"{known[entry]} {line.strip()}".strip()
        else:
            file, _, after = line.partition(": ")
            entry = (file, after.strip())
            known[entry] = ""
    unexplained = [": ".join(entry) for entry, reason in known.items() if not reason]
    if unexplained:
        raise SystemExit(f"{path.name}: no reason given for {unexplained[0]}")
    return known


def run_tests(sources: Path, selection: str, scratch: Path, limit: float) -> tuple[int, str]:
    """The exit status of the tests (1 where they take too long) and why they failed."""
    environment = {**os.environ, "FLASHNORM_KERNEL_SOURCES": str(sources), "MSL_CACHE": str(scratch / "cache")}
    environment.setdefault("MSL_TIMEOUT", "10")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider"]
    try:
        result = subprocess.run(
            [*command, *shlex.split(selection)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=limit,
        )
    except subprocess.TimeoutExpired:
        return 1, "takes too long"
    errors = re.findall(r"^E +(.*)$", result.stdout, re.M)
    kernel = next((error for error in errors if "KernelError: " in error), errors[0] if errors else "")
    return result.returncode, kernel or "\n".join((result.stdout + result.stderr).strip().splitlines()[-5:])


def judge(mutant: Mutant, sources: Path, selection: str, scratch: Path, limit: float) -> Mutant:
    """Runs the tests on a copy of the sources with this change."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        copy = Path(folder) / "source"
        shutil.copytree(sources, copy)
        text = (copy / mutant.file).read_text("utf-8")
        (copy / mutant.file).write_text(text[: mutant.start] + mutant.text + text[mutant.end :], "utf-8")
        status, why = run_tests(copy, selection, scratch, limit)
    said = {"status": "killed" if status else "survived", "by": why[:200] if status else ""}
    return Mutant(**{**asdict(mutant), **said, "seconds": round(time.perf_counter() - start, 2)})


def chosen(arguments: argparse.Namespace, known: dict[tuple[str, str], str]) -> tuple[list[Mutant], int]:
    """The mutants to try, and how many are left out as equivalent. Says which entries no mutant has any more."""
    files = [arguments.sources / name for name in arguments.file] or sorted(arguments.sources.glob("*.msl"))
    if not files:
        raise SystemExit(f"no kernels in {arguments.sources}")
    every = [mutant for path in files for mutant in mutants(path.name, path.read_text("utf-8"))]
    keys = {mutant.key for mutant in every}
    for file, after in known:
        if file in {path.name for path in files} and (file, after) not in keys:
            print(f"{arguments.equivalent.name}: no mutant is this any more: {file}: {after}")
    wanted = [mutant for mutant in every if mutant.key not in known]
    equivalent = len(every) - len(wanted)
    if arguments.limit and arguments.limit < len(wanted):
        wanted = sorted(random.Random(arguments.seed).sample(wanted, arguments.limit), key=lambda m: (m.file, m.start))
    return wanted, equivalent


def summary(results: Iterable[Mutant], equivalent: int, path: Path) -> int:
    """Prints each result as it comes, writes all of them to a file, and returns how many survived."""
    done = []
    for mutant in results:
        done.append(mutant)
        print(f"{mutant.status:8} {mutant}\n{'      ' + mutant.by if mutant.by else ''}".rstrip(), flush=True)
    survived = [mutant for mutant in done if mutant.status == "survived"]
    counts = {"mutants": len(done), "killed": len(done) - len(survived), "survived": len(survived)}
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {**counts, "equivalent": equivalent, "results": [asdict(mutant) for mutant in done]}
    path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    print(f"\n{counts['killed']} of {len(done)} mutants killed, {equivalent} known as equivalent; survived:")
    print("\n".join(f"  {mutant}" for mutant in survived) or "  none")
    return len(survived)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=Path, default=SOURCES, help="the folder of the kernels' sources")
    parser.add_argument("--file", action="append", default=[], help="change this source only (may be given again)")
    parser.add_argument("--limit", type=int, default=0, help="try that many, chosen at random")
    parser.add_argument("--seed", type=int, default=0, help="of that choice")
    parser.add_argument("--tests", default=TESTS, help=f"what pytest is to run (default: {TESTS})")
    parser.add_argument("--jobs", type=int, default=2, help="tests to run at a time")
    parser.add_argument("--equivalent", type=Path, default=EQUIVALENT, help="mutants known to change nothing")
    parser.add_argument("--json", type=Path, default=ROOT / "build" / "mutants.json", help="where results are written")
    parser.add_argument("--list", action="store_true", help="show the mutants, and run nothing")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    wanted, equivalent = chosen(arguments, read_equivalent(arguments.equivalent))
    if arguments.list or not wanted:
        print("\n".join(map(str, wanted)) or "no mutants")
        return 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        scratch = Path(folder)
        start = time.perf_counter()
        status, why = run_tests(arguments.sources, arguments.tests, scratch, 3600)
        if status:
            raise SystemExit(f"the tests have to pass before anything is changed (exit status {status}):\n{why}")
        limit = 60 + 5 * (time.perf_counter() - start)
        options = {"sources": arguments.sources, "selection": arguments.tests, "scratch": scratch, "limit": limit}
        with ThreadPoolExecutor(arguments.jobs) as pool:
            survived = summary(pool.map(functools.partial(judge, **options), wanted), equivalent, arguments.json)
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
