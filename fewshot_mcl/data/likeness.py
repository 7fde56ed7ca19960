"""Images that look alike: a perceptual hash finds candidates, small copies of the images confirm them.

The hash has 63 bits: whether each low frequency of the image's cosine transform is above their median. It hardly changes when an
image is saved again, resized or recompressed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

SIDE, LOW, SMALL = 32, 8, 16  # pixels of the transform, frequencies that are kept, pixels of the small copy
BANDS = 8  # of eight bits: two hashes that differ in fewer bits than there are bands have one in common
MOST_BITS = 6
MOST_DIFFERENCE = 0.15  # root mean square between the small copies, as a share of the deviation of their pixels
MOST_STRETCH = 0.05  # difference of the logarithms of width / height
FLAT = 4.0  # deviation of grey values below which an image has no shape to go by
BLOCK = 1 << 22  # pairs that are compared at once
_ONES = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)


@dataclass(frozen=True)
class Look:
    """What an image looks like, in little.

    Attributes:
        hash: 63 bits.
        small: (16, 16, 3) uint8, the aspect ratio not kept.
        stretch: logarithm of width / height.
        flat: whether it is all of nearly one grey.
    """

    hash: int
    small: np.ndarray
    stretch: float
    flat: bool


def look(image: Image.Image) -> Look:
    """Of an "L" or "RGB" image."""
    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.float32)
    low = dctn(grey, norm="ortho")[:LOW, :LOW].ravel()[1:]
    bits = np.packbits(np.append(low > np.median(low), False))
    small = np.asarray(image.convert("RGB").resize((SMALL, SMALL), Image.Resampling.BILINEAR), np.uint8)
    stretch = float(np.log(image.width / image.height))
    return Look(int.from_bytes(bits.tobytes(), "big"), small, stretch, float(grey.std()) < FLAT)


def alike(looks: list[Look]) -> list[list[int]]:
    """Groups of two or more images that look alike, by place; chains of likeness make one group."""
    shaped = np.array([i for i, each in enumerate(looks) if not each.flat], np.int64)
    if len(shaped) < 2:
        return []
    hashes = np.array([looks[i].hash for i in shaped], np.uint64)
    small = np.stack([looks[i].small for i in shaped]).astype(np.float32)
    stretch = np.array([looks[i].stretch for i in shaped])
    first, second = _close(hashes)
    near = np.abs(stretch[first] - stretch[second]) <= MOST_STRETCH
    first, second = first[near], second[near]
    contrast = np.maximum(small.std(axis=(1, 2, 3)), FLAT)
    limits = MOST_DIFFERENCE * np.minimum(contrast[first], contrast[second])
    sure = np.array([np.sqrt(np.square(small[a] - small[b]).mean()) for a, b in zip(first, second)]) <= limits
    first, second = first[sure], second[sure]
    edges = coo_array((np.ones(len(first)), (first, second)), shape=(len(shaped), len(shaped)))
    _, names = connected_components(edges, directed=False)
    order = np.argsort(names, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(names[order])) + 1)
    return sorted([int(shaped[i]) for i in part] for part in parts if len(part) > 1)


def _close(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (i < j) of hashes that differ in at most `MOST_BITS` bits, each once."""
    found = []
    bands = hashes.view(np.uint8).reshape(-1, BANDS)
    for band in range(BANDS):
        order = np.argsort(bands[:, band], kind="stable")
        for members in np.split(order, np.flatnonzero(np.diff(bands[order, band])) + 1):
            step = max(1, BLOCK // len(members))
            for start in range(0, len(members), step):
                rows = members[start : start + step]
                different = (hashes[rows, None] ^ hashes[members]).view(np.uint8).reshape(len(rows), len(members), 8)
                a, b = np.nonzero(_ONES[different].sum(-1, dtype=np.uint8) <= MOST_BITS)
                pairs = np.stack([rows[a], members[b]], 1)
                found.append(pairs[pairs[:, 0] < pairs[:, 1]])
    pairs = np.unique(np.concatenate(found), axis=0)
    return pairs[:, 0], pairs[:, 1]
