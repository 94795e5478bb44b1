# Copyright 2026 The CrossFuse Authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""
Builds the emoji data set (`data/emoji`): drawings by four artists, names in twelve languages and spoken names.

The images come from four `@iconify-json` packages, the names and keywords from `emojibase-data` and the licence
texts from `spdx-license-list`, all fetched with `npm pack`. The speech is made by `espeak-ng`. One row is one drawing
of one emoji with one spoken clip of its English name:

- `train` holds the Fluent, Noto and OpenMoji drawings, except the
- `validation` pairs: about 5 % of them, never more than one drawing of the same emoji;
- `test` holds the Twemoji drawings, spoken with voice variants that the other splits never use.

Besides `npm` and `espeak-ng` (Debian: `apt-get install npm espeak-ng`) the script needs the Python packages
`datasets`, `pillow`, `resvg_py`, `soundfile`, `soxr` and `tqdm`. The data card, `README.md`, is written by hand: only
the sub-folders `data` and `LICENSES` of the output folder are replaced, and only once all checks have passed.

```bash
python scripts/research/prepare_emoji.py --output data/emoji
```
"""

import argparse
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from datasets import Audio, Dataset, Features, Image, List, Value, load_dataset
from PIL import Image as PILImage
from tqdm import tqdm


try:
    import resvg_py
except ImportError:
    resvg_py = None


LANGUAGES = ("en", "de", "es", "fr", "it", "nl", "pl", "pt", "ru", "ja", "ko", "zh")

EMOJIBASE = "emojibase-data@17.0.0"
SPDX = "spdx-license-list@6.12.0"
PACKAGES = {
    "fluent": "@iconify-json/fluent-emoji-flat@1.2.6",
    "noto": "@iconify-json/noto@1.2.9",
    "openmoji": "@iconify-json/openmoji@1.2.29",
    "twemoji": "@iconify-json/twemoji@1.2.5",
}
TEST_ARTIST = "twemoji"
TRAIN_ARTISTS = tuple(artist for artist in PACKAGES if artist != TEST_ARTIST)

ACCENTS = (
    "en-us",
    "en-us-nyc",
    "en-gb",
    "en-gb-scotland",
    "en-gb-x-rp",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
    "en-029",
)
TRAIN_VARIANTS = ("m1", "m2", "m3", "m5", "m6", "f1", "f2", "f3", "f5")
TEST_VARIANTS = ("m4", "m7", "f4")
SPEEDS = (130, 190)  # words per minute
PITCHES = (30, 70)  # espeak-ng's scale of 0 to 99

EMOJI_COUNT = 1377
IMAGE_SIZE = 64
IMAGE_COLOURS = 64
SAMPLING_RATE = 16000
SILENCE = 0.02  # of the peak: quieter samples at either end are cut
SILENCE_MARGIN = 0.02  # seconds of it that are kept
PEAK = 0.9
# On libsndfile's scale, 0.98 asks for about 11 kbit/s and 1.0 for 6, its lowest: what a long clip needs to stay small.
OPUS_COMPRESSIONS = (0.98, 0.985, 0.99, 0.995, 1.0)
MAX_CLIP_BYTES = 2300
OGG_SERIAL = 1
MAX_MEGABYTES = 16
TRAIN_SHARDS = 4

JOINER = "200d"
EMOJI_STYLE = "fe0f"
FLAGS_GROUP = "flags"

FEATURES = Features(
    {
        "emoji": Value("string"),
        "code": Value("string"),
        "artist": Value("string"),
        "picture": Image(mode="RGB"),
        "speech": Audio(sampling_rate=SAMPLING_RATE, decode=False),
        "voice": Value("string"),
        "speed": Value("int32"),
        "pitch": Value("int32"),
        "name": Value("string"),
        "names": {language: Value("string") for language in LANGUAGES},
        "keywords": List(Value("string")),
        "group": Value("string"),
        "subgroup": Value("string"),
    }
)

# The same columns before the bytes get their type: `Audio` encodes rows only with torchcodec, though it has nothing to
# do for a clip that is already encoded. A cast of the finished column needs no torchcodec.
STORED = {"bytes": Value("binary"), "path": Value("string")}
STORED_FEATURES = Features({**FEATURES, "picture": STORED, "speech": STORED})

# File name: (SPDX identifier, what it covers and whom to credit, copyright line for a licence text with a blank one).
LICENSES = {
    "fluent-MIT.txt": (
        "MIT",
        (
            "The pictures of the artist 'fluent': Fluent Emoji (flat style) by Microsoft Corporation,\n"
            "https://github.com/microsoft/fluentui-emoji, drawn here from the SVG bodies in {fluent}."
        ),
        "Microsoft Corporation",
    ),
    "noto-Apache-2.0.txt": (
        "Apache-2.0",
        (
            "The pictures of the artist 'noto': Noto Emoji, Copyright 2013 Google, Inc.,\n"
            "https://github.com/googlefonts/noto-emoji, drawn here from the SVG bodies in {noto}."
        ),
        None,
    ),
    "openmoji-CC-BY-SA-4.0.txt": (
        "CC-BY-SA-4.0",
        (
            "The pictures of the artist 'openmoji': all emojis designed by OpenMoji (https://openmoji.org), the\n"
            "open-source emoji and icon project, https://github.com/hfg-gmuend/openmoji, drawn here from the SVG\n"
            "bodies in {openmoji}.\n"
            "These pictures stay under CC BY-SA 4.0: https://creativecommons.org/licenses/by-sa/4.0/"
        ),
        None,
    ),
    "twemoji-CC-BY-4.0.txt": (
        "CC-BY-4.0",
        (
            "The pictures of the artist 'twemoji': Twemoji by Twitter, Inc and other contributors,\n"
            "https://github.com/jdecked/twemoji, drawn here from the SVG bodies in {twemoji}.\n"
            "Licence: https://creativecommons.org/licenses/by/4.0/"
        ),
        None,
    ),
    "unicode-cldr-Unicode-3.0.txt": (
        "Unicode-3.0",
        (
            "The names and keywords, which {emojibase} takes from the Unicode Common Locale Data Repository,\n"
            "https://cldr.unicode.org."
        ),
        None,
    ),
}
CHANGES = f"Changes: rasterised at {IMAGE_SIZE} x {IMAGE_SIZE} pixels on white and reduced to {IMAGE_COLOURS} colours."


@dataclass
class Emoji:
    """One emoji as `emojibase-data` describes it."""

    character: str
    code: str
    names: dict[str, str]
    keywords: list[str]
    group: str
    subgroup: str


@dataclass
class Plan:
    """What one row shall hold: the drawing of `emoji` by `artist`, and how its name is spoken."""

    emoji: Emoji
    artist: str
    voice: str
    speed: int
    pitch: int


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Build the emoji data set (images, names, speech) from npm packages and espeak-ng."
    )
    parser.add_argument(
        "--output", type=Path, default=Path("data/emoji"), help="folder of the data set (default: %(default)s)"
    )
    parser.add_argument(
        "--packages",
        type=Path,
        default=None,
        help="folder of tarballs made by `npm pack`; those missing there are downloaded into it "
        "(default: all are downloaded into a temporary folder)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="seed for voices, speeds, pitches and the validation pairs (default: %(default)s)",
    )
    parser.add_argument(
        "--validation", type=float, default=0.05, help="share of the training pairs to hold out (default: %(default)s)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count(),
        help="clips that are spoken at the same time (default: one per core)",
    )
    args = parser.parse_args()
    if not 0 < args.validation <= 1 / len(TRAIN_ARTISTS):
        parser.error("--validation must be above 0 and at most 1/3, so that each emoji loses at most one drawing")
    if args.workers < 1:
        parser.error("--workers must be at least 1")
    return args


def check_tools():
    """Ends with a message if a program, a module or a voice is missing."""
    if resvg_py is None:
        sys.exit("The Python module resvg_py is missing: `pip install resvg_py`.")
    if shutil.which("espeak-ng") is None:
        sys.exit("espeak-ng is missing: `apt-get install espeak-ng` (or your system's package of that name).")
    # espeak-ng speaks an unknown variant with the plain voice and does not say so, hence the look at its lists.
    accents, variants = list_voices("en"), list_voices("variant")
    missing = [accent for accent in ACCENTS if accent not in accents]
    missing += [variant for variant in TRAIN_VARIANTS + TEST_VARIANTS if f"!v/{variant}" not in variants]
    if missing:
        sys.exit(f"This espeak-ng lacks the voices {', '.join(missing)}: version 1.51 or later has them.")


def list_voices(kind: str) -> set[str]:
    """The words of espeak-ng's table of voices, which holds their names and files."""
    return set(
        subprocess.run(["espeak-ng", f"--voices={kind}"], capture_output=True, text=True, check=True).stdout.split()
    )


