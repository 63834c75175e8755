"""A conversation in the terminal, or through a pipe, with any model that has mlx-lm's interface."""

from .settings import Settings
from .terminal import chat

__all__ = ["Settings", "chat"]
