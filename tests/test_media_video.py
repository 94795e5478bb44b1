# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Videos: what their containers say, and frames evenly spread over time."""

import io
import struct
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_crossfuse.media_video import load_frames


av = pytest.importorskip("av")

CONSTANT = [100 * index for index in range(30)]
# Milliseconds: one second of 50 frames, and then 8 of one.
VARIABLE = [*range(0, 1000, 20), *range(1000, 9000, 1000)]


def shades(frames) -> list[int]:
    return [round(float(np.asarray(frame, dtype=float).mean())) for frame in frames]


def corners() -> np.ndarray:
    """A picture that is another one in each orientation, of 32 x 48 pixels."""
    picture = np.zeros((32, 48, 3), dtype=np.uint8)
    picture[:16, :24], picture[:16, 24:], picture[16:, :24] = 240, 160, 80
    return picture


def grey(index: int, size: int = 16) -> np.ndarray:
    return np.full((size, size, 3), 3 * index, dtype=np.uint8)


def add_video(container, codec: str, height: int, width: int, pix_fmt: str, options: dict | None = None):
    stream = container.add_stream(codec, rate=10, options=options or {})
    stream.height, stream.width, stream.pix_fmt = height, width, pix_fmt
    stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
    return stream


def encode(container, stream, pictures, times):
    for picture, time in zip(pictures, times):
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = time, Fraction(1, 1000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def write_video(path, times, pictures=None, codec="ffv1", pix_fmt="bgr0", options=None, **metadata):
    pictures = [grey(index) for index in range(len(times))] if pictures is None else pictures
    with av.open(str(path), "w") as container:
        container.metadata.update(metadata)
        stream = add_video(container, codec, *pictures[0].shape[:2], pix_fmt, options)
        encode(container, stream, pictures, times)
    return path


# What the container says


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ((1, 0, 0, 1), lambda x: x),
        ((0, 1, -1, 0), lambda x: np.rot90(x, -1)),
        ((-1, 0, 0, -1), lambda x: np.rot90(x, 2)),
        ((0, -1, 1, 0), lambda x: np.rot90(x)),
        ((-1, 0, 0, 1), np.fliplr),
        ((1, 0, 0, -1), np.flipud),
        ((0, 1, 1, 0), lambda x: x.transpose(1, 0, 2)),
        ((0, -1, -1, 0), lambda x: np.rot90(x, 2).transpose(1, 0, 2)),
    ],
)
def test_frames_are_upright(matrix, expected, tmp_path):
    path = write_video(tmp_path / "phone.mp4", [0, 100], [corners()] * 2, "mpeg4", "yuv420p")
    data = path.read_bytes()
    begin = data.index(b"tkhd") + 44  # of the matrix in the track's header
    (a, b, c, d), one = matrix, 1 << 16
    data = (
        data[:begin] + struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30) + data[begin + 36 :]
    )
    for frame in load_frames("video", data, None):
        np.testing.assert_allclose(np.asarray(frame, dtype=int), expected(corners().astype(int)), atol=40)


def test_the_main_stream(tmp_path):
    path = tmp_path / "several.mkv"
    with av.open(str(path), "w") as container:
        small, main = (add_video(container, "ffv1", size, size, "bgr0") for size in (16, 64))
        main.disposition = av.stream.Disposition.default.value
        for index in range(4):
            for stream, size in ((small, 16), (main, 64)):
                frame = av.VideoFrame.from_ndarray(grey(index, size), format="rgb24")
                frame.pts, frame.time_base = 100 * index, Fraction(1, 1000)
                container.mux(stream.encode(frame))
        container.mux(small.encode())
        container.mux(main.encode())
    frames = load_frames("video", path, None)
    assert [frame.size for frame in frames] == [(64, 64)] * 4 and shades(frames) == [0, 3, 6, 9]


def test_a_file_without_a_video(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "clip.wav", np.zeros(800), 8000)
    with pytest.raises(
        ValueError, match=r"^`video` of row 7 \(.*clip.wav\) is not a readable video file: it has no v"
    ):
        load_frames("`video` of row 7", tmp_path / "clip.wav", 4)


def test_tags_in_another_encoding(tmp_path):
    path = write_video(tmp_path / "clip.mkv", CONSTANT[:3], title="PLACEHOLDER")
    path.write_bytes(path.read_bytes().replace(b"PLACEHOLDER", b"Caf\xe9 \xff\xfe\x80 au"))
    assert shades(load_frames("video", path, None)) == [0, 3, 6]


def test_every_form_of_a_file(tmp_path):
    path = write_video(tmp_path / "clip.mkv", CONSTANT)
    data = path.read_bytes()
    for sample in (path, str(path), data, io.BytesIO(data), {"bytes": data, "path": "clip.mkv"}, {"path": str(path)}):
        assert shades(load_frames("video", sample, 4)) == [0, 30, 57, 87]