def fetch_package(package: str, folder: Path) -> Path:
    """Returns the tarball of `package` (`name@version`) in `folder`, downloading it if it is not there."""
    tarball = folder / (package.removeprefix("@").replace("/", "-").replace("@", "-") + ".tgz")
    if tarball.exists():
        return tarball
    if shutil.which("npm") is None:
        sys.exit(f"npm is missing, and {tarball} does not exist: install npm or see --packages.")
    command = ["npm", "pack", "--loglevel=error", package, "--pack-destination", str(folder)]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    if result.returncode != 0 or not tarball.exists():
        sys.exit(f"`{' '.join(command)}` failed:\n{result.stderr}")
    return tarball


def read_member(tarball: Path, name: str) -> str:
    """The text of one file of an npm tarball."""
    with tarfile.open(tarball) as archive:
        return archive.extractfile(f"package/{name}").read().decode("utf-8")


def read_json(tarball: Path, name: str):
    return json.loads(read_member(tarball, name))


def plain_code(code: str) -> str:
    """A hyphenated code point sequence in lower case, without the selector that only asks for the colour style."""
    return "-".join(part for part in code.lower().split("-") if part != EMOJI_STYLE)


def read_svgs(tarball: Path) -> dict[str, str]:
    """The drawings of an iconify package as SVG documents, by code point sequence."""
    icons = read_json(tarball, "icons.json")
    characters = read_json(tarball, "chars.json")
    return {plain_code(code): build_svg(icons, name) for code, name in characters.items()}


