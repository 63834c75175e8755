"""The runner that changes kernels to see whether their tests notice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from msl.mutate import DROPPED, main, mutants, read_equivalent

SOURCE = """\
// a + b in a comment stays
#define SIZE (3 + 4)
static_assert(SIZE + 1 == 8, "as do assertions");
const device float* p = x + i * 0x0f;  // 1 + 1
if (lane == 0) y[i] = fma(a.x, 0.5f, b);
threadgroup_barrier(mem_flags::mem_threadgroup);
sum += put(i, j) + t[r][c];
"""


def test_lines_are_changed_one_thing_at_a_time() -> None:
    changed = {(mutant.line, mutant.after) for mutant in mutants("k.msl", SOURCE)}
    assert {line for line, _ in changed} == {4, 5, 6, 7}
    assert changed >= {
        (4, "const device float* p = x - i * 0x0f;"),
        (4, "const device float* p = x + i / 0x0f;"),
        (4, "const device float* p = x + i * 0x7;"),
        (5, "if (lane != 0) y[i] = fma(a.x, 0.5f, b);"),
        (5, "if (!(lane == 0)) y[i] = fma(a.x, 0.5f, b);"),
        (5, "if (lane == 1) y[i] = fma(a.x, 0.5f, b);"),
        (5, "if (lane == 0) y[i] = fma(a.y, 0.5f, b);"),
        (5, "if (lane == 0) y[i] = fma(a.x, 1.5f, b);"),
        (5, DROPPED + "if (lane == 0) y[i] = fma(a.x, 0.5f, b);"),
        (6, DROPPED + "threadgroup_barrier(mem_flags::mem_threadgroup);"),
        (6, "threadgroup_barrier(mem_flags::mem_none);"),
        (7, "sum += put(j, i) + t[r][c];"),
        (7, "sum += put(i, j) + t[c][r];"),
        (7, "sum -= put(i, j) + t[r][c];"),
        (7, DROPPED + "sum += put(i, j) + t[r][c];"),
    }
    for mutant in mutants("k.msl", SOURCE):
        text = SOURCE[: mutant.start] + mutant.text + SOURCE[mutant.end :]
        different = [
            n for n, pair in enumerate(zip(text.split("\n"), SOURCE.split("\n"), strict=True)) if len({*pair}) > 1
        ]
        assert different == [mutant.line - 1]


def test_equivalent_mutants_need_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "equivalent.txt"
    path.write_text("# a comment\nk.msl: x = a: b + 1;\n    because\n    of this\n\n")
    assert read_equivalent(path) == {("k.msl", "x = a: b + 1;"): "because of this"}
    path.write_text("k.msl: x = 1;\n")
    with pytest.raises(SystemExit, match=r"no reason given for k\.msl: x = 1;"):
        read_equivalent(path)


def test_every_known_equivalent_has_a_reason() -> None:
    read_equivalent(Path(__file__).parent / "equivalent.txt")


@pytest.mark.parametrize("good", [True, False])
def test_survivors_are_reported(good: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources, known, tests = tmp_path / "source", tmp_path / "equivalent.txt", tmp_path / "test_it.py"
    sources.mkdir()
    (sources / "k.msl").write_text("y = a + b;\nz = c - d;\n")
    known.write_text(f"k.msl: {DROPPED}y = a + b;\n    not needed\nk.msl: y = gone;\n    was there once\n")
    keep = "y = a + b;\\nz = c - d;" if good else "y = a + b;"
    tests.write_text(
        "import os, pathlib\ndef test_it():\n"
        f"    assert '{keep}' in (pathlib.Path(os.environ['FLASHNORM_KERNEL_SOURCES']) / 'k.msl').read_text()\n"
    )
    arguments = ["--sources", str(sources), "--equivalent", str(known), "--json", str(tmp_path / "out.json")]
    assert main([*arguments, "--tests", str(tests)]) == (0 if good else 1)
    out = capsys.readouterr().out
    assert "no mutant is this any more: k.msl: y = gone;" in out
    said = json.loads((tmp_path / "out.json").read_text())
    assert (said["mutants"], said["equivalent"], said["survived"]) == (3, 1, 0 if good else 2)
    assert good or "k.msl:2: z = c - d;\n      -> z = c + d;" in out.split("survived:")[-1]
    assert main([*arguments, "--list", "--limit", "2", "--seed", "1"]) == 0
    assert capsys.readouterr().out.count("k.msl:") == 3  # and the stale entry


def test_tests_have_to_pass_before_anything_is_changed(tmp_path: Path) -> None:
    (tmp_path / "k.msl").write_text("y = a + b;\n")
    (tmp_path / "test_it.py").write_text("def test_it():\n    assert False\n")
    with pytest.raises(SystemExit, match="have to pass before"):
        main(
            ["--sources", str(tmp_path), "--tests", str(tmp_path / "test_it.py"), "--json", str(tmp_path / "out.json")]
        )
    with pytest.raises(SystemExit, match="no kernels in"):
        main(["--sources", str(tmp_path / "empty")])
