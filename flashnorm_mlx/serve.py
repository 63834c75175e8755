"""mlx-lm's own HTTP server, running a model of ours."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from typing import Any

from .errors import FlashNormError


def serve(model: Any, tokenizer: Any, *, name: str, host: str, port: int) -> int:
    """Serve one loaded model until interrupted (OpenAI's chat completions, batching and prompt caches by mlx-lm).

    Args:
        name: the model's for clients, the only one in /v1/models.
    """
    from mlx_lm import server

    check_address(host, port)

    def load_ours(path: str, *, return_config: bool = False, **options: Any) -> tuple:
        return (model, tokenizer, {}) if return_config else (model, tokenizer)

    _mend(server, name)
    server.load = load_ours  # what the server's model provider calls for any model that a request names
    sys.argv = ["flashnorm serve", "--model", name, "--host", host, "--port", str(port)]
    server.main()
    return 0


def check_address(host: str, port: int) -> None:
    """Raise a FlashNormError where nothing can be served."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise FlashNormError(f"{host}:{port}: {error.strerror}; choose another with --host and --port") from None


def _mend(server: Any, name: str) -> None:
    """What a request of wrong types would end is the thread that all others wait for: refuse it, as others are.

    And the server would list all models in the hub's cache, though it answers by one.
    """
    handler, generator = server.APIHandler, server.ResponseGenerator
    validate, generate = handler.validate_model_parameters, generator._run_generate

    def checked(self: Any) -> None:
        validate(self)
        stop, messages = self.body.get("stop"), self.body.get("messages", [])
        if not (stop is None or isinstance(stop, str) or _all(str, stop)):
            raise ValueError("stop must be a string or a list of strings")
        if not _all(dict, messages):
            raise ValueError("messages must be a list of objects with role and content")

    def generate_or_end(self: Any) -> None:
        generate(self)
        if self._generation_failed:  # a server that can't answer any more is no use to whoever watches over it
            logging.error("flashnorm: generation failed, so the server ends")
            os._exit(1)

    def models(self: Any) -> None:
        self._set_completion_headers(200)
        self.end_headers()
        listed = [{"id": name, "object": "model", "created": self.created}]
        self.wfile.write(json.dumps({"object": "list", "data": listed}).encode())
        self.wfile.flush()

    handler.handle_models_request = models
    handler.validate_model_parameters, generator._run_generate = checked, generate_or_end


def _all(kind: type, values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)
