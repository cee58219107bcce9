"""How many images a job calibrates with."""

from __future__ import annotations

import torch
from torch import nn

from compressors import prepare
from compressors.structure import analyse, example_input
from service.job_setup import enough_images


def test_wide_layers_ask_for_more_calibration_images() -> None:
    narrow = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3))
    wide = nn.Sequential(nn.Conv2d(3, 512, 3), nn.ReLU(), nn.Conv2d(512, 8, 3))
    depthwise = nn.Sequential(nn.Conv2d(3, 960, 1), nn.ReLU(), nn.Conv2d(960, 960, 3, groups=960))
    found = []
    for network in (narrow, wide, depthwise):
        with torch.no_grad():
            found.append(enough_images(analyse(prepare(network), example_input((3, 8, 8)))))
    # Four rows a feature from 24 places an image: 512 * 9 features want 768 images.
    assert found == [256, 768, 256]
