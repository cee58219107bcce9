from __future__ import annotations

import numpy as np

from agents.contract import contract_pricers
from agents.policy_features import PolicyFeatures


def test_nothing_taken_away_is_nothing_lost() -> None:
    for pricer in contract_pricers().values():
        whole = pricer.space.indices(pricer.space.uncompressed())[None]
        np.testing.assert_array_equal(PolicyFeatures(pricer)(whole), 0.0)


def test_amounts_are_shares_and_names_are_ranks() -> None:
    pricer = contract_pricers()["everything"]
    features = PolicyFeatures(pricer)(np.zeros((1, len(pricer.space)), dtype=np.int64))[0]
    lost = dict(zip((d.id for d in pricer.space.decisions), features))
    assert lost["b0.conv:channels"] == 0.75  # 4 of 16
    assert lost["b0.conv:sparsity"] == 0.75
    assert lost["b0.conv:weight_bits"] == 1.0  # 2 of 2, 4, 8
    assert lost["b1:block"] == 1.0
    one = pricer.space.indices(pricer.space.uncompressed())
    position = next(i for i, d in enumerate(pricer.space.decisions) if "weight_bits" in d.id)
    one[position] = 1
    assert PolicyFeatures(pricer)(one[None])[0, position] == 0.5


def test_costs_are_logarithms_of_shares() -> None:
    pricer = contract_pricers()["joint"]
    low = np.zeros(len(pricer.space), dtype=np.int64)
    features = PolicyFeatures(pricer)(low[None])[0, len(pricer.space) :]
    whole = pricer.space.indices(pricer.space.uncompressed())[None]
    shares = [m.price(low[None])[0] / m.price(whole)[0] for m in pricer.models.values()]
    np.testing.assert_allclose(features, np.log(shares))
