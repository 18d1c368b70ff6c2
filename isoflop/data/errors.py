"""DataError, and constants that every data module shares."""

from __future__ import annotations

EOT = "<|endoftext|>"


MAX_CHARS = 900_000  # the longest text that may be encoded: tiktoken panics at a run of 1,000,000 blanks


class DataError(ValueError):
    """A mistake or a failure the user can act on; the text is one line and says how."""
