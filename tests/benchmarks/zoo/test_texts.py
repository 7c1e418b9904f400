"""Texts are read from the forms in which packages carry them, and there is always one."""

import gzip
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.zoo import texts


@pytest.fixture(autouse=True)
def no_caches() -> Iterator[None]:
    caches = (texts.public_text, texts.austen, texts.sentences, texts.jargon)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def character_vector(strings: list[str | None], version: int) -> bytes:
    data = b"X\n" + struct.pack(">iii", version, 0, 0)
    if version == 3:
        data += struct.pack(">i", 5) + b"UTF-8"
    data += struct.pack(">ii", 16, len(strings))
    for text in strings:
        encoded = (text or "").encode()
        data += struct.pack(">ii", 9, -1 if text is None else len(encoded)) + encoded
    return data


def r_database(objects: list[bytes]) -> bytes:
    return b"".join(struct.pack(">I", len(o)) + zlib.compress(o) for o in objects)


@pytest.mark.parametrize("version", [2, 3])
def test_austen_without_r(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    lines = ["EMMA", "", "Emma Woodhouse,", "handsome", "", None, "Café"]
    number = b"X\n" + struct.pack(">iii", 2, 0, 0) + struct.pack(">iid", 14, 1, 0.5)
    path = tmp_path / "Rdata.rdb"
    path.write_bytes(r_database([number, character_vector(lines, version)]))
    monkeypatch.setattr(texts, "_AUSTEN", path)
    assert texts.austen() == {"Emma": "EMMA\n\nEmma Woodhouse, handsome\n\nCafé"}


def test_there_is_prose_on_a_bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "_AUSTEN", tmp_path / "absent")
    with pytest.raises(texts.MissingText, match="r-cran-janeaustenr"):
        texts.austen()
    text = texts.public_text()
    assert "Python reference" in text.name
    assert len(text.body) > 100_000
    assert ">>>" not in text.body
    assert "\n\n\n" not in text.body
    monkeypatch.setattr(texts, "_JARGON", tmp_path / "absent")
    assert texts.sources()["prose"] == text.name
    assert texts.sources()["definitions"].startswith("none, sentences of the prose")
    sentences = texts.sentences(50)
    assert len(set(sentences)) == 50
    assert all(40 <= len(sentence) <= 300 for sentence in sentences)


JARGON = """The Jargon File

   :hack: 1. n.

   Originally, a quick job that produces what is needed, but not well. A hack
   is what {hacker}s write when nobody watches them at all.

   :short: adj.

   Too short.

   :kluge: /klooj/, n.

   A clever programming trick intended to solve a particular nasty case in an
   expedient, if not clear, manner.
"""


def test_jargon_definitions_do_not_name_their_headword(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "jargon.txt.gz"
    monkeypatch.setattr(texts, "_JARGON", path)
    with pytest.raises(texts.MissingText, match="jargon-text"):
        texts.jargon()
    path.write_bytes(gzip.compress(JARGON.encode()))
    entries = dict(texts.jargon())
    assert list(entries) == ["hack", "kluge"]
    assert entries["hack"].endswith("A it is what hackers write when nobody watches them at all.")
