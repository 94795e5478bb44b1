# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Audio: files of every container, and what they say of themselves."""

import io
import struct
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from modeling_crossfuse.media_audio import load_audio


soundfile = pytest.importorskip("soundfile")

RATE = 8000
WHERE = "`audio` of row 7"


def tone(seconds: float = 0.5, rate: int = RATE) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)


def write_container(path, codec: str, rate: int, channels: np.ndarray, picture: bool = False) -> bytes:
    """A file of these channels, `(channels, samples)`, after a picture if it has one."""
    av = pytest.importorskip("av")
    layout = {1: "mono", 2: "stereo"}[len(channels)]
    with av.open(str(path), "w") as container:
        if picture:
            video = container.add_stream("mpeg4", rate=10)
            video.width = video.height = 16
            video.pix_fmt = "yuv420p"
        stream = container.add_stream(codec, rate=rate, layout=layout, bit_rate=128_000)
        if picture:
            frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
            container.mux(video.encode(frame))
            container.mux(video.encode())
        frame = av.AudioFrame.from_ndarray(channels.astype(np.float32), format="fltp", layout=layout)
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path.read_bytes()


def wav(samples: np.ndarray, rate: int = RATE, format: str = "WAV", subtype: str = "PCM_16", **options) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, subtype=subtype, **options)
    return file.getvalue()


def wav64(name: bytes, order: str) -> bytes:
    """A WAV file of integers of 64 bits, which soundfile can't read."""
    samples = (tone() * 2**62).astype(f"{order}i8").tobytes()
    header = struct.pack(f"{order}4sIHHIIHH4sI", b"fmt ", 16, 1, 1, RATE, 8 * RATE, 8, 64, b"data", len(samples))
    return struct.pack(f"{order}4sI", name, 4 + len(header) + len(samples)) + b"WAVE" + header + samples


# Containers


@pytest.mark.parametrize(
    ("name", "codec", "rate"),
    [
        ("clip.m4a", "aac", 44100),
        ("clip.aac", "aac", 44100),
        ("clip.mp4", "aac", 16000),
        ("clip.mov", "alac", 8000),
        ("clip.wma", "wmav2", 44100),
        ("clip.webm", "libopus", 48000),
        ("clip.mka", "ac3", 48000),
        ("clip.avi", "mp2", 32000),
    ],
)
def test_audio_of_every_container(name, codec, rate, tmp_path):
    expected = tone(rate=rate)
    data = write_container(
        tmp_path / name, codec, rate, np.stack([1.5 * expected, 0.5 * expected]), name == "clip.mp4"
    )
    for sample in (str(tmp_path / name), data, {"bytes": data, "path": name}):
        audio, found = load_audio(WHERE, sample)
        assert found == rate and audio.ndim == 1 and audio.dtype == np.float32
        # Codecs add silence at both ends.
        similarity = np.correlate(audio, expected) if len(audio) >= len(expected) else np.correlate(expected, audio)
        assert abs(len(audio) - len(expected)) < 0.1 * rate
        assert similarity.max() > 0.8 * (expected**2).sum()
        assert 0.4 < np.abs(audio).max() < 0.7


def test_a_file_without_audio(tmp_path):
    pytest.importorskip("av")
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "clip.gif")
    with pytest.raises(
        ValueError, match=r"^`audio` of row 7 \(.*clip.gif\) is not a readable audio file: it has no a"
    ):
        load_audio(WHERE, tmp_path / "clip.gif")


def test_pyav_is_missing(monkeypatch, tmp_path):
    data = write_container(tmp_path / "clip.m4a", "aac", 44100, tone()[None])
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"reading `audio` of row 7 \(clip.m4a\) needs PyAV; .*crossfuse\[video\]"):
        load_audio(WHERE, {"bytes": data, "path": "clip.m4a"})
    assert load_audio(WHERE, wav(tone()))[1] == RATE


# Formats of samples


