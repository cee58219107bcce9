"""Small spaces built by hand, with prices and a scorer whose answers are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from agents import AmcSettings
from agents.amc.ddpg import DdpgSettings
from search_spaces import (
    CostModel,
    Decision,
    DecisionKind,
    Evaluation,
    Factor,
    LayerFeatures,
    Policy,
    Pricer,
    SearchSpace,
)


def small(settings: AmcSettings) -> AmcSettings:
    """The same agent with networks and gradient steps that take no time."""
    ddpg = settings.ddpg
    return replace(
        settings,
        ddpg=DdpgSettings(16, ddpg.actor_rate, ddpg.critic_rate, ddpg.tau, ddpg.discount),
        batch=8,
        updates=None if settings.updates is None else 3,
    )


class ToyResNet:
    """A residual network in miniature: blocks to drop, inner widths, precision of each convolution.

    ``blocks`` residual blocks in three stages of 16, 32 and 64 channels; latency is a staircase of
    width and precision with a cost of changing precision between neighbours, size is weights times
    bits. The score is a negative divergence: early stages suffer more from pruning, late blocks
    hardly from being dropped, and what neighbours do to each other is not additive.
    """

    def __init__(self, blocks: int = 9, seed: int = 0, scope: str = "joint") -> None:
        rng = np.random.default_rng(seed)
        decisions: list[Decision] = []
        self.rows: list[
            tuple[int, int | None, int, int]
        ] = []  # width, block, channels, precision positions
        for b in range(blocks):
            stage = b * 3 // blocks
            width, side = 16 * 2**stage, 32 // 2**stage
            layer = LayerFeatures(
                index=b,
                out_channels=width,
                in_channels=width,
                height=side,
                width=side,
                stride=1,
                kernel=3,
                macs=2 * 9 * width * width * side * side,
                weights=2 * 9 * width * width,
            )
            block = None
            if scope == "joint" and b * 3 % blocks:
                block = f"block{b}:block"
                decisions.append(Decision(block, DecisionKind.BLOCK, (0, 1), None, layer))
            at_block = len(decisions) - 1 if block else None
            step = width // 8
            values = tuple(range(step, width + 1, step))
            decisions.append(
                Decision(f"block{b}.conv1:channels", DecisionKind.CHANNELS, values, block, layer)
            )
            at_channels = len(decisions) - 1
            if scope == "joint":
                decisions.append(
                    Decision(
                        f"block{b}.conv1:precision", DecisionKind.PRECISION, (8, 32), block, layer
                    )
                )
            self.rows.append((width, at_block, at_channels, len(decisions) - 1))
        self.space = SearchSpace(tuple(decisions))
        self.joint = scope == "joint"
        n = len(self.rows)
        stages = np.array([b * 3 // blocks for b in range(n)])
        self.pruning = np.array([0.9, 0.5, 0.25])[stages] * rng.uniform(0.6, 1.6, n)
        self.dropping = np.array([0.5, 0.35, 0.12])[stages] * rng.uniform(0.6, 1.6, n)
        self.rounding = 0.03 * rng.uniform(0.3, 3.0, n)
        self.models = {
            "latency_ms": self._latency(),
            "size_bytes": self._size(),
            "macs": self._macs(),
        }

    def pricer(self, **fractions: float) -> Pricer:
        """Bounds as fractions of the uncompressed network, by quantity."""
        free = Pricer(self.space, self.models)
        whole = free.costs(self.space.uncompressed())
        return free.with_limits({q: f * whole[q] for q, f in fractions.items()})

    def _table(self, row: tuple[int, int | None, int, int], cost) -> Factor:
        """A factor over a block's own decisions; zero where it is dropped."""
        _, block, channels, precision = row
        values = self.space.decisions[channels].values
        bits = self.space.decisions[precision].values if self.joint else (32,)
        table = np.array([[cost(v, b) for b in bits] for v in values], dtype=np.float64)
        if not self.joint:
            return Factor((channels,), table[:, 0])
        if block is None:
            return Factor((channels, precision), table)
        return Factor((block, channels, precision), np.stack([np.zeros_like(table), table]))

    def _latency(self) -> CostModel:
        factors = []
        for row in self.rows:
            width = row[0]
            side = 512 // width

            def cost(v: int, bits: int, width: int = width, side: int = side) -> float:
                unit = 16 if bits == 32 else 4
                lanes = -(-v // unit) * unit * (1.3 if v % unit else 1.0)
                return 0.01 + 2 * 9 * lanes * width * side * side / (4e7 if bits == 32 else 8e7)

            factors.append(self._table(row, cost))
        if self.joint:
            # A change of precision between neighbours that both run costs a conversion (dropped
            # blocks pass it on: ignored).
            change = np.array([[0.0, 0.03], [0.03, 0.0]])
            for (_, first, _, a), (_, second, _, b) in zip(self.rows, self.rows[1:]):
                if second is None:
                    continue
                table, scope = np.stack([np.zeros_like(change), change]), [second, a, b]
                if first is not None:
                    table, scope = np.stack([np.zeros_like(table), table]), [first, *scope]
                axes = sorted(range(len(scope)), key=scope.__getitem__)
                factors.append(Factor(tuple(scope[i] for i in axes), table.transpose(axes).copy()))
        return CostModel(0.05, tuple(factors))

    def _size(self) -> CostModel:
        return CostModel(
            1000.0,
            tuple(self._table(r, lambda v, b, w=r[0]: 2 * 9 * v * w * b / 8) for r in self.rows),
        )

    def _macs(self) -> CostModel:
        return CostModel(
            1e5,
            tuple(
                self._table(r, lambda v, b, w=r[0]: 2 * 9 * v * w * (512 // w) ** 2)
                for r in self.rows
            ),
        )

    def score(self, policy: Policy) -> float:
        values = policy.values
        harm, before = 0.0, 0.0
        for i, (width, block, channels, precision) in enumerate(self.rows):
            if block is not None and values[block] == 0:
                own = self.dropping[i]
            else:
                own = self.pruning[i] * (1 - values[channels] / width) ** 2
                if self.joint and values[precision] == 8:
                    own += self.rounding[i]
            # Damage to neighbours compounds.
            harm += own + 1.5 * own * before
            before = own
        return -harm

    def evaluate(self, policy: Policy, pricer: Pricer | None = None) -> Evaluation:
        score = self.score(policy)
        pricer = pricer or self.pricer()
        costs = pricer.costs(policy)
        drop = 1 - float(np.exp(0.5 * score))
        return Evaluation(
            (score,),
            (score - 0.01, score + 0.01),
            top1=0.9 - drop,
            top1_drop=(drop, drop - 0.01, drop + 0.01),
            costs=costs,
            violations=pricer.violations(costs),
        )