def build_svg(icons: dict, name: str) -> str:
    """The SVG document of an icon, which may be an alias of another one, or its mirror image."""
    alias = icons.get("aliases", {}).get(name, {})
    unknown = alias.keys() - {"parent", "hFlip"}
    if unknown:
        raise ValueError(
            f"The icon {name!r} of {icons['prefix']!r} has transformations that are not handled: {unknown}"
        )
    icon = icons["icons"][alias.get("parent", name)]
    width, height = (icon.get(side, icons[side]) for side in ("width", "height"))
    body = icon["body"]
    if alias.get("hFlip"):
        body = f'<g transform="translate({width} 0) scale(-1 1)">{body}</g>'
    # A square canvas with a view box of the icon's shape: what is not square is centred, not stretched.
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{IMAGE_SIZE}" height="{IMAGE_SIZE}" viewBox="0 0 {width} {height}">{body}</svg>'
    )


def read_emoji(tarball: Path) -> dict[str, Emoji]:
    """All emoji of `emojibase-data` that have a group, in Unicode's order, by code point sequence."""
    hierarchy = read_json(tarball, "meta/groups.json")
    messages = read_json(tarball, "en/messages.json")
    group_names = {group["key"]: group["message"] for group in messages["groups"]}
    entries = {
        language: {plain_code(entry["hexcode"]): entry for entry in read_json(tarball, f"{language}/data.json")}
        for language in LANGUAGES
    }
    emoji = {}
    for code, entry in sorted(entries["en"].items(), key=lambda item: item[1].get("order", 0)):
        if "group" not in entry:
            continue
        emoji[code] = Emoji(
            character=entry["emoji"],
            code=code,
            names={language: entries[language][code]["label"] for language in LANGUAGES},
            keywords=entry.get("tags", []),
            group=group_names[hierarchy["groups"][str(entry["group"])]],
            subgroup=hierarchy["subgroups"][str(entry["subgroup"])],
        )
    return emoji


def select_emoji(emoji: dict[str, Emoji], svgs: dict[str, dict[str, str]]) -> list[Emoji]:
    """The emoji that all artists have drawn, without flags and joined sequences."""
    return [
        item
        for code, item in emoji.items()
        if all(code in drawings for drawings in svgs.values())
        and item.group != FLAGS_GROUP
        and JOINER not in code.split("-")
    ]