@pytest.mark.parametrize(
    ("format", "subtype", "options"),
    [
        ("WAV", "PCM_16", {}),
        ("WAV", "PCM_24", {}),
        ("WAV", "PCM_32", {}),
        ("WAV", "PCM_U8", {}),
        ("WAV", "FLOAT", {}),
        ("WAV", "DOUBLE", {}),
        ("WAV", "ULAW", {}),
        ("WAV", "ALAW", {}),
        ("WAV", "PCM_24", {"endian": "BIG"}),
        ("WAV", "FLOAT", {"endian": "BIG"}),
        ("WAVEX", "PCM_16", {}),
        ("RF64", "PCM_16", {}),
        ("W64", "PCM_16", {}),
        ("AIFF", "PCM_S8", {}),
        ("AU", "PCM_16", {}),
        ("CAF", "PCM_32", {}),
        ("FLAC", "PCM_24", {}),
        ("OGG", "VORBIS", {}),
        ("MP3", "MPEG_LAYER_III", {}),
    ],
)
def test_every_format_of_samples(format, subtype, options, monkeypatch):
    said = []
    monkeypatch.setattr("modeling_crossfuse.media_audio.logger.warning_once", said.append)
    clip = tone()
    stereo = np.stack([1.5 * clip, 0.5 * clip], axis=1)
    audio, rate = load_audio(WHERE, wav(stereo, format=format, subtype=subtype, **options))
    assert rate == RATE and not said
    lossy = format in ("OGG", "MP3")
    np.testing.assert_allclose(audio[100:-100], clip[100:-100], atol=0.06 if lossy else 0.03)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (wav(tone())[:30], r" \(clip.wav\) is not a readable audio file: [^<]*$"),
        (wav(tone(), format="FLAC")[:300], r" \(clip.wav\) is not a readable audio file: [^<]*$"),
        (wav64(b"RIFF", "<"), r" \(clip.wav\) is not a readable audio file: File contains data in an unimplemented f"),
        (wav64(b"RIFX", ">"), r" \(clip.wav\) is not a readable audio file: File contains data in an unimplemented f"),
        (b"not audio", r" \(clip.wav\) is not a readable audio file: [^<]*$"),
        (wav(np.zeros(0)), r" \(clip.wav\) is empty"),
        (wav(np.array([0, np.nan, 0.5]), subtype="FLOAT"), r" \(clip.wav\) has values that are NaN or infinite"),
        (wav(np.array([0, 12000.0]), subtype="FLOAT"), r" \(clip.wav\) has floats up to 12000; expected -1 to 1"),
    ],
    ids=["header", "cut", "64 bits", "big endian", "text", "empty", "nan", "loud"],
)
def test_files_that_cannot_be_right(data, message):
    pytest.importorskip("av")
    with pytest.raises(ValueError, match="^`audio` of row 7" + message):
        load_audio(WHERE, {"bytes": data, "path": "clip.wav"})


def test_raw_audio():
    with pytest.raises(ValueError, match=r"^`audio` of row 7 \(clip.raw\) is raw audio, by its name"):
        load_audio(WHERE, {"bytes": b"\0\1" * 800, "path": "clip.raw"})


def test_flac_of_32_bits(tmp_path):
    """Which libsndfile can't read."""
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "clip.flac"), "w") as container:
        stream = container.add_stream("flac", rate=RATE, layout="mono", options={"strict": "-2"})
        stream.codec_context.format = "s32"
        frame = av.AudioFrame.from_ndarray((tone() * 2**31).astype(np.int32)[None], format="s32", layout="mono")
        frame.sample_rate = RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    audio, rate = load_audio(WHERE, tmp_path / "clip.flac")
    assert rate == RATE
    np.testing.assert_allclose(audio, tone(), atol=1e-6)


