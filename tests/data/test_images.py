from __future__ import annotations

import io
import os
import random
import zlib
from contextlib import suppress

import numpy as np
import pytest
from builders import picture, pixels
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from fewshot_mcl.data.images import BadImage, decode, decode_many, fit, read_image, resize_array
from fewshot_mcl.data.names import printable
from fewshot_mcl.errors import UserError

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
COLOUR = pixels(5)


def saved(path, image, **options):
    image.save(path, **options)
    return path


def as_stored(path, channels=3):
    """(8, 8, 3) or (8, 8) of an 8x8 file, not resized."""
    array = decode(path, 8, channels, "crop")
    assert array.shape == (channels, 8, 8)
    assert array.dtype == np.uint8
    return array[0] if channels == 1 else array.transpose(1, 2, 0)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm", "webp"])
def test_lossless_kinds_keep_every_pixel(tmp_path, suffix):
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(COLOUR), **({"lossless": True} if suffix == "webp" else {}))
    assert np.array_equal(as_stored(path), COLOUR)


def test_jpeg_and_gif_are_read(tmp_path):
    assert as_stored(saved(tmp_path / "a.jpg", Image.new("RGB", (8, 8), (200, 30, 90)))) == pytest.approx(
        np.full((8, 8, 3), (200, 30, 90)), abs=4
    )
    assert np.array_equal(as_stored(saved(tmp_path / "a.gif", Image.fromarray(GREY)), 1), GREY)


def test_grey_to_rgb_repeats_and_rgb_to_grey_weighs(tmp_path):
    grey = saved(tmp_path / "g.png", Image.fromarray(GREY))
    assert np.array_equal(as_stored(grey), np.repeat(GREY[..., None], 3, 2))
    colour = saved(tmp_path / "c.png", Image.fromarray(COLOUR))
    assert as_stored(colour, 1) == pytest.approx(COLOUR @ [0.299, 0.587, 0.114], abs=1)


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    deep = (np.arange(64, dtype=np.uint16).reshape(8, 8) * 1040).astype(np.uint16)
    expected = np.round(deep / 257).astype(np.uint8)
    for suffix in ("png", "tif"):
        path = saved(tmp_path / f"deep.{suffix}", Image.fromarray(deep))
        assert np.array_equal(as_stored(path, 1), expected)
    swapped = tmp_path / "swapped.tif"  # big-endian
    saved(swapped, Image.frombytes("I;16B", (8, 8), deep.astype(">u2").tobytes()))
    assert np.array_equal(as_stored(swapped, 1), expected)
    (tmp_path / "deep.pgm").write_bytes(b"P5 8 8 65535\n" + deep.astype(">u2").tobytes())
    assert np.array_equal(as_stored(tmp_path / "deep.pgm", 1), expected)


def test_pixels_without_a_fixed_range_are_refused(tmp_path):
    with pytest.raises(BadImage, match="floating-point"):
        decode(saved(tmp_path / "f.tif", Image.new("F", (8, 8), 0.5)), 8, 1, "crop")
    with pytest.raises(BadImage, match="32-bit"):
        decode(saved(tmp_path / "i.tif", Image.new("I", (8, 8), 1 << 20)), 8, 1, "crop")


def test_transparency_lies_over_white(tmp_path):
    alpha = np.full((8, 8), 51, np.uint8)  # a fifth
    over_white = np.round(COLOUR * 0.2 + 255 * 0.8)
    rgba = saved(tmp_path / "rgba.png", Image.fromarray(np.dstack([COLOUR, alpha])))
    assert as_stored(rgba) == pytest.approx(over_white, abs=1)
    la = saved(tmp_path / "la.png", Image.fromarray(np.dstack([GREY, alpha])))
    assert as_stored(la, 1) == pytest.approx(np.round(GREY * 0.2 + 255 * 0.8), abs=1)
    keyed = saved(tmp_path / "keyed.png", Image.fromarray(COLOUR), transparency=tuple(COLOUR[0, 0].tolist()))
    assert as_stored(keyed)[0, 0].tolist() == [255, 255, 255]
    assert as_stored(keyed)[3, 3].tolist() == COLOUR[3, 3].tolist()


