"""Word wrap of text that arrives piece by piece."""

from __future__ import annotations

from rich.cells import cell_len


class WordWrap:
    """Breaks lines between words, where they would pass `width` cells. A word is handed on once it has ended.

    Wide characters (Chinese, Japanese, emoji) may stand at the start of a line, so each is a word of its own.
    """

    def __init__(self, width: int) -> None:
        self._width = max(width, 1)
        self._column = 0
        self._spaces = self._word = ""

    def feed(self, text: str) -> str:
        """What can be shown now that `text` has arrived."""
        out = ""
        for character in text:
            if character == "\n":
                out += self.flush() + "\n"
                self._column, self._spaces = 0, ""
            elif character in " \t":
                out += self.flush()
                self._spaces += " " if character == " " else "    "
            elif cell_len(character) == 2:
                out += self.flush()
                self._word = character
                out += self.flush()
            else:
                self._word += character
        return out

    def flush(self) -> str:
        """What is still held back."""
        word, self._word = self._word, ""
        if not word:
            return ""
        lead, size, self._spaces = self._spaces, cell_len(word), ""
        if self._column and self._column + len(lead) + size > self._width:
            lead, self._column = "\n", 0
        else:
            self._column += len(lead)
        self._column += size
        if self._column > self._width:  # a word longer than the line: the terminal breaks it
            self._column %= self._width
        return lead + word
