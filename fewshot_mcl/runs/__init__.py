"""Run directories: what a run leaves, written so that nothing good is ever lost and read so that nothing damaged is used."""

from __future__ import annotations

from fewshot_mcl.runs.run import Run
from fewshot_mcl.runs.tensors import StoredTensors, Tensors

__all__ = ["Run", "StoredTensors", "Tensors"]
