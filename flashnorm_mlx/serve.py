"""mlx-lm's own HTTP server, running a model of ours."""

from __future__ import annotations

import contextlib
import socket
import sys
from pathlib import Path
from typing import Any

from .errors import FlashNormError


def serve(model: Any, tokenizer: Any, *, host: str, port: int) -> int:
    """Serve one loaded model until interrupted (OpenAI's chat completions, batching and prompt caches by mlx-lm)."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from mlx_lm import server

    with contextlib.suppress(OSError):  # the server lists this folder for /v1/models, and fails where there is none
        Path(HF_HUB_CACHE).mkdir(parents=True, exist_ok=True)
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise FlashNormError(f"{host}:{port}: {error.strerror}; choose another with --host and --port") from None

    def load_ours(path: str, *, return_config: bool = False, **options: Any) -> tuple:
        return (model, tokenizer, {}) if return_config else (model, tokenizer)

    server.load = load_ours  # what the server's model provider calls for any model that a request names
    sys.argv = ["flashnorm serve", "--model", "flashnorm", "--host", host, "--port", str(port)]
    server.main()
    return 0
