"""Image files to be fuzzed: every kind that is read, and the bombs that a header can announce."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
from guarded import Case
from mutation import damage
from PIL import Image

from fewshot_mcl.data.images import decode, in_threads

SIDE = 24


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def valid() -> list[bytes]:
    """Small files of every kind and mode."""
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    rgb = Image.fromarray(pixels)
    grey, palette, deep = rgb.convert("L"), rgb.convert("P"), Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    clear = rgb.convert("RGBA")
    clear.putalpha(grey)
    kinds = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
    files = [_saved(rgb, kind) for kind in kinds] + [_saved(grey, kind) for kind in kinds]
    files += [_saved(image, kind) for image in (palette, clear) for kind in ("PNG", "GIF", "TIFF", "WEBP")]
    files += [_saved(deep, kind) for kind in ("PNG", "TIFF", "PPM")]
    files += [_saved(rgb.convert("CMYK"), kind) for kind in ("JPEG", "TIFF")]
    files += [
        _saved(rgb.convert("F").convert("F"), "TIFF"),
        _saved(grey.convert("1"), "PNG"),
        _saved(grey.convert("1"), "TIFF"),
    ]
    files += [_saved(rgb, "TIFF", compression=name) for name in ("tiff_lzw", "jpeg", "tiff_adobe_deflate", "packbits")]
    files += [_saved(rgb, "JPEG", progressive=True), _saved(rgb, "WEBP", lossless=True)]
    files += [
        _saved(rgb, kind, save_all=True, append_images=[grey.convert("RGB")] * 3)
        for kind in ("GIF", "WEBP", "PNG", "TIFF")
    ]
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a\x1b[31mb"
    files += [_saved(rgb, kind, exif=exif) for kind in ("JPEG", "PNG", "WEBP", "TIFF")]
    return [*files, b"P3\n4 4\n255\n" + b"1 2 3 " * 16, b"P1\n8 8\n" + b"0 1 " * 32]


def png(width: int, height: int, body: bytes, *extra: tuple[bytes, bytes], depth: int = 8, kind: int = 2) -> bytes:
    """A PNG file of hand-made chunks."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", body), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


def bitmap(width: int, height: int, body: bytes, compression: int = 1) -> bytes:
    """A BMP file of 8 bits a pixel, run-length coded."""
    header = struct.pack(
        "<IIIHHIIiiII", 40, width & 0xFFFFFFFF, height & 0xFFFFFFFF, 1, 8, compression, len(body), 0, 0, 256, 0
    )
    return b"BM" + struct.pack("<IHHI", 54 + 1024 + len(body), 0, 0, 54 + 1024) + header + bytes(1024) + body


def scans(count: int, side: int = 7000) -> bytes:
    """A small progressive JPEG of many pixels, each of whose scans must go through all of them."""
    content = _saved(Image.new("L", (side, side)), "JPEG", progressive=True)
    last = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + last * count + content[-2:]


def bombs() -> list[bytes]:
    """Enormous by announcement, by expansion, or by the work that they ask for."""
    zeros = zlib.compress(bytes(1 << 22), 9)
    sizes = ((60_000, 60_000), (1, 1 << 31), (1 << 31, 1 << 31), (0, 0), (7000, 7000), (49_000_000, 1), (1, 49_000_000))
    files = [
        png(width, height, zeros, depth=depth, kind=kind)
        for width, height in sizes
        for depth, kind in ((8, 2), (16, 0), (8, 6))
    ]
    text = zlib.compress(bytes(1 << 27), 9)
    files += [png(8, 8, zeros, (b"zTXt", b"k\0\0" + text)), png(8, 8, zeros, (b"iCCP", b"k\0\0" + text))]
    files += [png(8, 8, zeros, *[(b"tEXt", b"k%d\0" % i + b"v" * 1000) for i in range(5000)])]
    files += [
        bitmap(width, height, body)
        for width, height in sizes
        for body in (b"\0\2\xff\xff" * 5000, b"\0\0" * 5000, b"\xff\1" * 5000)
    ]
    files += [bitmap(49_000_000, -1, b""), bitmap(-1, 1, b""), bitmap(1 << 30, 1 << 30, b"", 0)]
    files += [
        b"P%d\n%d %d\n%d\n" % (kind, *size, most) for kind in (1, 3, 5, 6) for size in sizes for most in (255, 65_535)
    ]
    files += [b"P3\n3 3\n255\n" + b"#" * 5_000_000, b"P3\n3 3\n255\n" + b"9" * 5_000_000, b"P6\n" + b"1" * 5_000_000]
    gif = bytearray(_saved(Image.new("L", (8, 8)), "GIF"))
    gif[6:10] = b"\xff\xff\xff\xff"
    webp = b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\x12\0\0\0\xfe\x3f\0\xfe\x3f\0ANIM\x06\0\0\0\0\0\0\0\0\0"
    return [*files, bytes(gif), webp, scans(5000), scans(100, 1000), bytes(10_000_000), *_tiffs()]


def _tiffs() -> list[bytes]:
    """TIFF files whose directories announce too much, or lead in a circle."""

    def tiff(*entries: tuple[int, int, int, int], after: int = 0) -> bytes:
        rows = b"".join(struct.pack("<HHII", *each) for each in entries)
        return b"II*\0" + struct.pack("<IH", 8, len(entries)) + rows + struct.pack("<I", after) + bytes(256)

    plain = [
        (256, 4, 1, 8),
        (257, 4, 1, 8),
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (273, 4, 1, 200),
        (279, 4, 1, 64),
    ]
    huge = [(256, 4, 1, 1 << 31), (257, 4, 1, 1 << 31), *plain[2:]]
    many = [*plain, (277, 3, 1, 65_535)]
    far = [*plain[:5], (273, 4, 1 << 31, 0), (279, 4, 1 << 31, 0)]
    tiles = [*plain[:5], (322, 4, 1, 1 << 30), (323, 4, 1, 1 << 30), (324, 4, 1, 200), (325, 4, 1, 64)]
    text = [*plain, (270, 2, 1 << 31, 8)]
    return [tiff(*each) for each in (huge, many, far, tiles, text)] + [tiff(*plain, after=8), tiff(*[plain[0]] * 500)]


def case(folder: Path) -> Case:
    """Decode a damaged file, whose suffix says nothing of its content."""
    files, special = valid(), bombs()
    suffixes = (".png", ".jpg", ".tif", ".ppm")

    def read(draw: random.Random, number: int) -> object:
        path = folder / f"x{draw.choice(suffixes)}"
        path.write_bytes(special[number] if number < len(special) else damage(draw.choice(files), draw, files))
        try:
            shape = draw.choice((8, SIDE)), draw.choice((1, 3)), draw.choice(("crop", "squash"))
            (array,) = in_threads(lambda i: decode(path, *shape), 1)  # as the product reads files
        finally:
            path.unlink()
        assert array.dtype == np.uint8
        return array

    return read
