#!/usr/bin/env python3
"""Render the embedded data set `glyphs` from the fonts that arrive inside PyPI packages.

A class is one character; an image is that character in one font face, slightly distorted; the splits share no script.
The result is committed as package data: this runs only to check it or to change it. GLYPH_FONTS.md, beside this file,
names the packages and their licences and says how to repeat and verify a build.

The .npz holds, for C classes of P images: images (C, P, 28, 28) uint8, white on black in 16 grey levels; script,
codepoint and split (C,); faces (C, P). `fewshot_mcl.data.glyphs` adds background and noise at load: clean images
compress far better.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from fontTools.ttLib import TTFont
from PIL import Image, ImageFont
from scipy.ndimage import gaussian_filter, map_coordinates

SIDE = 28  # of an image
BASE = 48  # of the upright bitmap that an image is distorted from
BOX = 22  # how much of an image's side an undistorted character fills
FINER = 3  # images are drawn this many times finer, then averaged down
FONT_SIZE = 72
MIN_PIXELS = 40  # a smaller crop is a stray mark
MAX_BITMAPS = 60  # more faces of a character than this add time and little variety
MIN_BITMAPS = 5  # a character with fewer distinct faces is left out
SAME_BITMAP = 0.96  # overlap (intersection over union) beyond which two faces draw the same bitmap
SAME_SHAPE = 0.78  # overlap beyond which two characters cannot be told apart, such as Latin A and Greek Alpha

MATPLOTLIB_FONTS = "matplotlib/mpl-data/fonts/ttf"
# Not its symbol fonts, nor LastResortHE, which claims nearly every character and draws a box for it.
MATPLOTLIB_TEXT_FONT = re.compile(r"DejaVu(?!.*Display)|STIXGeneral")
FONT_PACKAGES = """
    alegreya-sans almarai amiri anek-telugu arimo assistant baloo-2 bitter cairo cardo caveat chakra-petch comfortaa
    eb-garamond exo-2 fira-sans frank-ruhl-libre fredoka geologica heebo hind ibm-plex-mono ibm-plex-sans
    ibm-plex-sans-arabic ibm-plex-serif inter jetbrains-mono kalam kanit literata lobster lora manrope merriweather
    montserrat mukta noto-kufi-arabic noto-sans noto-sans-arabic noto-sans-devanagari noto-sans-telugu noto-sans-thai
    noto-serif open-sans oswald pacifico play playfair-display poppins press-start-2p prompt pt-sans pt-serif rajdhani
    raleway ramabhadra roboto roboto-mono roboto-slab rubik russo-one sarabun sofia-sans source-sans-3 source-serif-4
    tajawal teko unbounded vollkorn yanone-kaffeesatz zilla-slab
"""


def span(first: int, last: int, without: str = "") -> str:
    """The characters between two code points, both included.

    `without` are small letters with the shape of their capital: at one size, as here, the two would be one class.
    """
    return "".join(chr(code) for code in range(first, last + 1) if chr(code) not in without)


# script: (split, characters). The order matters: of two characters with the same shape the earlier one is kept.
SCRIPTS = {
    "Latin": ("train", span(0x41, 0x5A) + span(0x61, 0x7A, "copsuvwxz") + "0123456789&@?ßæœøþðłđħŋ"),
    "Greek": ("train", span(0x391, 0x3A1) + span(0x3A3, 0x3A9) + span(0x3B1, 0x3C9)),
    "Cyrillic": ("train", span(0x410, 0x44F, "вдзийклмнтждяющшъыьэч") + "ЂЄЉЊЋЏђєљњћџ"),
    "Armenian": ("train", span(0x531, 0x556) + span(0x561, 0x586)),
    "Georgian": ("train", span(0x10D0, 0x10F0)),
    "Arabic": ("val", span(0x621, 0x63A) + span(0x641, 0x64A) + "\u067e\u0686\u0698\u06af" + span(0x660, 0x669)),
    "Telugu": ("val", span(0xC05, 0xC39) + span(0xC66, 0xC6F)),
    "Devanagari": ("test", span(0x904, 0x939) + span(0x966, 0x96F)),
    "Thai": ("test", span(0xE01, 0xE2E) + span(0xE50, 0xE59)),
    "Hebrew": ("test", span(0x5D0, 0x5EA)),
}


@dataclass(frozen=True)
class Face:
    """One face of a font file; a font that varies in weight gives several, which differ in `axes`."""

    name: str
    path: Path
    axes: list[float]
    codepoints: frozenset[int]

    @cached_property
    def font(self) -> ImageFont.FreeTypeFont:
        """Pillow's font, in its basic layout: whether libraqm is installed must not change the images."""
        font = ImageFont.truetype(self.path, FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)
        if self.axes:
            font.set_variation_by_axes(self.axes)
        return font

    def crop(self, char: str) -> np.ndarray | None:
        """The character without its margins, or None where the face draws nothing."""
        mask = self.font.getmask(char, mode="L")
        grey = np.asarray(mask, dtype=np.uint8).reshape(mask.size[1], mask.size[0])
        rows, columns = np.where(grey > 64)
        return grey[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] if len(rows) else None

    @cached_property
    def placeholder(self) -> np.ndarray | None:
        """What the face draws for a character that no font has."""
        return self.crop("\U0010fffe")


