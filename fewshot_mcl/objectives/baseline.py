"""Baseline: every peer learns from labels alone. With one peer, an ordinary network."""

from __future__ import annotations

from typing import Any, ClassVar

from fewshot_mcl.objectives.base import Objective


class Baseline(Objective):
    """Sum over peers of the cross entropy (eq. 2), which every other method adds to."""

    least_peers = 1
    defaults: ClassVar[dict[str, Any]] = {"peers": 1}
