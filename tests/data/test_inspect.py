"""`data inspect` from within: counts, planted duplicates and leaks, what is possible, and a command that resolves."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from fewshot_mcl.data.inspect import Inspection, inspect
from fewshot_mcl.data.inspect_words import duplicates, lines
from fewshot_mcl.data.sources import ImageOptions
from fewshot_mcl.errors import UserError
from fewshot_mcl.suggestion import suggest

SPLITS = {"train": "ant bee cat", "val": "elk fox", "test": "hen ibis"}


def scenes(root: Path, count: int, side: int = 40, **splits: str) -> Path:
    """Smooth pictures, no two alike."""
    import numpy as np

    random = np.random.default_rng(0)
    for split, names in (SPLITS | splits).items():
        for name in names.split():
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for k in range(count):
                coarse = random.integers(0, 256, (5, 5, 3), dtype=np.uint8)
                image = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
                image.save(root / split / name / f"{k}.png")
    return root


def seen(path: Path, task: str = "few-shot") -> Inspection:
    return inspect(str(path), None, ImageOptions(), task)


def test_counts_sizes_kinds_and_what_is_possible(tmp_path: Path) -> None:
    scenes(tmp_path, 12)
    for k in range(9):
        (tmp_path / "train" / "cat" / f"{k}.png").unlink()
    Image.new("L", (90, 70), 10).save(tmp_path / "train" / "ant" / "wide.jpg")
    found = seen(tmp_path)
    train = found.of("train")
    assert train is not None
    assert train.by_class == {"ant": 13, "bee": 12, "cat": 3}
    assert (train.smallest, train.median, max(train.sizes)) == (3, 12, 13)
    assert list(train.few.items()) == [("cat", 3), ("bee", 12), ("ant", 13)]
    assert [train.largest_query(shot) for shot in (1, 5, 10)] == [2, None, None]
    test = found.of("test")
    assert test is not None
    assert [test.largest_query(shot) for shot in (1, 5, 10)] == [11, 7, 2]
    assert dict(found.kinds) == {"PNG RGB": 75, "JPEG L": 1}
    assert dict(found.sizes) == {(40, 40): 75, (90, 70): 1}


def test_planted_copies_are_found_where_they_leak(tmp_path: Path) -> None:
    scenes(tmp_path, 5)
    shutil.copy(tmp_path / "train" / "ant" / "0.png", tmp_path / "test" / "hen" / "leak.png")
    Image.open(tmp_path / "val" / "elk" / "1.png").save(tmp_path / "train" / "bee" / "again.jpg", quality=70)
    shutil.copy(tmp_path / "val" / "fox" / "2.png", tmp_path / "val" / "fox" / "twice.png")
    shutil.copy(tmp_path / "val" / "elk" / "3.png", tmp_path / "val" / "fox" / "both.png")
    found = seen(tmp_path)
    assert [(each.exact, each.leak, each.contradiction, str(each)) for each in found.twins] == [
        (True, True, True, "train train/ant/0.png = test test/hen/leak.png"),
        (False, True, True, "train train/bee/again.jpg = val val/elk/1.png"),
        (True, False, True, "val val/elk/3.png = val val/fox/both.png"),
        (True, False, False, "val val/fox/2.png = val val/fox/twice.png"),
    ]
    text = duplicates(found)
    assert text[0] == "the same image IN SEVERAL SPLITS, so that the test gives itself away: 1 group(s)"
    assert any("(of several classes)" in line for line in text)


def test_without_copies_that_is_said(tmp_path: Path) -> None:
    assert duplicates(seen(scenes(tmp_path, 4))) == ["no image twice, nor two that look the same"]


def test_bad_files_are_named_with_reasons_and_left_out_of_the_suggestion(tmp_path: Path) -> None:
    scenes(tmp_path, 6)
    (tmp_path / "train" / "ant" / "0.png").write_bytes(b"")
    (tmp_path / "train" / "ant" / "1.png").write_text("no image")
    found = seen(tmp_path)
    assert found.bad[0] == "train/ant/0.png (empty file)"
    assert len(found.bad) == 2
    assert "  bad images: 2" in lines(found)
    words = suggest(found, str(tmp_path), None, {}).train
    assert words[words.index("--on-bad-image") + 1] == "skip"
    assert words[words.index("--query") + 1] == "3"
    assert suggest(found, str(tmp_path), None, {"on_bad_image": "refuse"}).train == []


@pytest.mark.parametrize(("side", "size"), [(200, None), (70, "64"), (40, "32"), (12, "16")])
def test_images_are_not_enlarged_for_nothing(side: int, size: str | None, tmp_path: Path) -> None:
    words = suggest(seen(scenes(tmp_path, 3, side)), str(tmp_path), None, {}).train
    assert (words[words.index("--image-size") + 1] if "--image-size" in words else None) == size


def test_the_usual_values_need_no_words() -> None:
    found = inspect("glyphs", None, ImageOptions())
    assert found.kinds == {"array L": 9040}
    suggestion = suggest(found, "glyphs", None, {})
    assert (suggestion.train, suggestion.test, suggestion.reasons) == (
        ["train", "--data", "glyphs"],
        [],
        [],
    )


def test_a_class_of_one_image_is_named(tmp_path: Path) -> None:
    scenes(tmp_path, 3)
    for k in (1, 2):
        (tmp_path / "val" / "fox" / f"{k}.png").unlink()
    suggestion = suggest(seen(tmp_path), str(tmp_path), None, {})
    assert suggestion.train == []
    assert "class 'fox' of val has 1 usable image(s)" in suggestion.reasons[0]
    assert "no command to suggest" in suggestion.lines()[0]


def test_classify_gets_a_batch_that_leaves_no_image_alone(tmp_path: Path) -> None:
    scenes(tmp_path, 24, train="ant bee cat", val="ant bee cat", test="ant bee cat")
    (tmp_path / "train" / "ant" / "0.png").unlink()
    for name in ("bee", "cat"):
        for k in range(3):
            (tmp_path / "train" / name / f"{k}.png").unlink()
    found = seen(tmp_path, "classify")
    assert found.problems == {}
    words = suggest(found, str(tmp_path), None, {}).train
    assert words[0] == "classify"
    assert words[words.index("--batch") + 1] == "65"  # of 65 images the usual 64 would leave one


def test_what_is_no_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no images"):
        seen(tmp_path)


def test_progress_ends_with_all(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    inspect(str(scenes(tmp_path, 3)), None, ImageOptions(), progress=lambda done, total: told.append((done, total)))
    assert told == [(0, 21), (21, 21)]
