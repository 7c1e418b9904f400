"""Recordings become 16 kHz mono with their transcripts."""

import wave
from pathlib import Path

import numpy as np
import pytest
from scipy.io import wavfile

from benchmarks.zoo import packages, speech


def write(path: Path, samples: np.ndarray, rate: int) -> None:
    """samples: int16 [n, channels]."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())


def test_librivox_transcripts_become_sentences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "one.wav", np.array([[0], [16384], [-32768]]), speech.RATE)
    (tmp_path / "transcription").write_text("<s> he was not ill </s> (one)\n")
    monkeypatch.setattr(speech, "_LIBRIVOX", tmp_path)
    (clip,) = speech.clips()
    assert (clip.name, clip.text) == ("one", "He was not ill.")
    assert clip.samples.tolist() == [0, 0.5, -1]
    (tmp_path / "transcription").write_text("something else\n")
    with pytest.raises(ValueError, match="another form"):
        speech.clips()


def test_stereo_at_another_rate_from_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "samples" / "audio" / "en"
    folder.mkdir(parents=True)
    ramp = np.arange(2400)
    write(folder / "hello.wav", np.stack([ramp, 3 * ramp], 1), 24_000)
    (folder / "hello.txt").write_text("Hello, world!\n")
    monkeypatch.setattr(speech, "_LIBRIVOX", tmp_path / "absent")
    monkeypatch.setattr(packages, "folder", lambda *_: tmp_path)
    (clip,) = speech.clips()
    assert speech.source() == "1 clips of pytest-audioeval"
    assert clip.text == "Hello, world!"
    assert len(clip.samples) == 1600
    # 1.5 samples of 24 kHz for one of 16 kHz, and the mean of the channels is twice the ramp.
    assert clip.samples[1000] == pytest.approx(2 * 1500 / 32768, rel=1e-4)


@pytest.mark.parametrize("dtype", ["f4", "i2"])
def test_samples_of_floats_and_integers(tmp_path: Path, dtype: str) -> None:
    ramp = np.array([0, 0.5, -1])
    full = 32768 if dtype == "i2" else 1
    wavfile.write(tmp_path / "one.wav", speech.RATE, (ramp * full).astype(dtype))
    assert speech._samples(tmp_path / "one.wav").tolist() == ramp.tolist()


def test_other_samples_are_refused(tmp_path: Path) -> None:
    wavfile.write(tmp_path / "one.wav", speech.RATE, np.zeros(3, "i4"))
    with pytest.raises(ValueError, match=r"one\.wav has samples of int32"):
        speech._samples(tmp_path / "one.wav")


def test_no_recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: str) -> Path:
        raise packages.MissingPackage("absent")

    monkeypatch.setattr(speech, "_LIBRIVOX", tmp_path / "absent")
    monkeypatch.setattr(packages, "folder", missing)
    with pytest.raises(speech.MissingSpeech, match="apt-get install pocketsphinx-testdata"):
        speech.clips()
    assert "no recordings" in speech.source()
