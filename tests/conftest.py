"""For all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fewshot_mcl import progress


@pytest.fixture(autouse=True, scope="session")
def _no_progress_of_a_slow_machine() -> Iterator[None]:
    """What is shown after two seconds is shown by tests of that only: others ask what is said at any speed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress._Late, "AFTER", 600.0)
        yield