@dataclass(frozen=True)
class Bitmap:
    """One character in one face: BASE x BASE grey levels, and which of those pixels are ink."""

    face: str
    grey: np.ndarray
    ink: np.ndarray


@dataclass(frozen=True)
class Character:
    """A class of the data set."""

    char: str
    script: str
    split: str
    bitmaps: list[Bitmap]

    @cached_property
    def rows(self) -> np.ndarray:
        """The ink of the first 12 bitmaps, one row each: enough of them to compare shapes."""
        return np.stack([bitmap.ink.reshape(-1) for bitmap in self.bitmaps[:12]]).astype(np.float32)

    @cached_property
    def by_face(self) -> dict[str, np.ndarray]:
        return {bitmap.face: bitmap.ink for bitmap in self.bitmaps}


def font_files(site: Path) -> list[Path]:
    """The font files of every package, sorted, since the random order of faces is drawn over this list.

    Raises:
        FileNotFoundError: where a package is missing: without its fonts the result would quietly be another data set.
    """
    names = ["fontpkg_" + name.replace("-", "_") for name in FONT_PACKAGES.split()]
    folders = [site / MATPLOTLIB_FONTS, *(site / name / "files" for name in names)]
    absent = [folder.relative_to(site).parts[0] for folder in folders if not folder.is_dir()]
    if absent:
        raise FileNotFoundError(f"packages not installed in {site}: {' '.join(absent)}")
    files = [path for folder in folders for path in folder.iterdir() if path.suffix in (".ttf", ".otf")]
    used = [path for path in files if path.parent != folders[0] or MATPLOTLIB_TEXT_FONT.match(path.name)]
    return sorted(used, key=Path.as_posix)


def faces_of(path: Path) -> list[Face]:
    """One face of a font; of a font that varies in weight its lightest, regular and heaviest."""
    with TTFont(path, lazy=True) as font:
        codepoints = frozenset(font.getBestCmap())
        axes = font["fvar"].axes if "fvar" in font else []
    weight = next((axis for axis in axes if axis.axisTag == "wght"), None)
    if weight is None:
        return [Face(path.name, path, [axis.defaultValue for axis in axes], codepoints)]
    regular = min(max(400, weight.minValue), weight.maxValue)
    return [
        Face(f"{path.name}@{value:g}", path, [value if a is weight else a.defaultValue for a in axes], codepoints)
        for value in sorted({weight.minValue, regular, weight.maxValue})
    ]


def seeded(*key: object) -> np.random.RandomState:
    """A generator for each purpose, so that changing one class leaves the others' random draws as they are.

    `RandomState` and not `Generator`: only its stream is frozen across numpy versions.
    """
    digest = hashlib.sha256("|".join(map(str, key)).encode()).digest()
    return np.random.RandomState(int.from_bytes(digest[:4], "little"))


