"""Short English recordings with transcripts, as 16 kHz mono."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.io import wavfile

from benchmarks.zoo import packages

RATE = 16_000
_LIBRIVOX = Path("/usr/share/pocketsphinx/test/data/librivox")


class MissingSpeech(FileNotFoundError):
    """No recording is installed."""


@dataclass(frozen=True)
class Clip:
    """Samples fp32 [n] at `RATE`, and what is said."""

    name: str
    samples: np.ndarray
    text: str


def source() -> str:
    """Which recordings `clips()` gives on this machine."""
    try:
        found = clips()
    except MissingSpeech as error:
        return str(error)
    package = "pocketsphinx-testdata" if _LIBRIVOX.exists() else "pytest-audioeval"
    return f"{len(found)} clips of {package}"


def clips() -> list[Clip]:
    """LibriVox clips of Debian's pocketsphinx-testdata, else those of pytest-audioeval.

    Raises `MissingSpeech`, saying what to install, if neither is there.
    """
    if _LIBRIVOX.exists():
        lines = (_LIBRIVOX / "transcription").read_text().splitlines()
        return [_librivox(line) for line in lines]
    try:
        folder = packages.folder("pytest_audioeval", "pytest-audioeval==0.1.3")
    except packages.MissingPackage as error:
        raise MissingSpeech(
            "no recordings: `apt-get install pocketsphinx-testdata`, or"
            " `pip install --no-deps pytest-audioeval==0.1.3`"
        ) from error
    paths = sorted((folder / "samples" / "audio" / "en").glob("*.wav"))
    return [Clip(p.stem, _samples(p), p.with_suffix(".txt").read_text().strip()) for p in paths]


def _librivox(line: str) -> Clip:
    match = re.fullmatch(r"<s> (.*?) *</s> \((.*)\)", line)
    if match is None:
        raise ValueError(f"{_LIBRIVOX / 'transcription'} has a line of another form: {line!r}")
    said, name = match.groups()
    # The transcripts are bare lower-case words; Whisper writes sentences.
    return Clip(name, _samples(_LIBRIVOX / f"{name}.wav"), f"{said.capitalize()}.")


def _samples(path: Path) -> np.ndarray:
    """Mono samples in [-1, 1] at `RATE`, resampled linearly if the file has another rate.

    Raises:
        ValueError: samples are neither 16-bit integers nor floats.
    """
    with warnings.catch_warnings():  # of chunks that hold no samples
        warnings.simplefilter("ignore", wavfile.WavFileWarning)
        rate, frames = wavfile.read(path)
    if frames.dtype != np.int16 and frames.dtype.kind != "f":
        raise ValueError(f"{path} has samples of {frames.dtype}, not of int16 or float32")
    full = 32768 if frames.dtype == np.int16 else 1
    mono = frames.reshape(len(frames), -1).mean(1) / full
    seconds = np.arange(0, len(mono) / rate, 1 / RATE)
    return np.interp(seconds, np.arange(len(mono)) / rate, mono).astype(np.float32)
