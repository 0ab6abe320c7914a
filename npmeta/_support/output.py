"""What is said and shown: in any encoding, on a stream that may break, without control characters."""

from __future__ import annotations

import codecs
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast
from unicodedata import category

#: Name of the error handler: what an encoding has no byte for is written in ASCII.
READABLE = "npmeta.readable"

#: Letters and signs of formulas, tables and bars, as ASCII has them.
ASCII = {
    "−": "-",
    "×": "x",
    "·": "*",
    "½": "1/2",
    "√": "sqrt",
    "∞": "inf",
    "≤": "<=",
    "≥": ">=",
    "≠": "!=",
    "≈": "~",
    "∝": "~",
    "→": "->",
    "↔": "<->",
    "∂": "d",
    "Σ": "sum",
    "Δ": "Delta",
    "⋯": "...",
    "…": "...",
    "±": "+/-",
    "‖": "||",
    "∪": "|",
    "α": "alpha",
    "β": "beta",
    "γ": "gamma",
    "δ": "delta",
    "ε": "eps",
    "θ": "theta",
    "λ": "lambda",
    "μ": "mu",
    "ρ": "rho",
    "σ": "sigma",
    "φ": "phi",
    "⁻": "^-",
    "¹": "^1",
    "²": "^2",
    "³": "^3",
    "ᵀ": "^T",
    "ẑ": "z^",
    "✓": "ok",
    "✗": "wrong",
    "–": "-",
    "—": "-",
    "°": " deg",
    "∇": "grad ",
    **dict.fromkeys("‘’", "'"),
    **dict.fromkeys("“”", '"'),
    **dict.fromkeys("│┃║▏", "|"),
    **dict.fromkeys("─━═", "-"),
    **dict.fromkeys("┌┐└┘├┤┬┴┼", "+"),
    **dict.fromkeys("█▉▊▋▌▍▎", "#"),
}

#: What is not printed by itself, but belongs to words of some scripts and does nothing to a terminal.
JOINERS = "\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}"

#: Characters of a message at most, and how many of them are of its beginning.
LONGEST, BEGINNING = 1500, 1000


def _readable(error: UnicodeError) -> tuple[str | bytes, int]:
    """Of what cannot be encoded, the ASCII; by its number, where there is none."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    return "".join(ASCII.get(one) or _escaped(one) for one in characters), error.end


codecs.register_error(READABLE, _readable)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def printable(text: str, keep: str = "\n") -> str:
    """The text with control characters, marks of direction and the like escaped, but for ``keep``."""
    if text.isprintable():
        return text
    keep += JOINERS
    return "".join(
        one if one.isprintable() or one in keep or category(one) == "Zs" else _escaped(one)
        for one in text
    )


def one_line(message: object) -> str:
    """A message in one line of printable characters, no longer than a screen."""
    text = printable(" ".join(str(message).split()))
    if len(text) <= LONGEST:
        return text
    end = LONGEST - BEGINNING
    left_out = len(text) - LONGEST
    return f"{text[:BEGINNING]} ... ({left_out} characters left out) ... {text[-end:]}"


class Lasting:
    """A stream that is written to as long as it can be; what comes after that is dropped.

    Control characters are escaped, and what the encoding lacks is written in ASCII.

    Parameters
    ----------
    stream : file or None
        None, as where a program has no console, drops everything.

    Attributes
    ----------
    error : OSError, ValueError or None
        Why it can no longer be written to.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream
        self.error: OSError | ValueError | None = None

    def write(self, text: str) -> int:
        self.write_data(printable(text, "\n\r\t" if self.isatty() else "\n\t"))
        return len(text)

    def write_data(self, text: str) -> None:
        """Text of which no character is escaped, as a file is to have it."""
        if self.stream is None or self.error is not None:
            return
        try:
            try:
                self.stream.write(text)
            except UnicodeEncodeError as error:  # a stream that could not be told of the handler
                self.stream.write(text.encode(error.encoding, READABLE).decode(error.encoding))
        except (OSError, ValueError) as error:  # ValueError: it is closed
            self._give_up(error)

    def flush(self) -> None:
        if self.stream is None or self.error is not None:
            return
        try:
            self.stream.flush()
        except (OSError, ValueError) as error:
            self._give_up(error)

    def isatty(self) -> bool:
        with suppress(OSError, ValueError):
            return self.stream is not None and self.stream.isatty()
        return False

    @property
    def lost(self) -> OSError | ValueError | None:
        """Why somebody who waits for it has not got everything; a reader who has left does not wait."""
        # EINVAL is what Windows says of a pipe without a reader.
        left = isinstance(self.error, OSError) and self.error.errno in (errno.EPIPE, errno.EINVAL)
        return None if left else self.error

    def _give_up(self, error: OSError | ValueError) -> None:
        """Remember why, and let go of what is in the stream's buffers: Python would try it again."""
        self.error = error
        assert self.stream is not None
        with suppress(OSError, ValueError, AttributeError):
            number = self.stream.fileno()
            kept, nowhere = os.dup(number), os.open(os.devnull, os.O_WRONLY)
            try:
                os.dup2(nowhere, number)
                self.stream.flush()
            finally:
                os.dup2(kept, number)
                os.close(kept)
                os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def lasting_streams() -> Iterator[Lasting]:
    """Standard output and standard error cannot fail inside; gives the first.

    They are as they were afterwards.
    """
    opened = _fill_gaps()
    before = sys.stdout, sys.stderr
    told = [(stream, _tell(stream)) for stream in before]
    out, err = Lasting(sys.stdout), Lasting(sys.stderr)
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    try:
        yield out
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before
        for stream, errors in told:
            if errors is not None:
                with suppress(OSError, ValueError):
                    stream.reconfigure(errors=errors)  # type: ignore[union-attr]  # it has been
        for number in opened:
            os.close(number)


def _tell(stream: TextIO | None) -> str | None:
    """Have a stream write in ASCII what its encoding lacks; returns how it did, to be restored."""
    with suppress(OSError, ValueError, AttributeError):
        errors: str = stream.errors  # type: ignore[union-attr, assignment]  # else: AttributeError
        stream.reconfigure(errors=READABLE)  # type: ignore[union-attr]  # the same
        return errors
    return None


def _fill_gaps() -> list[int]:
    """Open the null device as each standard stream that is closed.

    Else the next file that is opened gets its number, and with it what libraries and workers print.
    """
    opened = []
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened.append(os.open(os.devnull, os.O_RDWR))
    return opened