def deal(faces: list[Face], rng: np.random.RandomState) -> list[Face]:
    """Order faces so that the first few are as unlike as can be: one of every family, then a second of each, ..."""
    families: dict[str, list[Face]] = {}
    for i in rng.permutation(len(faces)):
        families.setdefault(re.split(r"[-@\[]", faces[i].name)[0].lower(), []).append(faces[i])
    names = sorted(families)
    dealt = [families[names[i]] for i in rng.permutation(len(names))]
    rounds = max(map(len, dealt), default=0)
    return [family[turn] for turn in range(rounds) for family in dealt if turn < len(family)]


def fit(crop: np.ndarray) -> np.ndarray:
    """Scale a crop to a centred BASE x BASE bitmap, so that size tells nothing about the face or the character."""
    scale = BASE / max(crop.shape)
    height, width = (max(1, round(length * scale)) for length in crop.shape)
    bitmap = Image.new("L", (BASE, BASE))
    scaled = Image.fromarray(crop).resize((width, height), Image.Resampling.LANCZOS)
    bitmap.paste(scaled, ((BASE - width) // 2, (BASE - height) // 2))
    return np.asarray(bitmap)


def distinct_bitmaps(faces: list[Face], char: str, rng: np.random.RandomState) -> list[Bitmap]:
    """The character's first MAX_BITMAPS bitmaps that differ visibly; blanks and placeholders are passed over."""
    kept: list[Bitmap] = []
    for face in deal([face for face in faces if ord(char) in face.codepoints], rng):
        crop = face.crop(char)
        if crop is None or crop.size < MIN_PIXELS or np.array_equal(crop, face.placeholder):
            continue
        grey = fit(crop)
        ink = grey > 127
        if any((ink & other.ink).sum() > SAME_BITMAP * (ink | other.ink).sum() for other in kept):
            continue
        kept.append(Bitmap(face.name, grey, ink))
        if len(kept) == MAX_BITMAPS:
            break
    return kept


def likeness(new: Character, old: Character) -> float:
    """How alike two characters are, from 0 to 1.

    Each face of `new` is compared with the closest face of `old`, and the median taken. Where that is above a half, so
    is the median over the faces that draw both: if these agree it is one shape, however much faces differ.
    """
    both = new.rows @ old.rows.T
    closest = both / (new.rows.sum(1)[:, None] + old.rows.sum(1)[None] - both)
    across = float(np.median(closest.max(1)))
    shared = [(ink, old.by_face[face]) for face, ink in new.by_face.items() if face in old.by_face][:25]
    if across <= 0.5 or len(shared) < 3:
        return across
    return max(across, float(np.median([(a & b).sum() / (a | b).sum() for a, b in shared])))


def choose_classes(faces: list[Face]) -> list[Character]:
    """The characters that become classes; prints how many of each script, and why the others are left out."""
    kept: list[Character] = []
    for script, (split, chars) in SCRIPTS.items():
        left_out = []
        for char in chars:
            # One seed for a whole script: its characters meet the faces in the same order, so they share faces.
            new = Character(char, script, split, distinct_bitmaps(faces, char, seeded("faces", script)))
            if len(new.bitmaps) < MIN_BITMAPS:
                left_out.append(f"{char}({len(new.bitmaps)} faces)")
                continue
            likenesses = [likeness(new, old) for old in kept]
            if max(likenesses, default=0) > SAME_SHAPE:
                left_out.append(f"{char}~{kept[int(np.argmax(likenesses))].char}")
            else:
                kept.append(new)
        print(f"{split:5} {script:10} {len(chars) - len(left_out):2} classes; left out:", *left_out or ["none"])
    return kept


def distort(bitmap: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """Draw a bitmap into a SIDE x SIDE image: rotated, sheared, scaled, shifted and bent at random.

    The amounts are a balance: raw pixels must not be a good feature, and a trained network must have something to find.
    """
    fine = SIDE * FINER
    angle = np.deg2rad(rng.uniform(-15, 15))
    scale = rng.uniform(0.75, 1.05) * BOX / BASE * FINER
    aspect = 1.2 ** rng.uniform(-1, 1)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shear = np.array([[1, rng.uniform(-0.2, 0.2)], [0, 1]])
    inverse = np.linalg.inv(rotation @ shear @ np.diag([scale * aspect, scale / aspect]))
    centre = rng.uniform(-1, 1, 2) * 2.5 * FINER + fine / 2
    bend = np.stack([gaussian_filter(x, 4 * FINER, mode="reflect") for x in rng.standard_normal((2, fine, fine))])
    bend *= FINER / bend.std()  # a standard deviation of one pixel of the image
    y, x = np.mgrid[0:fine, 0:fine] + 0.5
    x, y = x - centre[0] + bend[0], y - centre[1] + bend[1]
    source = [inverse[i, 0] * x + inverse[i, 1] * y + BASE / 2 - 0.5 for i in (1, 0)]  # row, column in the bitmap
    image = map_coordinates(bitmap.astype(np.float32), source, order=1)
    image = image.reshape(SIDE, FINER, SIDE, FINER).mean((1, 3))
    # Stretched, or the thinnest faces would vanish under the noise added at load; in 16 levels, to compress well.
    return (np.round(image * (255 / max(image.max(), 1)) / 17) * 17).astype(np.uint8)


def draw_class(character: Character, per: int) -> tuple[np.ndarray, list[str]]:
    """`per` images of a character and their faces; where faces are too few they return, differently distorted."""
    rng = seeded("jit", character.script, ord(character.char))
    # Out of twice the number needed, not out of all: the faces that were dealt first are of the most families.
    drawn = rng.permutation(min(len(character.bitmaps), 2 * per))
    picked = [character.bitmaps[drawn[i % len(drawn)]] for i in range(per)]
    return np.stack([distort(bitmap.grey, rng) for bitmap in picked]), [bitmap.face for bitmap in picked]


def build(faces: list[Face], per: int) -> dict[str, np.ndarray]:
    """Every array of the data set."""
    kept = choose_classes(faces)
    images, names = zip(*(draw_class(character, per) for character in kept))
    return {
        "images": np.stack(images),
        "script": np.array([character.script for character in kept]),
        "codepoint": np.array([ord(character.char) for character in kept]),
        "split": np.array([character.split for character in kept]),
        "faces": np.array(names),
    }


def contact_sheet(images: np.ndarray) -> Image.Image:
    """Twenty classes, one a row, at twice their size."""
    rows = images[np.linspace(0, len(images) - 1, 20).astype(int)]
    sheet = Image.fromarray(np.concatenate([np.concatenate(list(row), axis=1) for row in rows]))
    return sheet.resize((sheet.width * 2, sheet.height * 2))


def parse_arguments() -> argparse.Namespace:
    site = next((Path(entry) for entry in sys.path if Path(entry, MATPLOTLIB_FONTS).is_dir()), None)
    parser = argparse.ArgumentParser(description="Render the data set `glyphs` from fonts in installed packages.")
    parser.add_argument("--site", type=Path, default=site, help="the folder that the font packages are installed in")
    parser.add_argument("--out", type=Path, required=True, help="the .npz file to write; it must not exist yet")
    parser.add_argument("--per", type=int, default=20, help="images of each class (default: %(default)s)")
    parser.add_argument("--preview", type=Path, help="also draw some classes, as a model sees them (needs fewshot_mcl)")
    arguments = parser.parse_args()
    if arguments.site is None:
        parser.error("found no installed matplotlib: name the folder that holds it with --site")
    if arguments.per < 1:
        parser.error("--per must be at least 1")
    if arguments.out.exists():
        parser.error(f"{arguments.out} exists: remove it, or choose another name")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    started = time.monotonic()
    if arguments.preview:  # only then, and before the work: the package needs torch, rendering does not
        from fewshot_mcl.data.glyphs import finish
    try:
        faces = [face for path in font_files(arguments.site) for face in faces_of(path)]
    except FileNotFoundError as error:
        sys.exit(f"build_glyphs.py: {error} (see GLYPH_FONTS.md)")
    arrays = build(faces, arguments.per)
    with arguments.out.open("xb") as file:
        np.savez_compressed(file, **arrays)
    for name, array in arrays.items():
        print(f"{name:9} {array.dtype.str:4} {array.shape!s:17} {hashlib.sha256(array.tobytes()).hexdigest()}")
    print(f"{len(faces)} faces, {len(arrays['images'])} classes, {time.monotonic() - started:.0f} s: {arguments.out}")
    if arguments.preview:
        contact_sheet(finish(arrays["images"])).save(arguments.preview)


if __name__ == "__main__":
    main()