def test_palettes_are_looked_up(tmp_path):
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((2, 1), 1)
    plain = as_stored(saved(tmp_path / "p.png", image))
    assert plain[0, 0].tolist() == [10, 20, 30]
    assert plain[1, 2].tolist() == [200, 100, 50]
    for suffix in ("png", "gif"):
        keyed = as_stored(saved(tmp_path / f"keyed.{suffix}", image, transparency=0))
        assert keyed[0, 0].tolist() == [255, 255, 255]
        assert keyed[1, 2].tolist() == [200, 100, 50]


def test_one_bit_and_cmyk(tmp_path):
    bits = Image.fromarray((GREY > 100).astype(np.uint8) * 255).convert("1")
    assert np.array_equal(as_stored(saved(tmp_path / "b.png", bits), 1), (GREY > 100) * 255)
    assert np.array_equal(as_stored(saved(tmp_path / "b.pbm", bits), 1), (GREY > 100) * 255)
    inks = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    for suffix in ("tif", "jpg"):
        assert as_stored(saved(tmp_path / f"inks.{suffix}", inks)) == pytest.approx(
            np.full((8, 8, 3), (255, 0, 0)), abs=3
        )


@pytest.mark.parametrize("kind", ["gif", "png", "webp", "tif"])
def test_the_first_frame_of_an_animation_counts(tmp_path, kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    path = tmp_path / f"a.{kind}"
    frames[0].save(path, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "webp" else {}))
    assert as_stored(path)[4, 4].tolist() == [255, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_exif_orientation_is_applied(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / f"o.{suffix}", Image.fromarray(pixels(2, 8, 6)), exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(np.asarray(read_image(path)), expected)
    assert expected.shape[:2] == ((6, 8) if orientation < 5 else (8, 6))


def test_damaged_exif_does_not_spoil_the_pixels(tmp_path):
    path = saved(tmp_path / "e.png", Image.fromarray(COLOUR), exif=b"Exif\x00\x00garbage that is no TIFF header")
    assert np.array_equal(as_stored(path), COLOUR)


def png_claiming(width, height):
    def chunk(name, body):
        return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [8000, 12_000, 60_000])
def test_too_many_pixels_are_refused_from_the_header(tmp_path, side, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    (tmp_path / "bomb.png").write_bytes(png_claiming(side, side))
    with pytest.raises(BadImage, match="50 million"):
        decode(tmp_path / "bomb.png", 8, 3, "crop")


def test_unusable_files_are_refused_with_a_reason(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no image")
    whole = picture(tmp_path / "whole.png", side=64).read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "TGA")
    (tmp_path / "other.png").write_bytes(buffer.getvalue())
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    for name, reason in [
        ("empty", "empty file"),
        ("text", "not an image"),
        ("half", "damaged"),
        ("other", "not an image of a kind"),
        ("gone", "link to a file that is not there"),
    ]:
        with pytest.raises(BadImage, match=reason):
            decode(tmp_path / f"{name}.png", 8, 3, "crop")


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM"]), seed=st.integers(0, 2**32))
def test_damage_never_raises_anything_else(tmp_path_factory, kind, seed):
    buffer = io.BytesIO()
    Image.fromarray(pixels(3, 16)).save(buffer, kind)
    content = bytearray(buffer.getvalue())
    random_ = random.Random(seed)
    for _ in range(random_.randrange(1, 6)):
        content[random_.randrange(len(content))] = random_.randrange(256)
    path = tmp_path_factory.mktemp("fuzz") / "a.png"
    path.write_bytes(content[: random_.randrange(1, len(content) + 1)])
    with suppress(BadImage):
        assert decode(path, 8, 3, "crop").shape == (3, 8, 8)


@settings(deadline=None)
@given(
    width=st.integers(1, 60),
    height=st.integers(1, 60),
    size=st.integers(1, 40),
    resize=st.sampled_from(["crop", "squash"]),
)
def test_fit_gives_the_size_and_leaves_the_right_size_alone(width, height, size, resize):
    image = Image.fromarray(pixels(1, width, height))
    fitted = fit(image, size, resize)
    assert fitted.size == (size, size)
    if (width, height) == (size, size):
        assert np.array_equal(np.asarray(fitted), np.asarray(image))


def test_crop_takes_the_centre_and_squash_takes_all():
    wide = Image.new("RGB", (24, 8), "red")
    wide.paste("blue", (8, 0, 16, 8))
    assert fit(wide, 8, "crop").getcolors() == [(64, (0, 0, 255))]
    squashed = np.asarray(fit(wide, 6, "squash"))
    assert squashed[3, 0].tolist() == [255, 0, 0]
    assert squashed[3, 5].tolist() == [255, 0, 0]


def test_shrinking_is_antialiased():
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    assert np.asarray(fit(Image.fromarray(stripes), 8, "crop")) == pytest.approx(np.full((8, 8), 127), abs=8)


def test_a_large_jpeg_read_small_looks_the_same(tmp_path):
    smooth = Image.fromarray(pixels(4, 6)).resize((600, 400), Image.Resampling.BICUBIC)
    path = saved(tmp_path / "large.jpg", smooth, quality=95)
    drafted = read_image(path, at_least=64)
    assert drafted.size == (150, 100)
    difference = np.asarray(fit(drafted, 32, "crop"), float) - np.asarray(fit(smooth, 32, "crop"), float)
    assert np.abs(difference).max() < 6


def make_mixed(tmp_path):
    paths = [picture(tmp_path / f"{i}.png", i) for i in range(5)]
    paths[1].write_bytes(b"")
    paths[3].write_text("no image")
    return paths


def test_refusing_names_files_reasons_and_the_way_on(tmp_path):
    with pytest.raises(
        UserError, match=r"2 of 5 images.*1\.png \(empty file\), .*3\.png \(not an.*--on-bad-image skip"
    ):
        decode_many(make_mixed(tmp_path), 8, 3, "crop", "refuse", 0.5)


@pytest.mark.parametrize("memory_share", [0.5, 0.0])
def test_skipping_keeps_the_order_of_the_rest(tmp_path, memory_share):
    decoded = decode_many(make_mixed(tmp_path), 8, 3, "crop", "skip", memory_share)
    assert isinstance(decoded.images, np.memmap) is (memory_share == 0)
    assert decoded.kept == [0, 2, 4]
    assert len(decoded.bad) == 2
    assert np.array_equal(decoded.images, np.stack([pixels(i).transpose(2, 0, 1) for i in (0, 2, 4)]))


def test_skipping_everything_is_an_error(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(UserError, match="1 of 1 images"):
        decode_many([tmp_path / "a.png"], 8, 3, "crop", "skip", 0.5)


def test_many_files_come_in_order_whatever_the_threads(tmp_path, monkeypatch):
    paths = [picture(tmp_path / f"{i}.png", i) for i in range(150)]
    results = []
    for workers in (1, 4):
        monkeypatch.setattr(os, "cpu_count", lambda workers=workers: workers)
        results.append(decode_many(paths, 8, 3, "crop", "refuse", 0.5).images)
    assert np.array_equal(results[0], np.stack([pixels(i).transpose(2, 0, 1) for i in range(150)]))
    assert np.array_equal(*results)


def test_arrays_are_resized_like_files_and_left_alone_at_their_size(tmp_path):
    array = np.stack([pixels(i, 16).transpose(2, 0, 1) for i in range(3)])
    assert resize_array(array, 16, 3, "crop", 0.5) is array
    assert resize_array(array, 16, 1, "crop", 0.5).shape == (3, 1, 16, 16)
    path = picture(tmp_path / "0.png", 0, 16)
    assert np.array_equal(resize_array(array, 8, 3, "crop", 0.5)[0], decode(path, 8, 3, "crop"))


@given(st.text())
def test_printable_names_stay_on_their_line(text):
    assert printable(text).isprintable()


def test_printable_escapes_what_a_terminal_would_obey():
    assert printable("a\nb\x1b[31m\u202e") == "a\\nb\\x1b[31m\\u202e"
    assert printable("Ä b") == "Ä b"
    assert printable(os.fsdecode(b"\xff")) == "\\udcff"
