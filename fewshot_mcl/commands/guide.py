"""How the help orders the commands, and the examples at its end. Every example is run by a test."""

from __future__ import annotations

GROUPS = {
    "Train": ("train", "classify", "reproduce"),
    "Look": ("data", "evaluate", "report", "compare", "list", "doctor"),
    "Use": ("predict", "export"),
}

EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {  # command -> what for, and what to type
    "": (
        ("learn from the embedded characters, in about two minutes", "fewshot-mcl train --episodes 600"),
        (
            "test what was learned on characters it has not seen",
            "fewshot-mcl evaluate runs/glyphs-mcl-okd-10way-1shot-seed0",
        ),
        ("look at your own images first: a folder for each class", "fewshot-mcl data check photos"),
    ),
    "train": (
        ("four peers on the embedded characters", "fewshot-mcl train --episodes 600"),
        (
            "your own images, where classes and images are few",
            "fewshot-mcl train --data photos --way 5 --query 5 --set val_way=3 --set val_query=5",
        ),
        ("one network alone, to compare with", "fewshot-mcl train --method baseline --out runs/alone"),
        ("what would it take? Nothing is trained", "fewshot-mcl train --peers 2 --dry-run"),
    ),
    "classify": (
        ("four peers on the embedded characters", "fewshot-mcl classify --epochs 5"),
        ("your own images: a folder for each class", "fewshot-mcl classify --data photos --image-size 32"),
        ("another method, and a result for a program to read", "fewshot-mcl classify --method dml --json"),
    ),
    "evaluate": (
        ("1 and 5 shots, 600 episodes", "fewshot-mcl evaluate runs/glyphs-mcl-okd-10way-1shot-seed0"),
        (
            "every peer and the ensemble, 10 classes at a time",
            "fewshot-mcl evaluate runs/glyphs-mcl-okd-10way-1shot-seed0 --peers --way 10 --shot 1",
        ),
        (
            "for a program to read",
            "fewshot-mcl evaluate runs/glyphs-mcl-okd-10way-1shot-seed0 --episodes 100 --json",
        ),
    ),
    "reproduce": (
        (
            "two methods of the few-shot table on the embedded characters",
            "fewshot-mcl reproduce table4 --data glyphs --rows baseline --rows mcl-okd --columns 1-shot --seeds 1",
        ),
        (
            "what that would take: every run with its minutes and memory",
            "fewshot-mcl reproduce table4 --data glyphs --rows baseline --seeds 1 --dry-run",
        ),
    ),
    "data check": (
        ("a folder for each class", "fewshot-mcl data check photos"),
        ("as training and test images of the same classes", "fewshot-mcl data check photos --task classify"),
        ("for a program to read", "fewshot-mcl data check glyphs --json"),
    ),
    "predict": (
        (
            "a folder for each class, and images to be answered about",
            "fewshot-mcl predict --support my-classes --query photos",
        ),
        (
            "with a run of yours, for a program to read",
            "fewshot-mcl predict --support my-classes --query photos --model runs/glyphs-mcl-okd-10way-1shot-seed0 --json",
        ),
    ),
    "report": (
        ("one page about a run", "fewshot-mcl report runs/glyphs-mcl-okd-10way-1shot-seed0"),
        (
            "of harder episodes, in another file",
            "fewshot-mcl report runs/glyphs-mcl-okd-10way-1shot-seed0 --way 20 --shot 5 --out page.html",
        ),
    ),
    "compare": (
        (
            "two methods on the same episodes",
            "fewshot-mcl compare runs/glyphs-mcl-okd-10way-1shot-seed0 runs/glyphs-baseline-10way-1shot-seed0",
        ),
        (
            "with a page to pass on",
            "fewshot-mcl compare runs/glyphs-mcl-okd-10way-1shot-seed0 runs/glyphs-baseline-10way-1shot-seed0 --out page.html",
        ),
    ),
    "export": (
        ("ONNX", "fewshot-mcl export runs/glyphs-mcl-okd-10way-1shot-seed0"),
        ("for TensorBoard", "fewshot-mcl export runs/glyphs-mcl-okd-10way-1shot-seed0 --format tensorboard"),
    ),
    "doctor": (
        ("versions, devices, room, and a self-test", "fewshot-mcl doctor"),
        ("for a program to read", "fewshot-mcl doctor --json"),
    ),
    "list": (
        ("everything there is", "fewshot-mcl list"),
        ("the methods, a line each", "fewshot-mcl list methods"),
    ),
    "data inspect": (
        ("a folder for each class", "fewshot-mcl data inspect photos"),
        ("with a page of pictures", "fewshot-mcl data inspect photos --out photos.html"),
    ),
    "data convert": (
        ("decode once; training then starts at once", "fewshot-mcl data convert photos --out packed"),
        ("smaller and in grey", "fewshot-mcl data convert photos --out packed-grey --image-size 28 --color grey"),
    ),
}


def example_lines(command: str) -> list[str]:
    """The examples of a command as its help shows them: a comment, and the line to type below it."""
    return [line for what, typed in EXAMPLES.get(command, ()) for line in (f"# {what}", typed)]
