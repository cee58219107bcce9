"""Random numbers of a library that draws from the global generators."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


class PrivateGenerators:
    """Lends torch's and NumPy's global generators a state of their own.

    stable-baselines3 draws weights, noise and batches from the global generators. Within ``use`` they
    continue where they were left at its last end; outside, they are as if nothing had happened.

    Args:
        seed: of both.
    """

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._torch = generator.get_state()
        self._numpy: Any = np.random.RandomState(seed % 2**32).get_state(legacy=False)

    @contextmanager
    def use(self) -> Iterator[None]:
        """Global generators are this one's inside."""
        before = torch.get_rng_state(), np.random.get_state(legacy=False), random.getstate()
        torch.set_rng_state(self._torch)
        np.random.set_state(self._numpy)
        try:
            yield
        finally:
            self._torch = torch.get_rng_state()
            self._numpy = np.random.get_state(legacy=False)
            torch.set_rng_state(before[0])
            np.random.set_state(before[1])
            random.setstate(before[2])

    def state_dict(self) -> dict[str, Any]:
        inner = self._numpy["state"]
        return {
            "torch": self._torch.clone(),
            "key": torch.from_numpy(inner["key"].astype(np.int64)),
            "pos": int(inner["pos"]),
            "has_gauss": int(self._numpy["has_gauss"]),
            "gauss": float(self._numpy["gauss"]),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._torch = state["torch"].clone()
        self._numpy = {
            "bit_generator": "MT19937",
            "state": {"key": state["key"].numpy().astype(np.uint32), "pos": int(state["pos"])},
            "has_gauss": int(state["has_gauss"]),
            "gauss": float(state["gauss"]),
        }