def plan_rows(emoji: list[Emoji], seed: int) -> list[Plan]:
    """Draws voice, speed and pitch for each drawing; the training drawings of one emoji get different voices."""
    generator = random.Random(seed)
    train_voices = [f"{accent}+{variant}" for accent in ACCENTS for variant in TRAIN_VARIANTS]
    test_voices = [f"{accent}+{variant}" for accent in ACCENTS for variant in TEST_VARIANTS]
    plans = []
    for item in emoji:
        voices = [*generator.sample(train_voices, len(TRAIN_ARTISTS)), generator.choice(test_voices)]
        for artist, voice in zip((*TRAIN_ARTISTS, TEST_ARTIST), voices):
            plans.append(Plan(item, artist, voice, generator.randint(*SPEEDS), generator.randint(*PITCHES)))
    return plans


def draw_validation(emoji: list[Emoji], share: float, seed: int) -> set[tuple[str, str]]:
    """The (code, artist) pairs that are held out of `train`: never two of the same emoji."""
    generator = random.Random(seed + 1)
    count = round(share * len(emoji) * len(TRAIN_ARTISTS))
    return {(item.code, generator.choice(TRAIN_ARTISTS)) for item in generator.sample(emoji, count)}


def rasterise(svg: str) -> bytes:
    """An SVG document as a palette PNG on white."""
    drawing = PILImage.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True))))
    canvas = PILImage.new("RGBA", (IMAGE_SIZE, IMAGE_SIZE), "white")
    canvas.alpha_composite(drawing.convert("RGBA"))
    buffer = io.BytesIO()
    canvas.convert("RGB").quantize(IMAGE_COLOURS).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def speak(text: str, voice: str, speed: int, pitch: int) -> bytes:
    """`text` as spoken by espeak-ng: a short Ogg/Opus clip with one channel."""
    command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", text]
    wave = subprocess.run(command, capture_output=True, check=True).stdout
    samples, rate = soundfile.read(io.BytesIO(wave), dtype="float32")
    samples = trim(soxr.resample(samples, rate, SAMPLING_RATE))
    return encode_opus(samples * (PEAK / np.abs(samples).max()))


def encode_opus(samples: np.ndarray) -> bytes:
    """Encodes at the best of the bit rates that keep the clip within `MAX_CLIP_BYTES`, or else at the lowest."""
    for compression in OPUS_COMPRESSIONS:
        buffer = io.BytesIO()
        soundfile.write(buffer, samples, SAMPLING_RATE, "OPUS", format="OGG", compression_level=compression)
        clip = repack_ogg(buffer.getvalue())
        if len(clip) <= MAX_CLIP_BYTES:
            break
    return clip


def trim(samples: np.ndarray) -> np.ndarray:
    """Cuts the silence at both ends."""
    loud = np.flatnonzero(np.abs(samples) > SILENCE * np.abs(samples).max())
    margin = int(SILENCE_MARGIN * SAMPLING_RATE)
    return samples[max(loud[0] - margin, 0) : loud[-1] + margin]


def repack_ogg(stream: bytes) -> bytes:
    """
    Rewrites the pages of an Ogg/Opus stream with one known serial number and without the padding of its tags:
    libsndfile draws a new serial number for each file, and half of what it writes for a short clip is padding.
    """
    pages = []
    start = 0
    while start < len(stream):
        body = start + 27 + stream[start + 26]
        lacing = stream[start + 27 : body]
        end = body + sum(lacing)
        payload = stream[body:end]
        if payload.startswith(b"OpusTags"):
            vendor_end = 12 + int.from_bytes(payload[8:12], "little")
            payload = payload[:vendor_end] + bytes(4)  # no comments
            lacing = bytes([len(payload)])
        pages.append(ogg_page(stream[start : start + 14], len(pages), lacing, payload))
        start = end
    return b"".join(pages)


def ogg_page(head: bytes, number: int, lacing: bytes, payload: bytes) -> bytes:
    """One page (RFC 3533): `head` is all that comes before the serial number."""
    head = head + OGG_SERIAL.to_bytes(4, "little") + number.to_bytes(4, "little")
    tail = bytes([len(lacing)]) + lacing + payload
    checksum = ogg_checksum(head + bytes(4) + tail)  # it counts itself as zeros
    return head + checksum.to_bytes(4, "little") + tail


