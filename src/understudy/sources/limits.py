"""How large a picture may be, and how long unpacking it may take: what lies beyond is skipped and listed.

A file of 100 KB can ask for 10 GB, or for a minute of a processor. So its sides are compared before it is unpacked, and
what cannot be told beforehand is unpacked in a process of its own (`decoder`), which is ended.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, fields

from understudy.artifacts import fingerprint
from understudy.errors import ConfigError, UnreadableImage

BYTES = 16
"""Memory that unpacking may take for each pixel allowed; a file on the disk is never larger either."""


@dataclass(frozen=True)
class ImageLimits:
    """The largest picture that is read. Each field is an environment variable, `UNDERSTUDY_IMAGE_` and its name."""

    pixels: int = 2**26  # width times height: 8192 x 8192
    side: int = 65_535  # the longer side
    # of a processor, for a file that is not unpacked in place (`decode`); not of a clock, which a busy machine would
    # make into another set of images
    seconds: float = 4.0

    @classmethod
    def of_environment(cls) -> ImageLimits:
        """The limits as the environment says, which reading processes inherit; else the defaults.

        Raises:
            ConfigError: a variable that is no number above 0.
        """
        given = {}
        for field in fields(cls):
            text = os.environ.get(name := variable(field.name))
            if text is None:
                continue
            try:
                value = float(text)
            except ValueError:
                value = math.nan
            if not 0 < value < math.inf or (field.name != "seconds" and value != int(value)):
                kind = "a number" if field.name == "seconds" else "a whole number"
                raise ConfigError(f"{name} is {kind} above 0; got '{text}'.")
            given[field.name] = value if field.name == "seconds" else int(value)
        return cls(**given)  # type: ignore[arg-type]

    @property
    def nbytes(self) -> int:
        """Of memory, for unpacking one file, and of the file itself."""
        return max(BYTES * self.pixels, 2**26)  # a small bound on pixels is none on the libraries

    @property
    def most_pixels(self) -> str:
        """The bound, for a sentence."""
        return f"an image may have {self.pixels:,} ({variable('pixels')})"

    def check(self, width: int, height: int) -> None:
        """Refuse a picture by its sides.

        Raises:
            UnreadableImage: too large; the sentence lacks its subject, which the caller knows.
        """
        if max(width, height) > self.side:
            raise UnreadableImage(
                f"has {width:,} x {height:,} pixels, and a side may have {self.side:,} ({variable('side')})."
            )
        if width * height > self.pixels:
            raise UnreadableImage(f"has {width:,} x {height:,} pixels: {self.most_pixels}.")

    def mark(self, listing: str) -> str:
        """The fingerprint of a set of images that are read within these limits: its own, where they are the usual."""
        return listing if self == ImageLimits() else fingerprint(listing, self.pixels, self.side, self.seconds)


def variable(field: str) -> str:
    """The environment variable of a limit."""
    return f"UNDERSTUDY_IMAGE_{field.upper()}"
