"""A chat with a fake model, to be started in a terminal or a pipe by the tests beside it."""

import signal
import sys

from chat_fakes import TEMPLATE, FakeModel, fake_tokenizer, split

from flashnorm_mlx import cli
from flashnorm_mlx.chat import Settings, chat
from flashnorm_mlx.errors import FlashNormError

LONG = "Long answer: " + ", ".join(map(str, range(400)))


def answer(text: str) -> str:
    """`long` runs for a while, `escape` tries to clear the screen, `markup` looks like rich's; all else is echoed."""
    head, said, _ = split(text)
    fixed = {
        "long": LONG,
        "escape": "\x1b[2J\x9b2Jdone",
        "markup": "[red]x[/red][/]",
        "empty": "",
        "mark": "# H\n\n**b**",
    }
    return fixed.get(said) if said in fixed else f"You said <{said}> as {head.count('<user>') + 1}."


def main() -> int:
    options = dict(option.split("=", 1) for option in sys.argv[1:])
    pause = float(options.pop("pause", 0))
    template = None if options.pop("plain", None) else TEMPLATE
    limit = int(options.pop("limit", 0)) or None
    markdown = bool(options.pop("markdown", None))
    if options.pop("signals", None):
        for name in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(name, cli._interrupt)
    settings = Settings(temp=0, markdown=markdown, **{name: int(value) for name, value in options.items()})
    try:
        return chat(
            FakeModel(answer, pause=pause, limit=limit), fake_tokenizer(template), settings, name="[bold]fake[/]"
        )
    except KeyboardInterrupt:
        return 130
    except OSError:
        return 1
    except FlashNormError as error:
        print(f"flashnorm: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
