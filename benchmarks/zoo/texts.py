"""Public English texts and recordings, from Debian packages where present, else from Python's own.

Nothing is downloaded. What is used depends on the machine, so every text carries its name, and
results are to be reported with it.
"""

from __future__ import annotations

import functools
import gzip
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_AUSTEN = Path("/usr/lib/R/site-library/janeaustenr/data/Rdata.rdb")
_JARGON = Path("/usr/share/doc/jargon-text/jargon.txt.gz")
_STRINGS = 16  # R's type code of a character vector
# Past the title page and the first pages, which a language model knows by heart.
_START = 20_000


class MissingText(FileNotFoundError):
    """A text's package is not installed."""


@dataclass(frozen=True)
class Text:
    """A text and where it comes from."""

    name: str
    body: str


@functools.cache
def public_text() -> Text:
    """Prose for perplexity: Austen's *Persuasion*, or else the Python language reference."""
    try:
        return Text("Persuasion, from character 20,000", austen()["Persuasion"][_START:])
    except MissingText:
        return Text("the Python reference (pydoc topics)", python_reference())


@functools.cache
def austen() -> dict[str, str]:
    """Jane Austen's six novels (public domain), title -> text, a blank line between paragraphs.

    Read from Debian's r-cran-janeaustenr without R; raises `MissingText` if it is absent.
    """
    if not _AUSTEN.exists():
        raise MissingText(f"{_AUSTEN} is absent: `apt-get install r-cran-janeaustenr` brings it")
    books = (_character_vector(chunk) for chunk in _r_chunks(_AUSTEN.read_bytes()))
    return {book[0].title(): _paragraphs("\n".join(book)) for book in books if book}


def _r_chunks(data: bytes) -> Iterator[bytes]:
    """The objects of an R lazy-load database: each a big-endian length and a zlib stream."""
    position = 0
    while position < len(data):
        stream = zlib.decompressobj()
        yield stream.decompress(data[position + 4 :])
        position = len(data) - len(stream.unused_data)


def _character_vector(data: bytes) -> list[str]:
    """Strings of an XDR-serialized R character vector; empty if it is another object."""
    if data[:2] != b"X\n":
        return []
    start = 14
    if struct.unpack_from(">i", data, 2)[0] == 3:  # version 3 names the native encoding
        start += 4 + struct.unpack_from(">i", data, start)[0]
    flags, count = struct.unpack_from(">ii", data, start)
    if flags & 0xFF != _STRINGS:
        return []
    position, strings = start + 8, []
    for _ in range(count):
        length = struct.unpack_from(">i", data, position + 4)[0]
        position += 8
        strings.append(data[position : position + max(length, 0)].decode("utf-8", "replace"))
        position += max(length, 0)  # a missing value has length -1 and no bytes
    return strings


def _paragraphs(text: str) -> str:
    paragraphs = (re.sub(r"\s+", " ", part).strip() for part in re.split(r"\n\s*\n", text))
    return "\n\n".join(part for part in paragraphs if part)


def python_reference() -> str:
    """Prose of the Python language reference (PSF licence), from the standard library."""
    from pydoc_data.topics import topics

    prose = []
    for _, topic in sorted(topics.items()):
        for paragraph in re.split(r"\n\s*\n", topic):
            # Indented blocks are code, and short ones headings.
            if paragraph[:1].isalpha() and len(paragraph) > 100:
                prose.append(re.sub(r"\s+", " ", paragraph.replace("*", "")).strip())
    return "\n\n".join(dict.fromkeys(prose))  # topics share whole sections


@functools.cache
def sentences(count: int = 500) -> list[str]:
    """`count` sentences of 40 to 300 characters, spread evenly over `public_text()`."""
    parts = re.split(r"(?<=[.!?])\s+", public_text().body)
    usable = list(dict.fromkeys(part for part in parts if 40 <= len(part) <= 300))
    return [usable[i * len(usable) // count] for i in range(min(count, len(usable)))]


@functools.cache
def jargon() -> list[tuple[str, str]]:
    """Headwords and definitions of the Jargon File 4.4.7 (public domain), from jargon-text.

    Raises `MissingText` if that Debian package is absent.
    """
    if not _JARGON.exists():
        raise MissingText(f"{_JARGON} is absent: `apt-get install jargon-text` brings it")
    text = gzip.decompress(_JARGON.read_bytes()).decode("utf-8", "replace")
    entries = re.split(r"(?m)^   :(?=[^:\n]+: )", text)[1:]
    return [entry for entry in map(_definition, entries) if entry is not None]


def sources() -> dict[str, str]:
    """What the evaluations read on this machine."""
    try:
        definitions = f"{len(jargon())} definitions of the Jargon File"
    except MissingText as error:
        definitions = f"none, sentences of the prose instead ({error})"
    return {"prose": public_text().name, "definitions": definitions}


def _definition(entry: str) -> tuple[str, str] | None:
    headword, _, rest = entry.partition(":")
    body = rest.partition("\n\n")[2]
    body = re.sub(r"\s+", " ", re.sub(r"[{}]", "", body)).strip()
    # A definition that names its headword would make finding it a matter of spelling.
    body = re.sub(rf"(?<!\w){re.escape(headword)}(?!\w)", "it", body, flags=re.IGNORECASE)
    return (headword, body) if len(body) >= 80 else None