def test_a_file_that_was_cut_off(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("modeling_crossfuse.media_video.logger.warning_once", said.append)
    path = write_video(tmp_path / "clip.mkv", CONSTANT)
    data = path.read_bytes()
    load_frames("`video` of row 7", path, 4)
    assert not said
    frames = shades(load_frames("`video` of row 7", {"bytes": data[: len(data) // 2], "path": "clip.mkv"}, 3))
    assert frames[0] == 0 and frames[-1] < 60
    assert "`video` of row 7 (clip.mkv) ends after " in said[0] and "before the 3.00 s" in said[0]
    for broken in (data[:50], b"not a video", data[50:]):
        with pytest.raises(ValueError, match=r"^`video` of row 7 \(clip.mkv\) is not a readable video file: [\w ]*$"):
            load_frames("`video` of row 7", {"bytes": broken, "path": "clip.mkv"}, 3)


def test_a_name_with_a_colon(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "clip.mkv", CONSTANT).rename("take:2.mkv")
    assert shades(load_frames("video", "take:2.mkv", 4)) == [0, 30, 57, 87]


# Time


def test_frames_are_evenly_spread_over_time(tmp_path):
    path = write_video(tmp_path / "clip.mkv", VARIABLE)
    times = np.array(VARIABLE)[[shade // 3 for shade in shades(load_frames("video", path, 10))]]
    assert times.tolist() == [0, 880, 1000, 2000, 3000, 4000, 5000, 6000, 7000, 8000]
    assert shades(load_frames("video", path, 1)) == [0]
    assert len(load_frames("video", path, 58)) == len(load_frames("video", path, 99)) == 58
    still = write_video(tmp_path / "still.mkv", [0, 100, 200, 300, 9000])  # one frame stays for most of the time
    assert shades(load_frames("video", still, 4)) == [0, 9, 9, 12]


@pytest.mark.parametrize("number", [1, 2, 3, 4, 7, 16, 29])
def test_at_a_constant_rate_every_so_many(number, tmp_path):
    path = write_video(tmp_path / "clip.mkv", [round(1000 * index / 30) for index in range(30)])
    expected = np.linspace(0, 29, number).round().astype(int)
    assert shades(load_frames("video", path, number)) == (3 * expected).tolist()
    assert shades(load_frames("video", [grey(index) for index in range(30)], number)) == (3 * expected).tolist()


def test_gifs_have_times(tmp_path):
    frames = [Image.fromarray(grey(index)) for index in range(6)]
    frames[0].save(
        tmp_path / "clip.gif", save_all=True, append_images=frames[1:], duration=[100, 100, 100, 2000, 2000, 2000]
    )
    assert shades(load_frames("video", tmp_path / "clip.gif", 4)) == [0, 9, 12, 15]


def test_frames_are_in_the_order_of_time(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("modeling_crossfuse.media_video.logger.warning_once", said.append)
    path, order = tmp_path / "clip.mkv", [0, 2, 1, 4, 3]
    with av.open(str(path), "w") as container:
        stream = add_video(container, "ffv1", 16, 16, "bgr0")
        frames = [av.VideoFrame.from_ndarray(grey(index), format="rgb24") for index in range(5)]
        packets = [packet for frame in [*frames, None] for packet in stream.encode(frame)]
        for index, packet in enumerate(packets):
            packet.time_base = Fraction(1, 1000)
            packet.pts, packet.dts = 500 + 100 * order[index], 100 * index
            container.mux(packet)
    assert shades(load_frames("video", path, None)) == [0, 6, 3, 12, 9]
    assert not said  # although it begins late


@pytest.mark.parametrize("name", ["clip.avi", "clip.h264", "clip.mp4"])
def test_frames_that_a_decoder_puts_in_order(name, tmp_path):
    if "libx264" not in av.codecs_available:
        pytest.skip("this PyAV has no encoder of H.264")
    pictures = [grey(3 * index, 64) for index in range(20)]
    options = {"bf": "3", "b_strategy": "0", "crf": "1"}
    path = write_video(tmp_path / name, CONSTANT[:20], pictures, "libx264", "yuv420p", options)
    frames = shades(load_frames("video", path, 5))
    np.testing.assert_allclose(frames, [0, 45, 90, 126, 171], atol=3)


# torchcodec


class Decoder:
    """What torchcodec's `VideoDecoder` has, of a video whose pixels are not held in memory."""

    def __init__(self, times):
        self.times = torch.tensor(times, dtype=torch.float64) / 1000
        self.decoded = 0

    def __len__(self):
        return len(self.times)

    def get_frames_at(self, indices):
        self.decoded += len(indices)
        data = torch.stack([torch.from_numpy(grey(index)).permute(2, 0, 1) for index in indices])
        return SimpleNamespace(data=data, pts_seconds=self.times[indices])

    def get_frames_played_at(self, seconds):
        assert all(self.times[0] <= second < self.times[-1] for second in seconds)
        return self.get_frames_at((torch.searchsorted(self.times, torch.tensor(seconds), right=True) - 1).tolist())


@pytest.mark.parametrize("times", [CONSTANT, VARIABLE], ids=["constant", "variable"])
@pytest.mark.parametrize("number", [1, 2, 3, 10, None, 99])
def test_a_decoder_gives_the_frames_of_its_file(times, number, tmp_path):
    path = write_video(tmp_path / "clip.mkv", times)
    expected = shades(load_frames("video", path, number))
    decoder = Decoder(times)
    assert shades(load_frames("video", decoder, number)) == expected
    assert decoder.decoded <= 2 * len(expected)
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, OSError, RuntimeError):
        return  # it is not installed, or finds no FFmpeg
    assert shades(load_frames("video", VideoDecoder(str(path)), number)) == expected


def test_a_decoder_that_fails():
    class Broken(Decoder):
        def get_frames_at(self, indices):
            raise RuntimeError("Could not push packet to decoder")

    with pytest.raises(ValueError, match="`video` of row 3 is a video that can't be decoded: Could not push"):
        load_frames("`video` of row 3", Broken(CONSTANT), 4)
    with pytest.raises(ValueError, match="`video` of row 3 has no frame"):
        load_frames("`video` of row 3", Decoder([]), 4)
