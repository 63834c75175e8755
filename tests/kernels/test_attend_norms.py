"""Norms of queries, keys and values in the attention kernel, heads of every size, and tokens that are there already."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import pytest
from kernel_runs import DTYPES
from kernels.test_attend import Case, check

from flashnorm_mlx.kernels.attend import MOST, Heads, Layout, attend, default_layout
from flashnorm_mlx.kernels.packed import Uncovered

#: Gemma 4's layers: of local ones, and of global ones, whose keys are their values.
LOCAL = Case(qk_norm="head", v_norm=True, dim=256, rotary=256, shared=4, window=20)
GLOBAL = Case(qk_norm="head", v_norm=True, dim=512, rotary=512, shared=4, k_eq_v=True)


@pytest.mark.parametrize("kind", ["head", "layer", "all"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_qk_norms(kind: str, dtype: str, device: str) -> None:
    """More heads than threads can read at once, and fewer; queries and keys of their own number of heads, and gains."""
    few = Case(dtype=dtype, qk_norm=kind, own_gains=True, length=3, kv_heads=3, shared=5, dim=128, rotary=128)
    for case in (few, replace(few, simdgroups=1, batch=2), replace(few, kv_heads=1, shared=1, simdgroups=16)):
        check(case)
        check(replace(case, rotary=32, splits=2, size=5.0))


@pytest.mark.parametrize("mean", [1.0, 5.0])
def test_a_mean_far_from_zero(mean: float, device: str) -> None:
    """A LayerNorm's squares are those around the mean."""
    check(Case(qk_norm="layer", dim=80, rotary=20, offset=mean, own_gains=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("traditional", [False, True])
def test_heads_that_are_not_rotated(traditional: bool, dtype: str, device: str) -> None:
    check(Case(dtype=dtype, rotary=0, traditional=traditional, length=2))
    check(Case(dtype=dtype, rotary=0, traditional=traditional, qk_norm="head"))


@pytest.mark.parametrize(("wrong", "right"), [("head", "all"), ("all", "head"), ("head", "layer")])
def test_control_another_qk_norm_is_seen(wrong: str, right: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(qk_norm=right, own_gains=True, kv_heads=2)
    check(case)
    monkeypatch.setattr(Case, "heads", property(lambda self, heads=case.heads: replace(heads, qk_norm=wrong)))
    with pytest.raises(AssertionError, match="tolerance"):
        check(case)


@pytest.mark.parametrize("dim", [16, 63, 65, 100, 176, 320, 1024])
def test_other_head_sizes_are_uncovered(dim: int) -> None:
    with pytest.raises(Uncovered, match=f"head_dim of {dim}"):
        Heads(2, 1, dim, scale=1.0, rotary_dims=dim).check()
    Heads(2, 1, 64, scale=1.0, rotary_dims=64).check()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [LOCAL, GLOBAL, replace(LOCAL, k_eq_v=True), replace(GLOBAL, k_eq_v=False)])
def test_values_are_normed(case: Case, dtype: str, device: str) -> None:
    """By themselves, not by their keys' scale or gain, also where they are the keys."""
    check(replace(case, dtype=dtype))
    check(replace(case, dtype=dtype, length=3, kv_heads=2, size=5.0, splits=2, group=2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [LOCAL, GLOBAL, Case(), Case(qk_norm="all", own_gains=True)])
def test_tokens_that_are_in_the_tail_already(case: Case, dtype: str, device: str) -> None:
    """Each new token sees itself and those before it, in the window; the tail stays as it is."""
    case = replace(case, dtype=dtype, shares=True)
    for waiting in (0, 7, 29):
        check(replace(case, waiting=waiting, length=3))
        check(replace(case, waiting=waiting, length=2, batch=2, padding=(0, 17), kv_heads=2, splits=3))
    check(replace(case, appended=0, waiting=0))


@pytest.mark.parametrize("capacity", [256, 4096])
@pytest.mark.parametrize("dim", [64, 256, 512])
def test_default_layouts_fit_a_threadgroup(dim: int, capacity: int, device: str) -> None:
    case = Case(dtype="float16", dim=dim, rotary=dim, shared=8, capacity=capacity, appended=100, splits=None)
    check(case)
    layout = default_layout(case.heads, capacity)
    assert layout.simdgroups * dim <= MOST and layout.group * layout.simdgroups <= 32


def test_more_than_a_threadgroups_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="more memory"):
        attend(*(mx.zeros(1) for _ in range(4)), GLOBAL.heads, layout=Layout(1, 1, 9))


@pytest.mark.parametrize(
    ("case", "wrong"),
    [
        (LOCAL, {"v_norm": False}),
        (replace(LOCAL, v_norm=False), {"v_norm": True}),
    ],
)
def test_control_other_forms_are_seen(
    case: Case, wrong: dict[str, bool], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Case, "heads", property(lambda self, heads=case.heads: replace(heads, **wrong)))
    with pytest.raises(AssertionError, match=r"tolerance|not equal"):
        check(case)
