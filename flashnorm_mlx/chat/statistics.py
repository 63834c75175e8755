"""What an answer, or all of them, took: tokens, seconds, bytes; and how to say it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Statistics:
    """The cost of one answer, and why it ended.

    `finish` is "stop" (the model was done), "max_tokens", "context" (it is full) or "interrupted"; `kept` says whether
    the answer went into the conversation. `prompt` counts all tokens of the prompt, `reused` those of them that were
    in the cache. Seconds run from the call to the first token (`first_token`), over the prefill, and from the first
    token to the last (`decode_seconds`).
    """

    finish: str = "stop"
    kept: bool = True
    prompt: int = 0
    reused: int = 0
    generated: int = 0
    first_token: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    peak_memory: int = 0
    limit: int | None = None

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens a second, of those that went through the model."""
        return _rate(self.prompt - self.reused, self.prefill_seconds)

    @property
    def decode_rate(self) -> float:
        """Tokens a second after the first one."""
        return _rate(self.generated - 1, self.decode_seconds)

    @property
    def context(self) -> str:
        """How full the context is."""
        return f"{self.prompt + self.generated} of {self.limit or 'unlimited'}"

    def line(self) -> str:
        """All of it in one line, to stand below an answer."""
        return (
            f"{self.prompt} tokens in ({self.reused} reused) · first token {self.first_token:.2f} s · "
            f"prefill {self.prefill_rate:.1f} tok/s · {self.generated} tokens out · decode {self.decode_rate:.1f} tok/s"
            f" · peak {_memory(self.peak_memory)} · context {self.context}"
        )

    def rows(self) -> list[tuple[str, str]]:
        """Label and value of each figure."""
        return [
            ("prompt", f"{self.prompt} tokens, {self.reused} of them reused from the cache"),
            ("first token", f"{self.first_token:.2f} s"),
            ("prefill", f"{self.prefill_rate:.1f} tokens/s"),
            ("answer", f"{self.generated} tokens"),
            ("decode", f"{self.decode_rate:.1f} tokens/s"),
            ("peak memory", _memory(self.peak_memory)),
            ("context", f"{self.context} tokens"),
        ]


def total_rows(answers: list[Statistics]) -> list[tuple[str, str]]:
    """The same figures over all `answers`."""
    prompt, reused = sum(a.prompt for a in answers), sum(a.reused for a in answers)
    after_first = sum(max(a.generated - 1, 0) for a in answers)
    return [
        ("answers", str(len(answers))),
        ("prompt", f"{prompt} tokens, {reused} of them reused from the cache"),
        ("prefill", f"{_rate(prompt - reused, sum(a.prefill_seconds for a in answers)):.1f} tokens/s"),
        ("answered", f"{sum(a.generated for a in answers)} tokens"),
        ("decode", f"{_rate(after_first, sum(a.decode_seconds for a in answers)):.1f} tokens/s"),
        ("peak memory", _memory(max(a.peak_memory for a in answers))),
    ]


def _rate(tokens: int, seconds: float) -> float:
    return tokens / seconds if tokens > 0 and seconds > 0 else 0.0


def _memory(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
