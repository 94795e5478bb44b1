# Copyright 2026 The CrossFuse Authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Raw samples in every form that they come in: each gives its values, or one error that says what is wrong."""

import base64
import decimal
import io
import struct
import threading
import zipfile
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from PIL import Image

from crossfuse.loading import read_input
from modeling_crossfuse import CrossFuseConfig, CrossFuseDataCollator, CrossFuseProcessor
from modeling_crossfuse.media import is_missing, to_array
from modeling_crossfuse.media_audio import load_audio

from .test_processor import noise_image, png, tone, wav


@pytest.fixture(scope="module")
def processor():
    modalities = {
        "image": {"image_size": 8, "patch_size": 4},
        "video": {"image_size": 8, "patch_size": 4},
        "wrist": {"kind": "series", "num_channels": 3},
    }
    return CrossFuseProcessor.from_config(CrossFuseConfig(d_model=32, modalities=modalities))


def pixels(processor, sample, name="image", **options) -> np.ndarray:
    """One image, or the frames of one video, from 0 to 255."""
    values = processor(**{name: [sample]}, **options, return_tensors="np")
    return (values["pixel_values_videos" if name == "video" else "pixel_values"][0] + 1) * 127.5


def save(image: Image.Image, file_format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def assert_refused(processor, message: str, /, **arguments):
    with pytest.raises((TypeError, ValueError), match=message) as error:
        processor(**arguments)
    assert "object at 0x" not in str(error.value) and len(str(error.value)) < 400


# Files


@pytest.fixture(scope="module")
def server():
    """The address of a server that has /image.png alone."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/image.png" else 404)
            self.end_headers()
            self.wfile.write(png(noise_image()) if self.path == "/image.png" else b"")

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_files_of_every_form(processor, tmp_path, server):
    data, path = png(noise_image()), tmp_path / "an image.png"
    path.write_bytes(data)
    in_base64 = base64.b64encode(data).decode()
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.write(path, "image.png")
    read_before = io.BytesIO(data)
    read_before.read()
    with path.open("rb") as opened, zipfile.ZipFile(tmp_path / "images.zip").open("image.png") as member:
        samples = [
            memoryview(data), bytearray(data), np.bytes_(data), io.BytesIO(data), read_before, opened, opened, member,
            {"bytes": memoryview(data), "path": None}, {"bytes": data, "path": "gone.png"},
            {"bytes": None, "path": path}, pa.scalar(data), pa.scalar(str(path)), pa.scalar({"bytes": data}),
            f"data:image/png;base64,{in_base64}", "data:," + "".join(f"%{byte:02x}" for byte in data),
            in_base64, base64.encodebytes(data).decode(), f"{server}/image.png",
        ]  # fmt: skip
        for sample in samples:
            assert np.array_equal(pixels(processor, sample), pixels(processor, noise_image())), sample


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ("/nowhere/a.png", r"^`image` of sample 0: there is no file '/nowhere/a.png'$"),
        ("", "there is no file ''"),
        ("/a\0b", "there is no file"),
        ("/nowhere/\udc80\ud800.png", r"there is no file '/nowhere/\\\\udc80\\\\ud800.png'"),
        ("n.o " * 5000, r"there is no file 'n.o .*\.\.\..*'"),
        ("QUJD" * 5000, r"^`image` of sample 0 \(base64\) is not a readable image"),
        ("data:image/png;base64", "is not a data URL that can be read: 'data:image/png;base64'"),
        ("data:image/png;base64,QUJD", r"^`image` of sample 0 \(data URL\) is not a readable image"),
        ("http://127.0.0.1:9/a.png?key=secret", "^`image` of sample 0: http://127.0.0.1:9/a.png can't be downloaded"),
        (b"", r"^`image` of sample 0 is empty \(0 bytes\)"),
        (io.BytesIO(b"no image"), "^`image` of sample 0 is not a readable image: cannot identify image file bytes$"),
        (io.StringIO("no image"), "is a file opened as text; expected one opened as bytes"),
        ({"bytes": b"no image", "path": "a/b.png"}, r"^`image` of sample 0 \(a/b.png\) is not a readable image"),
        ({"bytes": png(noise_image(0, (99, 99)))[:900], "path": "b.png"}, r"\(b.png\) .*: image file is truncated"),
        ({"bytes": [1, 2], "path": 7}, "^`image` of sample 0 has list in place of a path or bytes"),
        ({"raw": 1, "sampling_rate": 2}, "is a dict of raw, sampling_rate; expected `bytes` or `path`"),
    ],
)  # fmt: skip
def test_files_that_can_not_be_read(processor, sample, message):
    assert_refused(processor, message, image=[sample])


def test_errors_name_the_file(processor, tmp_path, server, monkeypatch):
    path = tmp_path / "cut.png"
    path.write_bytes(png(noise_image(0, (99, 99)))[:900])
    for sample in (str(path), path, path.open("rb"), Image.open(path), {"bytes": None, "path": str(path)}):
        assert_refused(processor, r"`image` of row 7 \(.*cut.png\)", image=[sample], sample_names=["row 7"])
    path.open("rb").close()
    closed = path.open("rb")
    closed.close()
    assert_refused(processor, "is a file that can't be read: .*closed file", image=[closed])
    assert_refused(processor, "/none.png can't be downloaded: .*404", image=[f"{server}/none.png?key=1"])
    path.write_bytes(png(noise_image(0, (99, 99))))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert_refused(processor, r"\(.*cut.png\) is not a readable image: Image size \(9801 pixels\)", image=[path])


def test_audio_files_of_every_form():
    pytest.importorskip("soundfile")
    data = wav(tone())
    in_base64 = base64.b64encode(data).decode()
    files = [data, io.BytesIO(data), memoryview(data), f"data:audio/wav;base64,{in_base64}", in_base64]
    for sample in [*files, {"array": load_audio("a", data)[0], "sampling_rate": 16_000}]:
        audio, rate = load_audio("`audio` of row 3", sample)
        assert np.array_equal(audio, load_audio("a", data)[0]) and rate == 16_000
    audio, rate = load_audio("a", {"raw": audio, "sampling_rate": 8000})  # as pipelines for speech take it
    assert len(audio) == 1600 and rate == 8000
    with pytest.raises(ValueError, match=r"`audio` of row 3 \(a.wav\) is not a readable audio file"):
        load_audio("`audio` of row 3", {"bytes": b"RIFF" * 20, "path": "a.wav"})


# Bit depth and modes


SHADES = (np.arange(12 * 16, dtype=np.uint16) * 300).reshape(12, 16)
SHADES_16 = Image.fromarray(SHADES)


def tiff(bits: int, is_white_zero: bool = False) -> bytes:
    """A TIFF file of 2 by 2 pixels whose bits are all 1; Pillow writes none of 12 bits."""
    data = b"\xff" * (bits // 2)
    tags = {256: 2, 257: 2, 258: bits, 259: 1, 262: int(not is_white_zero), 273: 122, 277: 1, 278: 2, 279: len(data)}
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


def black_png(transparency: bytes) -> bytes:
    """A black PNG file of 16 bits, and of a transparent shade; Pillow writes none with one."""
    chunks = {b"IHDR": struct.pack(">IIBBBBB", 2, 2, 16, 0, 0, 0, 0), b"tRNS": transparency}
    chunks |= {b"IDAT": zlib.compress(bytes(10)), b"IEND": b""}
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks.items()]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    "sample",
    [
        save(SHADES_16, "PNG"),
        save(SHADES_16, "TIFF"),
        b"P5 16 12 65535\n" + SHADES.astype(">u2").tobytes(),  # which Pillow opens in mode I
        SHADES_16,
        Image.frombytes("I;16B", (16, 12), SHADES.astype(">u2").tobytes()),
        SHADES / 65535,
    ],
    ids=["PNG", "TIFF", "PGM", "I;16", "I;16B", "floats"],
)
@pytest.mark.parametrize("num_channels", [1, 3])
def test_16_bits_are_the_same_in_every_file(sample, num_channels):
    modalities = {"image": {"image_size": 12, "patch_size": 4, "num_channels": num_channels}}
    processor = CrossFuseProcessor.from_config(CrossFuseConfig(d_model=32, modalities=modalities))
    sixteen = pixels(processor, sample, do_resize=False)
    np.testing.assert_allclose(sixteen, np.stack([SHADES / 257] * num_channels), atol=1e-3)
    unscaled = processor(image=[sample], do_resize=False, do_rescale=False, do_normalize=False, return_tensors="np")
    scale = 1 / 255 if isinstance(sample, np.ndarray) else 1  # an array is taken as it is
    np.testing.assert_allclose(unscaled["pixel_values"][0], sixteen * scale, atol=1e-3)


@pytest.mark.parametrize(
    ("sample", "shade"),
    [
        (tiff(12), 255),
        (tiff(16), 255),
        (tiff(16, is_white_zero=True), 0),
        (tiff(8, is_white_zero=True), 0),
        (b"P5 2 2 1023\n" + struct.pack(">4H", *[1023] * 4), 255),
        (b"P2 2 2 100\n100 100 100 100\n", 255),
        (black_png(b"\0\1"), 0),
        (black_png(b"\0\0"), 255),
        (Image.new("1", (9, 9), 1), 255),
        (np.asarray(Image.new("1", (9, 9), 1)), 255),
        (torch.zeros((9, 9), dtype=torch.bool), 0),
        (Image.new("La", (9, 9)), 255),
        (Image.new("PA", (9, 9)), 255),
        (Image.new("RGBa", (9, 9)), 255),
        (Image.new("CMYK", (9, 9)), 255),
        (Image.new("YCbCr", (9, 9), (255, 128, 128)), 255),
        (Image.new("HSV", (9, 9), (0, 0, 255)), 255),
        (Image.new("LAB", (9, 9), (255, 0, 0)), 255),
    ],
)
def test_every_bit_depth_and_mode(processor, sample, shade):
    if isinstance(sample, Image.Image) and sample.mode == "LAB":
        sample = Image.merge("LAB", [Image.new("L", (9, 9), value) for value in (255, 128, 128)])
    np.testing.assert_allclose(pixels(processor, sample), shade, atol=1.5)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_a_scale_that_is_not_known_is_asked_for(processor, mode, tmp_path):
    image = Image.new(mode, (9, 9), 7)
    image.save(tmp_path / "depth.tiff")
    message = f"is an image of mode {mode}, whose full scale is not known; expected 8 or 16 bits"
    assert_refused(processor, message, image=[image])
    assert_refused(processor, rf"^`image` of sample 0 \(.*depth.tiff\) {message}", image=[tmp_path / "depth.tiff"])
    raw = processor(image=[image], do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(raw, 7, rtol=1e-5)


def test_floats_of_a_portable_float_map_have_no_scale(processor):
    data = b"Pf\n9 9\n-1.0\n" + np.full((9, 9), 7, dtype="<f4").tobytes()
    # Before 10.3, Pillow does not know the format.
    assert_refused(processor, "mode F, whose full scale is not known|is not a readable image", image=[data])


@pytest.mark.parametrize("dtype", ["uint16", "int16", "uint32", "int32"])
def test_integers_of_other_depths_are_refused_dark_or_not(processor, dtype):
    for shade in (1, 200, 30_000):
        assert_refused(processor, f"has dtype {dtype}, whose full scale", image=[np.full((9, 9), shade, dtype)])


@pytest.mark.parametrize("as_sample", [np.asarray, list, np.ndarray.tolist, torch.from_numpy])
def test_a_dark_frame_has_the_scale_of_the_video(processor, as_sample):
    video = np.full((3, 8, 8, 3), 200.0)
    video[1] = 1.0
    assert pixels(processor, as_sample(video), "video")[:, 0, 0, 0].round().tolist() == [200, 1, 200]
    assert pixels(processor, list(video))[:, 0, 0, 0].round().tolist() == [200, 1, 200]
    assert pixels(processor, as_sample(video / 255), "video")[:, 0, 0, 0].round().tolist() == [200, 1, 200]


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_of_several_frames_is_said_to_be_read(processor, file_format, monkeypatch):
    from modeling_crossfuse import media_image

    said = []
    monkeypatch.setattr(media_image.logger, "warning_once", said.append)
    frames = [Image.new("RGB", (9, 9), (shade, 0, 0)) for shade in (100, 200)]
    sample = save(frames[0], file_format, save_all=True, append_images=frames[1:])
    assert abs(pixels(processor, sample)[0].mean() - 100) < 3
    assert len(said) == 1 and f"format {file_format} has several frames or pages; the first is read" in said[0]


ORIENTATION = struct.pack("<HHIHH", 0x112, 3, 1, 3, 0)  # upside down


@pytest.mark.parametrize(
    ("exif", "is_turned"),
    [
        (b"II*\0" + struct.pack("<IH", 8, 1) + ORIENTATION + bytes(4), True),
        (b"II*\0" + struct.pack("<IH", 8, 2) + ORIENTATION + struct.pack("<HHIII", 0x9286, 12, 9999, 500, 77), True),
        (b"garbage", False),
        (b"II*\0\xff\xff\xff\xff", False),
        (b"", False),
    ],
    ids=["right", "a number that can't be", "garbage", "no such place", "empty"],
)
@pytest.mark.filterwarnings("ignore:.*Truncated File Read|.*Corrupt EXIF data")
def test_broken_exif_leaves_the_pixels(processor, exif, is_turned):
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    expected = pixels(processor, image.rotate(180) if is_turned else image)
    assert np.array_equal(pixels(processor, save(image, "PNG", exif=b"Exif\0\0" + exif)), expected)


# Axes


@pytest.mark.parametrize("shape", [(3, 9, 3), (3, 3, 3), (1, 9, 1)])
def test_axes_that_can_be_read_two_ways(processor, shape):
    image = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    message = r"has shape \(.*\), whose first or last axis could have the channels; expected `input_data_format="
    for arguments in ({"image": [image]}, {"image": [image.tolist()]}, {"video": [np.stack([image] * 5)]}):
        assert_refused(processor, message, **arguments)
    first = pixels(
        processor, np.repeat(image, 5, axis=1) if shape[1] > 3 else image, input_data_format="channels_first"
    )
    last = pixels(processor, np.moveaxis(image, 0, -1), input_data_format="channels_last")
    assert first.shape == last.shape == (3, 8, 8)
    assert np.array_equal(pixels(processor, image, input_data_format="channels_first"), last)
    video = np.stack([np.moveaxis(image, 0, -1)] * 5)
    frames = pixels(processor, video, "video", videos_kwargs={"input_data_format": "channels_last"})
    assert np.array_equal(frames, np.stack([last] * 5))


def test_the_layout_may_be_a_setting(processor):
    settings = {"image": {"input_data_format": "channels_last"}}
    last = CrossFuseProcessor(image_processor=processor.image_processor, modalities=settings)
    image = np.arange(81, dtype=np.uint8).reshape(3, 9, 3)
    assert np.array_equal(pixels(last, image), pixels(processor, Image.fromarray(image)))
    assert_refused(last, r"has shape \(3, 9, 9\); expected", image=[np.zeros((3, 9, 9), np.uint8)])
    assert_refused(
        processor, "`input_data_format='last'`; expected 'channels_first'", image=[image], input_data_format="last"
    )
    with pytest.raises(ValueError, match=r"`modalities\['image'\]` has `input_data_format='x'`; expected"):
        CrossFuseProcessor(modalities={"image": {"input_data_format": "x"}})


# Nested lists


def test_nested_lists_are_the_array_that_they_make(processor):
    image = np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    expected = pixels(processor, image)
    for sample in (
        image.tolist(),
        np.moveaxis(image, 0, -1).tolist(),
        tuple(image.tolist()),
        pa.scalar(image.tolist()),
    ):
        assert np.array_equal(pixels(processor, sample), expected)
        alone = processor(image=sample, return_tensors="np")["pixel_values"]
        assert np.array_equal((alone[0] + 1) * 127.5, expected) and len(alone) == 1
    assert processor(image=[image.tolist()] * 4)["pixel_values"].shape == (4, 3, 8, 8)
    assert processor(image=image[0].tolist())["pixel_values"].shape == (1, 3, 8, 8)
    several = processor(image=[[image.tolist(), None], [image.tolist()]], return_tensors="np")
    assert several["image_mask"].tolist() == [[1, 0], [1, 0]]
    video = np.stack([image] * 4)
    assert processor(video=video.tolist())["pixel_values_videos"].shape == (1, 4, 3, 8, 8)
    assert processor(video=[video.tolist()] * 2)["pixel_values_videos"].shape == (2, 4, 3, 8, 8)


@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_named_samples_are_a_batch(processor, length):
    grey, names = np.full((9, 9), 7).tolist(), [f"row {row}" for row in range(length)]
    batch = processor(image=[grey] * length, sample_names=names, return_tensors="np")
    assert batch["pixel_values"].shape == (length, 3, 8, 8)
    with pytest.raises(ValueError, match=r"`video` of row 0 has shape \(4, 9, 9\); expected frames"):
        processor(video=[np.zeros((4, 9, 9), np.uint8)] * length, sample_names=names)


@pytest.mark.parametrize("shape", [(3, 32, 32), (32, 32)])
def test_an_array_column_through_the_collator(processor, shape):
    import datasets

    images = np.random.default_rng(0).integers(0, 256, (3, *shape), dtype=np.uint8)
    feature = getattr(datasets, f"Array{len(shape)}D")(shape, "uint8")
    rows = datasets.Dataset.from_dict({"x": list(images)}, features=datasets.Features({"x": feature}))
    batch = CrossFuseDataCollator(processor, {"image": "x"})(list(rows))
    expected = processor(image=list(images), return_tensors="pt")["pixel_values"]
    assert torch.equal(batch["pixel_values"], expected) and len(expected) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": [[[1, 2], [3]]]}, "`image` of sample 0 is not an array: .* inhomogeneous"),
        ({"image": [[[1, None], [3, 4]]]}, "`image` of sample 0 has 1 missing of 4 values"),
        ({"video": [[[[[1, 2], [3]]]]]}, "`video` of sample 0, frame 0 is not an array"),
        ({"wrist": [[[1, 2, 3], [4, 5]]]}, "`wrist` of sample 0 is not an array"),
        ({"wrist": [[[1, 2, 3], None]]}, "`wrist` of sample 0 has missing values; expected numbers only"),
    ],
)
def test_ragged_lists(processor, arguments, message):
    assert_refused(processor, message, **arguments)


# Values that are missing


MISSING = [
    None, float("nan"), np.float32("nan"), np.ma.masked, pd.NA, pd.NaT, np.datetime64("NaT"), pa.scalar(None),
    pa.scalar(None, pa.float64()), decimal.Decimal("NaN"), decimal.Decimal("sNaN"),
]  # fmt: skip


@pytest.mark.parametrize("value", MISSING, ids=repr)
def test_what_stands_for_a_sample_that_is_missing(processor, value):
    assert is_missing(value) and processor.is_missing("image", value) and processor.is_missing("image", [value, None])
    batch = processor(image=[value, noise_image()], wrist=[np.zeros((2, 3)), value])
    assert batch["modality_mask"] == [[0, 0, 1], [1, 0, 0]]
    lists = processor(image=[[value], [noise_image(), value]], wrist=np.zeros((2, 4, 3)))
    assert lists["image_mask"] == [[0, 0], [1, 0]]
    assert_refused(processor, "no modality", image=value)
    rows = [{"a": value, "b": np.zeros((2, 3))}, {"a": noise_image(), "b": value}]
    assert CrossFuseDataCollator(processor, {"image": "a", "wrist": "b"})(rows)["modality_mask"].tolist() == [
        [0, 0, 1], [1, 0, 0],
    ]  # fmt: skip


@pytest.mark.parametrize(
    "value", [0, 0.0, 1.5, True, "", [], np.ma.array([1]), np.zeros(2), pa.scalar(1), pa.array([])]
)
def test_what_is_not_missing(value):
    assert not is_missing(value)


MASKED = np.ma.array(np.ones((2, 3)), mask=[[0, 0, 0], [0, 1, 0]])


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (MASKED, "1 missing of 6"),
        ([MASKED[0], MASKED[1]], "1 missing of 6"),
        ([1.0, np.ma.masked, 2.0], "1 missing of 3"),
        (np.ma.masked_all((2, 3)), "6 missing of 6"),
        ([[1.0, None, 2.0]], "1 missing of 3"),
        ([[1.0, pd.NA, None]], "2 missing of 3"),
        (pd.DataFrame({"a": [1, 2], "b": pd.array([1, None], dtype="Int64"), "c": [0.5, 1]}), "1 missing of 6"),
        (pd.Series([1, None, 2], dtype="Int64"), "NaN"),
        (pd.Series([1, None, 2], dtype="float"), "NaN"),
        (pa.array([1.0, None, 2.0]), "1 missing of 3"),
        (pa.array([[1.0, 2.0, 3.0], [4.0, 5.0, None]]), "1 missing of 6"),
        (pa.scalar([1.0, None, 2.0]), "1 missing of 3"),
        ([np.array([1.0, None, 2.0])], "1 missing of 3"),
    ],
)
def test_missing_values_are_no_numbers(processor, value, count):
    assert_refused(processor, f"`wrist` of sample 0 has .*{count}", wrist=[value])


def test_masked_pixels_and_samples():
    image = np.ma.array(np.zeros((9, 9), np.uint8), mask=np.eye(9))
    processor = CrossFuseProcessor.from_config(
        CrossFuseConfig(d_model=32, modalities={"image": {"image_size": 8, "patch_size": 4}})
    )
    assert_refused(processor, "`image` of sample 0 has 9 missing of 81 values", image=[image])
    with pytest.raises(ValueError, match="`clip` has 4 missing of 4 values"):
        load_audio("`clip`", np.ma.masked_all(4))
    assert processor(image=[np.ma.array(image.data)])["pixel_values"].shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    "value",
    [
        np.ma.array([[1, 2, 3]]),
        pd.DataFrame([[1, 2, 3]]),
        pd.DataFrame([[1, 2, 3]], dtype="Int64"),
        pa.array([1.0, 2.0, 3.0]),
        pa.scalar([[1, 2, 3]]),
        [decimal.Decimal(1), 2, 3.0],
        torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16, requires_grad=True),
        [torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16, requires_grad=True)],
        pa.array([[[1, 2, 3]]]).to_pandas()[0],  # an array of arrays
    ],
    ids=lambda value: type(value).__name__,
)
def test_numbers_of_every_container(processor, value):
    assert processor(wrist=[value], return_tensors="np")["wrist_values"].tolist() == [[[1, 2, 3]]]


def test_lists_as_pandas_has_them_in_a_column(processor):
    """They are arrays of objects."""
    images = [{"bytes": png(noise_image(seed)), "path": None} for seed in range(2)]
    column = pa.array([[*images, None], [None]]).to_pandas()
    assert isinstance(column[0], np.ndarray)
    collator = CrossFuseDataCollator(processor, {"image": "views", "video": "clip"})
    batch = collator([{"views": views, "clip": np.array(images, object)} for views in column])
    assert batch["image_mask"].tolist() == [[1, 1, 0], [0, 0, 0]] and batch["modality_mask"][:, 0].tolist() == [1, 0]
    assert torch.equal(batch["pixel_values_videos"][0], batch["pixel_values"][0, :2])


@pytest.mark.parametrize(
    "column", [pd.Series(["{}", None]), pa.array(["{}", None]), np.array(["{}", None], dtype=object)], ids=type
)
def test_columns_are_lists_of_samples(processor, column, tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(png(noise_image()))
    if isinstance(column, np.ndarray):
        column = np.array([str(path), None], dtype=object)
    else:
        column = pd.Series([str(path), None]) if isinstance(column, pd.Series) else pa.array([str(path), None])
    batch = processor(image=column, wrist=pd.Series([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), return_tensors="np")
    assert batch["modality_mask"].tolist() == [[1, 0, 1], [0, 0, 1]]
    assert batch["wrist_values"].tolist() == [[[1, 2, 3]], [[4, 5, 6]]]


# Numbers keep their digits


TIMES = 1_700_000_000 + np.arange(6) / 2


def normalised(sample) -> np.ndarray:
    processor = CrossFuseProcessor(modalities={"clock": {"kind": "series"}}).fit_series("clock", [TIMES])
    return processor(clock=[sample], return_tensors="np")["clock_values"][0, :, 0]


@pytest.mark.parametrize(
    "sample",
    [TIMES, TIMES.tolist(), torch.from_numpy(TIMES), pd.Series(TIMES), pd.DataFrame({"time": TIMES}), pa.array(TIMES)],
    ids=lambda value: type(value).__name__,
)
def test_times_keep_their_digits(sample):
    np.testing.assert_allclose(normalised(sample), np.linspace(-2.5, 2.5, 6) / np.sqrt(35 / 12), rtol=1e-5)


@pytest.mark.parametrize(
    "content",
    [
        "".join(f"{time!r}\n" for time in TIMES.tolist()),
        "\ufeff" + "\r\n".join(map(repr, TIMES.tolist())),
        "# time\n" + "".join(f"{time:.18e}\n" for time in TIMES),
    ],
    ids=["plain", "of Excel", "of np.savetxt"],
)
def test_csv_files_keep_digits(content, tmp_path):
    path = tmp_path / "clock.CSV"
    path.write_text(content, encoding="utf-8")
    np.save(tmp_path / "clock.npy", TIMES)
    assert np.array_equal(normalised(read_input("series", str(path))), normalised(TIMES))
    assert np.array_equal(normalised(read_input("series", str(tmp_path / "clock.npy"))), normalised(TIMES))


def test_addresses_on_the_command_line():
    assert read_input("image", "https://example.org/cat.png") == "https://example.org/cat.png"
    with pytest.raises(ValueError, match=r"there is no file https://example.org/clock.csv"):
        read_input("series", "https://example.org/clock.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("time,x\n1,2\n", "is not a table of numbers: could not convert string 'time' to float64 at row 0, column 1"),
        ("1;2\n3;4\n", "could not convert string '1;2' .*; expected lines of numbers with commas between them"),
        ("1,2\n3,\n", "could not convert string '' to float64 at row 1, column 2"),
        ("1,2\n3\n", "the number of columns changed from 2 to 1 at row 2"),
        ("", "input contained no data"),
        ("\n\n", "input contained no data"),
        ("1,nan\n", "a.csv has values that are NaN or infinite"),
        ("\xe4", "is not a table of numbers"),
    ],
)
def test_csv_files_that_are_no_table(content, message, tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=message) as error:
        read_input("series", str(path))
    assert str(path) in str(error.value)


def test_a_series_that_float32_can_not_hold_is_said_to_need_statistics(monkeypatch):
    from modeling_crossfuse import processing_tensors

    said = []
    monkeypatch.setattr(processing_tensors.logger, "warning_once", said.append)
    processor = CrossFuseProcessor(modalities={"clock": {"kind": "series"}})
    processor(clock=[np.linspace(0, 1, 9), np.full(9, 1e9), TIMES[:1]])
    assert not said
    processor(clock=[TIMES])
    assert "`CrossFuseProcessor.fit_series`" in said.pop()
    processor.fit_series("clock", [TIMES])(clock=[TIMES])
    assert not said


def test_integers_that_float64_can_not_tell_apart():
    processor = CrossFuseProcessor(modalities={"clock": {"kind": "series"}})
    with pytest.raises(ValueError, match="`clock` of sample 0 has numbers of dtype int64 that differ by less than"):
        processor(clock=[np.array([2**60, 2**60 + 1])])
    processor.fit_series("clock", [np.array([2**60, 2**60 + 1024])])
    values = processor(clock=[np.array([2**60, 2**60 + 1024])], return_tensors="np")["clock_values"]
    assert values[0, :, 0].tolist() == [-1, 1]


def test_to_array_keeps_types():
    for dtype in ("uint8", "int64", "float16", "float32", "float64"):
        assert to_array("x", np.ones(2, dtype)).dtype == dtype