def ogg_checksum(page: bytes) -> int:
    """The checksum of an Ogg page (RFC 3533): CRC-32 with the polynomial 0x04C11DB7, not reflected."""
    checksum = 0
    for byte in page:
        checksum = (checksum << 8) & 0xFFFFFFFF ^ CHECKSUM_TABLE[checksum >> 24 ^ byte]
    return checksum


def _checksum_table() -> list[int]:
    table = []
    for value in range(256):
        value <<= 24
        for _ in range(8):
            value = (value << 1) ^ (0x104C11DB7 if value & 0x80000000 else 0)
        table.append(value)
    return table


CHECKSUM_TABLE = _checksum_table()


def make_row(plan: Plan, svgs: dict[str, dict[str, str]]) -> dict:
    emoji = plan.emoji
    speech = speak(emoji.names["en"], plan.voice, plan.speed, plan.pitch)
    return {
        "emoji": emoji.character,
        "code": emoji.code,
        "artist": plan.artist,
        "picture": {"bytes": rasterise(svgs[plan.artist][emoji.code]), "path": None},
        "speech": {"bytes": speech, "path": None},
        "voice": plan.voice,
        "speed": plan.speed,
        "pitch": plan.pitch,
        "name": emoji.names["en"],
        "names": emoji.names,
        "keywords": emoji.keywords,
        "group": emoji.group,
        "subgroup": emoji.subgroup,
    }


def make_rows(plans: list[Plan], svgs: dict[str, dict[str, str]], workers: int) -> list[dict]:
    with ThreadPoolExecutor(workers) as pool:
        return list(tqdm(pool.map(lambda plan: make_row(plan, svgs), plans), total=len(plans), unit="row"))


def split_rows(rows: list[dict], held_out: set[tuple[str, str]]) -> dict[str, list[dict]]:
    splits = {"train": [], "validation": [], "test": []}
    for row in rows:
        if row["artist"] == TEST_ARTIST:
            splits["test"].append(row)
        else:
            splits["validation" if (row["code"], row["artist"]) in held_out else "train"].append(row)
    return splits


def write_splits(splits: dict[str, list[dict]], folder: Path):
    """Writes each split as parquet files, `train` as several."""
    folder.mkdir()
    for split, rows in splits.items():
        dataset = Dataset.from_list(rows, features=STORED_FEATURES).cast(FEATURES)
        shards = TRAIN_SHARDS if split == "train" else 1
        for index in range(shards):
            shard = dataset.shard(shards, index, contiguous=True)
            shard.to_parquet(folder / f"{split}-{index:05d}-of-{shards:05d}.parquet")


def write_licenses(spdx: Path, emojibase: Path, folder: Path):
    """Writes one file per licensed source: what it covers, whom to credit, and the licence text."""
    folder.mkdir()
    packages = dict(PACKAGES, emojibase=EMOJIBASE)
    for file_name, (identifier, credit, holder) in LICENSES.items():
        text = read_json(spdx, f"licenses/{identifier}.json")["licenseText"]
        if holder is not None:
            text = text.replace("<year> <copyright holders>", holder)
        head = credit.format(**packages)
        if not identifier.startswith("Unicode"):
            head += f"\n{CHANGES}"
        (folder / file_name).write_text(f"{head}\n\n{'-' * 80}\n\n{text.strip()}\n", encoding="utf-8")
    head = f"The names, keywords, groups and subgroups, as collected by {EMOJIBASE}, https://emojibase.dev."
    text = read_member(emojibase, "LICENSE")
    (folder / "emojibase-MIT.txt").write_text(f"{head}\n\n{'-' * 80}\n\n{text.strip()}\n", encoding="utf-8")


def check(condition: bool, message: str):
    if not condition:
        raise RuntimeError(f"The data set is not as it should be: {message}")


