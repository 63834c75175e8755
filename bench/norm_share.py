"""What part of a decode step the norms take: by removing them.

    python bench/norm_share.py
    python bench/norm_share.py --shape Gemma-3-1B --dtype bfloat16 --bits 0

``baseline`` has its norms as operations of their own, ``none`` none of those that FlashNorm takes off the path (norms
on q and k and post-norms stay), and is otherwise the same. ``norms`` is the share of baseline's step that none doesn't
take, ``flashnorm`` the share that flashnorm doesn't. Writes norm_share.json in bench/results/<device>.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from record import save_row
from reports import about, arguments, for_each, measured, possible, settled

from flashnorm_mlx.measure.loop import Trial
from flashnorm_mlx.measure.report import between


def parse(given: list[str] | None = None) -> Namespace:
    arms = ["baseline", "flashnorm", "none"]
    parser = arguments(__doc__, shapes=["SmolLM2-135M", "Llama-3.2-1B"], bits=[4, 8, 0], arms=arms)
    parser.add_argument("--depth", type=int, default=16, help="tokens in front (default 16)")
    parser.add_argument("--tokens", type=int, default=128, help="decoded in a repetition (default 128)")
    parser.add_argument("--repeat", type=int, default=9, help="repetitions (default 9)")
    args = parser.parse_args(given)
    if not {"baseline", "none"} <= set(args.arms):
        parser.error("--arms: what norms take is told from baseline and none")
    return settled(args, depth=4, tokens=3, repeat=2, bits=[4, 0])


def saved(over_baseline: dict[str, Any] | None) -> dict[str, Any] | None:
    """The share of baseline's time that an arm doesn't take, from their speeds' ratio: ``1 - 1/ratio``."""
    if over_baseline is None:
        return None
    return {key: None if ratio is None else 1 - 1 / ratio for key, ratio in over_baseline.items()}


def shares(row: dict[str, Any]) -> dict[str, Any]:
    """What a report's decode row says about the norms."""
    arms = row["arms"]
    return {
        "step_us": {arm: 1e6 / found["tokens_per_second"]["median"] for arm, found in arms.items()},
        "launches": {arm: found["launches"] for arm, found in arms.items()},
        "norms": saved(arms["none"].get("over_baseline")),
        "flashnorm": saved(arms.get("flashnorm", {}).get("over_baseline")),
        "recovered": row["recovered"],
        "runs": {arm: found["tokens_per_second"]["runs"] for arm, found in arms.items()},
    }


def main() -> None:
    args = parse()

    def work(shape: str, bits: int) -> bool:
        facts = about(shape, bits, args) | {"depth": args.depth}
        trial = Trial("decode", 0, args.tokens, args.depth, 1)
        report = measured(shape, bits, possible(shape, [trial]), args, args.repeat)
        for found in map(shares, report["rows"]):
            sizes = {"tokens": args.tokens, "repeat": args.repeat}
            save_row(args.out, "norm_share", facts | sizes | found, tuple(facts))
            print(f"norms {between(found['norms'])}, flashnorm saves {between(found['flashnorm'])}")
        return bool(report["interrupted"])

    for_each(args, work)


if __name__ == "__main__":
    main()
