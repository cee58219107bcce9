"""A channel criterion that is not ours, held to what every criterion gives."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressors.errors import PruningError
from compressors.groups import PruningGroup
from compressors.importance import Scores

# (network, groups, images) -> group root to one number a channel, larger matters more.
Rank = Callable[[nn.Module, Sequence[PruningGroup], Tensor], Mapping[str, Any]]


@dataclass(frozen=True)
class CustomCriterion:
    """Channel importance by a function of somebody else's.

    The function is called once a job as ``rank(network, groups, images)``:

    - ``network``: a copy in evaluation mode, on the CPU, float32, its batch norms folded into the layers before them,
      its parameters requiring gradients. It may be changed.
    - ``groups``: the pruning groups (``PruningGroup``): ``root`` names one, ``channels`` counts its channels, and
      ``members`` are the parameters that make and read them.
    - ``images``: the job's calibration images, float32 [n, channels, height, width], normalised as the network wants
      them.

    It gives, for every group, its root to numbers [channels]: finite, without unit, larger matters more. They become
    float64, and only those of one group are compared. What it draws from torch's and numpy's global generators is
    seeded, so that the same job gives the same ranking.

    ``compressors.contract.CriterionContract`` is the test suite of such a function.

    Attributes:
        label: what messages call it.
        rank: the function.
    """

    label: str
    rank: Rank

    def importances(
        self, network: nn.Module, groups: Sequence[PruningGroup], images: Tensor
    ) -> Scores:
        """Importance of every group's channels, see ``importance.importances``.

        Args:
            network: with its batch norms folded; stays as it is.
            images: float [n, ...].

        Raises:
            PruningError: the function fails, or what it gives is not one finite number for each channel of each group.
        """
        own = copy.deepcopy(network).eval().requires_grad_(True)
        numpys = np.random.get_state()
        try:
            with torch.random.fork_rng(devices=[]), torch.enable_grad():
                torch.manual_seed(0)
                np.random.seed(0)
                found = self.rank(own, copy.deepcopy(tuple(groups)), images.clone())
        except Exception as error:
            raise self._wrong(f"failed: {type(error).__name__}: {error}") from error
        finally:
            np.random.set_state(numpys)
        if not isinstance(found, Mapping):
            raise self._wrong(
                f"gave {type(found).__name__}, not a mapping of group roots to numbers"
            )
        roots = {group.root for group in groups}
        if set(found) != roots:
            odd = ", ".join(repr(root) for root in sorted(roots ^ set(found), key=str)[:3])
            raise self._wrong(
                f"must rank each of the {len(roots)} groups it is given and no other; see {odd}"
            )
        return {group.root: self._checked(group, found[group.root]) for group in groups}

    def _checked(self, group: PruningGroup, given: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
        try:
            plain = given.detach().cpu().numpy() if isinstance(given, Tensor) else given
            values = np.array(plain, dtype=np.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise self._wrong(f"gave no numbers for {group.root!r}: {error}") from error
        if values.shape != (group.channels,):
            raise self._wrong(
                f"must give one number a channel of {group.root!r}, [{group.channels}], not {list(values.shape)}"
            )
        if not np.isfinite(values).all():
            bad = int(np.flatnonzero(~np.isfinite(values))[0])
            raise self._wrong(
                f"gave {values[bad]} for channel {bad} of {group.root!r}; numbers must be finite"
            )
        return values

    def _wrong(self, what: str) -> PruningError:
        return PruningError(f"{self.label} {what}. Mend it, or choose another criterion")
