"""Suspects: planted wrong names and duplicates are found, clean data give none, and every score equals loops in float64."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fewshot_mcl.data.store import ImageStore
from fewshot_mcl.report import headline
from fewshot_mcl.report.duplicates import ALIKE, Group, duplicates, edges, near_pairs
from fewshot_mcl.report.material import Material
from fewshot_mcl.report.mislabelled import CHI_SQUARE_MEDIAN, suspicions
from fewshot_mcl.report.suspects import section

HOSTILE = "<script>alert('x')</script>\n\x1b[31m\"&"


def classes(count: int, each: int, dim: int, apart: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Gaussian classes of spread 1 whose centres lie `apart` from the middle."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count).repeat_interleave(each)
    centres = torch.nn.functional.normalize(torch.randn(count, dim, generator=generator), dim=1) * apart
    return centres[labels] + torch.randn(len(labels), dim, generator=generator), labels


def median(values: list[float]) -> float:
    return sorted(values)[(len(values) - 1) // 2]


def scores_by_loops(x: np.ndarray, labels: list[int], count: int) -> np.ndarray:
    """(N, 2) score of every image, and the class nearest to it besides its own."""
    members = [[i for i, label in enumerate(labels) if label == c] for c in range(count)]
    centres = [x[each].mean(0) for each in members]
    without = [x[[j for j in members[label] if j != i]].mean(0) for i, label in enumerate(labels)]
    spread = {}
    for c in range(count):
        for o in set(range(count)) - {c}:
            along = [
                float((x[i] - without[i]) @ (centres[o] - without[i])) / np.linalg.norm(centres[o] - without[i])
                for i in members[c]
            ]
            spread[c, o] = median([a * a for a in along]) / CHI_SQUARE_MEDIAN
    common = median(list(spread.values()))
    scores = []
    for i, c in enumerate(labels):
        margin, o = max(
            (((x[i] - without[i]) ** 2).sum() - ((x[i] - centres[o]) ** 2).sum(), o) for o in set(range(count)) - {c}
        )
        scores.append((margin / (2 * max(spread[c, o], common)) / math.log(10), o))
    return np.array(scores)


def test_every_score_equals_loops() -> None:
    features, labels = classes(5, 7, 6, apart=3)
    features += 50  # far from zero, where squares lose digits
    found, expected = suspicions(features, labels, 5), scores_by_loops(features.double().numpy(), labels.tolist(), 5)
    assert found.score.numpy() == pytest.approx(expected[:, 0], rel=1e-5, abs=1e-5)
    assert found.other.tolist() == expected[:, 1].tolist()


@pytest.mark.parametrize(("each", "dim"), [(5, 32), (20, 64), (200, 16)])
@pytest.mark.parametrize("apart", [0.0, 8.0, 30.0])
def test_clean_random_classes_give_no_suspects(each: int, dim: int, apart: float) -> None:
    features, labels = classes(20, each, dim, apart)
    assert len(suspicions(features, labels, 20).worst()) == 0


def test_classes_that_overlap_give_hardly_any() -> None:
    """Here some images truly lie with another class."""
    found = [len(suspicions(*classes(20, 20, 64, 4.0, seed), 20).worst()) for seed in range(10)]
    assert sum(found) <= 10 * 400 / 500


@pytest.mark.parametrize("each", [6, 20, 100])
def test_a_planted_wrong_name_is_found_and_nothing_else(each: int) -> None:
    features, labels = classes(10, each, 32, apart=12)
    features[2] = features[7 * each + 1] + 0.5 * torch.randn(32, generator=torch.Generator().manual_seed(1))
    found = suspicions(features, labels, 10)
    assert found.worst().tolist() == [2]
    assert int(found.other[2]) == 7


def test_classes_too_small_to_judge_are_left_out() -> None:
    features, labels = classes(4, 8, 16, apart=12)
    features, labels = features[:27], labels[:27]  # three images of the last class
    features[25] = features[0]
    found = suspicions(features, labels, 5)
    assert found.score[24:].tolist() == [-math.inf] * 3
    assert set(found.other.tolist()) <= {0, 1, 2}
    assert suspicions(features[24:], torch.zeros(3, dtype=torch.int64), 1).score.tolist() == [-math.inf] * 3


def pictures(count: int, seed: int, side: int = 40) -> Tensor:
    """(count, 3, side, side) smooth random pictures."""
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed)) * 255
    return torch.nn.functional.interpolate(coarse, size=side, mode="bicubic").clamp(0, 255).to(torch.uint8)


def saved_again(image: Tensor, quality: int = 60) -> Tensor:
    """As a JPEG file, and a little smaller in between."""
    out = io.BytesIO()
    Image.fromarray(image.movedim(0, -1).numpy()).resize((32, 32)).save(out, "JPEG", quality=quality)
    again = np.array(Image.open(out).resize((image.shape[2], image.shape[1])))
    return torch.from_numpy(again).movedim(-1, 0)


def splits(train: Tensor, val: Tensor, test: Tensor) -> dict[str, ImageStore]:
    found = {}
    for name, images in (("train", train), ("val", val), ("test", test)):
        labels = torch.arange(len(images)) * 4 // len(images)
        found[name] = ImageStore(images, labels, [f"{name} {i}" for i in range(4)], split=name)
    return found


def test_clean_pictures_are_no_duplicates() -> None:
    found = duplicates(splits(pictures(400, 0), pictures(100, 1), pictures(100, 2)))
    assert found.groups == ()
    assert found.complete


def test_planted_duplicates_are_found_within_and_across_splits() -> None:
    train, val, test = pictures(300, 0), pictures(300, 1), pictures(300, 2)
    test[7] = train[3]  # equal, across
    val[5] = saved_again(train[290])  # the same picture, across
    test[40] = (0.8 * test[299].float() + 20).to(torch.uint8)  # brightened, within
    val[9], val[200] = val[1], val[1]  # equal, three times
    test[100], test[101] = train[50], saved_again(train[50])  # both at once
    found = duplicates(splits(train, val, test))
    assert set(found.groups) == {
        Group((("train", 3), ("test", 7)), True),
        Group((("train", 290), ("val", 5)), False),
        Group((("test", 40), ("test", 299)), False),
        Group((("val", 1), ("val", 9), ("val", 200)), True),
        Group((("train", 50), ("test", 100), ("test", 101)), False),
    }
    assert [len(group.splits) for group in found.groups] == [2, 2, 2, 1, 1]


def test_pairs_of_all_blocks_equal_loops() -> None:
    """More thumbnails than a block has, against every pair one by one."""
    chance = torch.Generator().manual_seed(0)
    base = torch.randint(0, 256, (30, 32, 32), generator=chance, dtype=torch.uint8)
    noise = torch.randint(-25, 26, (1300, 32, 32), generator=chance) * (torch.arange(1300) % 4)[:, None, None]
    base = (
        torch.nn.functional.interpolate(base[None].float(), size=(8, 8))
        .repeat_interleave(4, 2)
        .repeat_interleave(4, 3)[0]
    )
    thumbnails = (base.repeat(44, 1, 1)[:1300].int() + noise).clamp(0, 255).to(torch.uint8)
    unit = {side: edges(thumbnails, side).double().numpy() for side in (8, 32)}
    expected = [
        [i, j]
        for i in range(1300)
        for j in range(i + 1, 1300)
        if unit[8][i] @ unit[8][j] >= ALIKE <= unit[32][i] @ unit[32][j]
    ]
    found, complete = near_pairs(thumbnails)
    assert sorted(found.tolist()) == expected
    assert complete
    assert max(j for _, j in expected) > 1024 > min(i for i, _ in expected)
    assert any(unit[8][i] @ unit[8][j] >= ALIKE > unit[32][i] @ unit[32][j] for i in range(30) for j in range(i, 1300))


def test_too_many_pairs_are_said_and_take_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fewshot_mcl.report.duplicates.MOST_PAIRS", 100)
    frame = pictures(1, 0).repeat(40, 1, 1, 1)
    frame[:, 0, 0, 0] = torch.arange(40)  # no two are equal
    assert not duplicates({"train": ImageStore(frame, torch.zeros(40), ["film"])}).complete


def test_edges_are_differences_of_neighbours() -> None:
    picture = torch.arange(1024, dtype=torch.uint8).view(1, 32, 32)
    found = edges(picture, 32)[0].double().numpy()
    grey = picture[0].double().numpy()
    down = [grey[i + 1, j] - grey[i, j] for i in range(31) for j in range(32)]
    right = [grey[i, j + 1] - grey[i, j] for i in range(32) for j in range(31)]
    both = np.array(down + right)
    assert found == pytest.approx(both / np.linalg.norm(both), abs=1e-6)


def test_blank_images_are_duplicates_only_where_they_are_equal() -> None:
    blank = torch.full((4, 3, 16, 16), 9, dtype=torch.uint8)
    blank[3] = 10
    found = duplicates({"train": ImageStore(blank, torch.zeros(4), ["blank"])})
    assert found.groups == (Group((("train", 0), ("train", 1), ("train", 2)), True),)


def test_the_part_says_a_leak_loudly_and_names_suspects_as_text(material: Material) -> None:
    images = {name: pictures(80, seed) for seed, name in enumerate(("train", "val", "test"))}
    images["test"][11] = images["train"][30]
    stores = splits(**images)
    stores["test"].class_names = (HOSTILE, "fox", "gnu", "owl")
    features, labels = classes(4, 20, 16, apart=20)
    wrong = features.clone()
    wrong[45] = features[3]
    measured = {"train": features, "val": features, "test": wrong}
    material = replace(material, stores=stores, features={k: torch.stack([v, v]) for k, v in measured.items()})
    text = str(section(material))
    assert "<strong>Leak: 1 picture lies in more than one split (2 images).</strong>" in text
    clean = replace(material, stores=splits(*(pictures(80, seed) for seed in range(3))))
    assert "1 picture lies in more than one split" in str(headline.section(material))  # where the page begins, too
    assert "more than one split" not in str(headline.section(clean))
    assert "Across splits: equal" in text
    assert "test: 1 candidate among 80 images (score 3.0 or more)" in text
    assert "train: no candidates among 80 images" in text
    assert "named <strong><bdi>gnu</bdi></strong>" in text
    assert "<script>" not in text
    assert "\x1b" not in text
    assert "looks like <strong><bdi>&lt;script&gt;" in text
    assert labels[45] == 2


def test_the_part_of_a_clean_run_says_so(material: Material) -> None:
    text = str(section(material))
    assert "No image was found twice" in text
    assert "Leak" not in text