@pytest.mark.parametrize("format", ["WAV", "AIFF", "AU", "W64", "RF64", "MP3"])
def test_a_file_that_was_cut_off(format, monkeypatch):
    said = []
    monkeypatch.setattr("modeling_crossfuse.media_audio.logger.warning_once", said.append)
    subtype = "MPEG_LAYER_III" if format == "MP3" else "PCM_16"
    data = wav(tone(2), format=format, subtype=subtype)
    audio, _ = load_audio(WHERE, {"bytes": data[: len(data) // 2], "path": "clip"})
    assert 0.6 * RATE < len(audio) < 1.1 * RATE
    assert len(said) == 1 and f"{WHERE} (clip) ends after {len(audio) / RATE:.2f} s, before" in said[0]


def test_a_stream_whose_length_was_not_known(monkeypatch):
    said = []
    monkeypatch.setattr("modeling_crossfuse.media_audio.logger.warning_once", said.append)
    data = wav(tone())
    for unknown in (0xFFFFFFFF, 0x7FFFF000):
        stream = data[:40] + struct.pack("<I", unknown) + data[44:]
        assert len(load_audio(WHERE, stream)[0]) == len(tone()) and not said


def test_a_container_that_was_cut_off(monkeypatch, tmp_path):
    said = []
    monkeypatch.setattr("modeling_crossfuse.media_video.logger.warning_once", said.append)
    data = write_container(tmp_path / "clip.webm", "libopus", 48000, tone(2, 48000)[None])
    load_audio(WHERE, data)
    assert not said
    audio, rate = load_audio(WHERE, {"bytes": data[: len(data) // 2], "path": "clip.webm"})
    assert 0.5 < len(audio) / rate < 1.5
    assert f"{WHERE} (clip.webm) ends after" in said[0]


# Decoders and arrays


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_a_decoder(channels):
    clip = torch.from_numpy(tone()).float()
    weights = torch.linspace(0.5, 1.5, channels) if channels > 1 else torch.ones(1)
    decoded = SimpleNamespace(data=weights[:, None] * clip, sample_rate=RATE)
    audio, rate = load_audio(WHERE, SimpleNamespace(get_all_samples=lambda: decoded))
    assert rate == RATE
    np.testing.assert_allclose(audio, clip, atol=1e-6)
    short = SimpleNamespace(data=torch.tensor([[0.5], [0.25]]), sample_rate=RATE)  # two channels of one sample
    assert load_audio(WHERE, SimpleNamespace(get_all_samples=lambda: short))[0].tolist() == [0.375]


def test_a_decoder_that_fails():
    def fail():
        raise RuntimeError("Could not push packet to decoder")

    with pytest.raises(ValueError, match=r"^`audio` of row 7 is audio that can't be decoded: Could not push packet"):
        load_audio(WHERE, SimpleNamespace(get_all_samples=fail))


def test_torchcodec(tmp_path):
    try:
        from torchcodec.decoders import AudioDecoder
    except (ImportError, OSError, RuntimeError):
        pytest.skip("torchcodec is not installed, or finds no FFmpeg")
    clip = tone()
    (tmp_path / "clip.wav").write_bytes(wav(np.stack([1.5 * clip, 0.5 * clip], axis=1)))
    audio, rate = load_audio(WHERE, AudioDecoder(str(tmp_path / "clip.wav")))
    assert rate == RATE
    np.testing.assert_allclose(audio, clip, atol=1e-4)
    write_container(tmp_path / "clip.m4a", "aac", 44100, tone(rate=44100)[None])
    decoded = load_audio(WHERE, AudioDecoder(str(tmp_path / "clip.m4a")))
    read = load_audio(WHERE, tmp_path / "clip.m4a")
    assert decoded[1] == read[1]
    np.testing.assert_allclose(decoded[0], read[0], atol=1e-4)


def test_axes_that_can_be_read_two_ways():
    with pytest.raises(ValueError, match=r"^`audio` of row 7 has shape \(4, 4\); .*two axes of which the shorter"):
        load_audio(WHERE, np.zeros((4, 4)))