def check_output(folder: Path, cache: Path):
    """Reads the written files back and raises unless they are what the data card says."""
    data_files = {split: str(folder / "data" / f"{split}-*.parquet") for split in ("train", "validation", "test")}
    splits = load_dataset("parquet", data_files=data_files, cache_dir=str(cache))
    for split in splits.values():
        check(split.features == FEATURES, f"its columns are {split.features}")
    check_emoji(splits)
    check_voices(splits)
    for split in splits.values():
        for row in split:
            check_row(row)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    check(size <= MAX_MEGABYTES * 1e6, f"it takes {size} bytes, more than {MAX_MEGABYTES} MB")


def check_emoji(splits):
    """The number of emoji and of their drawings, the uniqueness of the names, and what each split holds."""
    pairs = [pair for split in splits.values() for pair in zip(split["code"], split["artist"])]
    drawings = Counter(code for code, _ in pairs)
    check(len(drawings) == EMOJI_COUNT, f"it has {len(drawings)} emoji, not {EMOJI_COUNT}")
    check(len(pairs) == len(set(pairs)), "a drawing comes twice")
    check(set(drawings.values()) == {len(PACKAGES)}, f"an emoji lacks some of its {len(PACKAGES)} drawings")
    check(len(set(splits["test"]["name"])) == EMOJI_COUNT, "two emoji have the same name")
    check(set(splits["test"]["artist"]) == {TEST_ARTIST}, "the test split holds a training artist")
    check(set(splits["train"]["artist"]) == set(TRAIN_ARTISTS), "the train split does not hold its artists")
    kept = Counter(splits["train"]["code"])
    check(len(kept) == EMOJI_COUNT and min(kept.values()) >= 2, "an emoji has fewer than two drawings in train")


def check_voices(splits):
    heard = set(splits["train"]["voice"]) | set(splits["validation"]["voice"])
    check(heard.isdisjoint(splits["test"]["voice"]), "a test voice occurs in train or validation")


def check_row(row: dict):
    label = f"{row['emoji']} by {row['artist']}"
    check(all(value not in (None, "", []) for value in row.values()), f"a field of {label} is empty")
    check(all(row["names"].values()), f"a name of {label} is empty")
    check(row["picture"].size == (IMAGE_SIZE, IMAGE_SIZE), f"the picture of {label} has the wrong size")
    check(row["picture"].convert("L").getextrema()[0] < 255, f"the picture of {label} is all white")
    samples, rate = soundfile.read(io.BytesIO(row["speech"]["bytes"]))
    check(rate == SAMPLING_RATE and samples.ndim == 1, f"the speech of {label} has the wrong format")
    check(np.abs(samples).max() > 0.1, f"the speech of {label} is silent")


def install(built: Path, output: Path):
    """Puts the finished sub-folders of `built` in the place of those in `output`."""
    output.mkdir(parents=True, exist_ok=True)
    for folder in sorted(built.iterdir()):
        old = output / folder.name
        if old.exists():
            old.rename(built.parent / f"old-{folder.name}")
        folder.rename(old)


def report(output: Path):
    for file in sorted(output.rglob("*")):
        if file.is_file():
            print(f"{file.stat().st_size:>10,}  {file.relative_to(output)}")


def build(args: argparse.Namespace, work: Path):
    """Builds and checks the data set in the folder `work`, then moves it to the output folder."""
    packages = args.packages or work / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    tarballs = {artist: fetch_package(package, packages) for artist, package in PACKAGES.items()}
    emojibase, spdx = fetch_package(EMOJIBASE, packages), fetch_package(SPDX, packages)

    svgs = {artist: read_svgs(tarball) for artist, tarball in tarballs.items()}
    emoji = select_emoji(read_emoji(emojibase), svgs)
    held_out = draw_validation(emoji, args.validation, args.seed)
    rows = make_rows(plan_rows(emoji, args.seed), svgs, args.workers)

    built = work / "built"
    built.mkdir()
    write_splits(split_rows(rows, held_out), built / "data")
    write_licenses(spdx, emojibase, built / "LICENSES")
    check_output(built, work / "cache")
    install(built, args.output)


def main():
    args = parse_args()
    check_tools()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    # Next to the output folder, so that the last step is a rename within one file system.
    with tempfile.TemporaryDirectory(dir=args.output.parent, prefix=".emoji-") as work:
        build(args, Path(work))
    report(args.output)


if __name__ == "__main__":
    main()
