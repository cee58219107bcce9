"""What a data source gives. (A module of its own, because the server names it without torch.)"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.utils.data import Dataset


@dataclass(frozen=True, slots=True)
class DataBundle:
    """Splits as a data source gives them.

    Attributes:
        train, test: datasets of ``(input tensor, class index)`` pairs.
        validation: held out of training, where the source has one.
        finetune: the train split with augmentation, same order and length, where the source has
            one.
        evaluate: metric of the user's own ``(outputs, targets) -> per-example score``, or None.
    """

    train: Dataset[Any]
    test: Dataset[Any]
    validation: Dataset[Any] | None = None
    finetune: Dataset[Any] | None = None
    evaluate: Callable[..., Any] | None = None
