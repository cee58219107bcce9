"""What ``measure.py`` of a measuring kit does on the device.

Three steps: the runtime's own optimized graphs are read, networks are timed end to end, and the
kernels found in the graphs are timed one by one with the code that ``x86-ort`` is measured with.
Whatever ``state.jsonl`` already holds is not done again.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latency_tables.errors import KernelError, MeasurementError
from latency_tables.kernel import Kernel
from latency_tables.kit_interrupts import Interrupts
from latency_tables.kit_plan import UNCOMPRESSED, KitNetwork, KitPlan
from latency_tables.kit_progress import KitProgress
from latency_tables.kit_results import save_results
from latency_tables.kit_state import KitState
from latency_tables.kit_target import DeviceTarget
from latency_tables.latency import Measurements

# Kernels timed before they are on the disk: one session's company when they are timed cold.
SLICE = 64
# Networks timed in one run beside the uncompressed one; more would need more memory.
GROUP = 4
NETWORK_SECONDS = 0.6
# A run in which the timing thread waited longer than this share for a processor is done again.
QUIET = 0.03
TRIES = 3


class Device:
    """The work of one kit on one device.

    Args:
        kit: folder of the kit.
        plan: the kit's.
        target: what to time on.
        state: what there is already, and where more of it goes.
        progress: told what happens.
        interrupts: asked whether to stop.
        max_seconds: nothing new is begun after so long; None without end.
    """

    def __init__(
        self,
        kit: Path,
        plan: KitPlan,
        target: DeviceTarget,
        state: KitState,
        progress: KitProgress,
        interrupts: Interrupts,
        max_seconds: float | None = None,
    ) -> None:
        self._kit, self._plan, self._target, self._state = kit, plan, target, state
        self._progress, self._interrupts = progress, interrupts
        self._end = None if max_seconds is None else time.monotonic() + max_seconds
        self.disturbed = 0.0

    def run(self) -> None:
        """All steps, as far as time and the user let them.

        Raises:
            TableError: a file of the kit is missing or damaged.
            KernelError, MeasurementError: the runtime does not take the uncompressed network.
        """
        self.read_graphs()
        self.time_networks()
        self.time_kernels()

    def stopped(self) -> bool:
        """Whether nothing new may be begun."""
        late = self._end is not None and time.monotonic() >= self._end
        return late or self._interrupts.wanted

    def read_graphs(self) -> None:
        """Step 1: which kernels the runtime here makes of each network."""
        state = self._state
        known = {*state.graphs, *state.refused}
        left = [network for network in self._plan.networks if network.name not in known]
        total = len(self._plan.networks)
        for k, network in enumerate(left):
            if self.stopped():
                return
            self._progress.show("1/3 reading the runtime's graphs", total - len(left) + k, total)
            model = self._plan.bytes_of(self._kit, network)
            try:
                state.add_graph(network.name, self._target.kernels(model))
            except KernelError as error:
                if network.name == UNCOMPRESSED:
                    raise
                state.add_refused(network.name, str(error))
        if left:
            self._progress.show("1/3 reading the runtime's graphs", total, total)

    def time_networks(self) -> None:
        """Step 2: whole networks, a few at a time beside the uncompressed one."""
        state = self._state
        known = state.graphs.keys() - state.refused.keys()
        timed = [n for n in self._plan.networks if n.timed and n.name in known]
        left = [network for network in timed if network.name not in state.timed]
        done = len(timed) - len(left)
        # The uncompressed one is timed by itself first: nothing else can be if it does not run.
        groups = [left[:1]] if left and left[0].name == UNCOMPRESSED else []
        rest = left[len(groups) :]
        groups += [rest[start : start + GROUP] for start in range(0, len(rest), GROUP)]
        for group in groups:
            if self.stopped():
                return
            self._progress.show("2/3 timing whole networks", done, len(timed))
            self._time_group(group)
            done += len(group)
        if left:
            self._progress.show("2/3 timing whole networks", len(timed), len(timed))

    def _time_group(self, networks: Sequence[KitNetwork]) -> None:
        try:
            found = self._together(networks)
        except MeasurementError as error:
            if networks[0].name == UNCOMPRESSED:
                raise
            if len(networks) > 1:
                for network in networks:
                    self._time_group([network])
            else:
                self._state.add_refused(networks[0].name, str(error))
            return
        self.disturbed = max(self.disturbed, found.waited)
        self._state.add_timed({network.name: _timed(found, network.name) for network in networks})

    def _together(self, networks: Sequence[KitNetwork]) -> Measurements:
        together = {network.name: network for network in (self._plan.networks[0], *networks)}
        with tempfile.TemporaryDirectory(prefix="trimtab-") as folder:
            files = {}
            for k, (name, network) in enumerate(together.items()):
                files[name] = Path(folder) / f"{k}.onnx"
                files[name].write_bytes(self._plan.bytes_of(self._kit, network))
            found = self._target.measure(files, seconds=NETWORK_SECONDS)
            for _ in range(TRIES - 1):
                if found.waited <= QUIET or self.stopped():
                    break
                again = self._target.measure(files, seconds=NETWORK_SECONDS)
                found = again if again.waited < found.waited else found
        return found

    def time_kernels(self) -> None:
        """Step 3: each distinct kernel, those used most first."""
        state = self._state
        if not state.graphs:
            return
        parts = slices(state.wanted())
        total = len(state.rows) + len(state.failures) + sum(len(part) for part in parts)
        for part in parts:
            if self.stopped():
                return
            before = len(state.rows) + len(state.failures)

            def show(done: int, _asked: int, before: int = before) -> None:
                self._progress.show("3/3 timing kernels", before + done, total)

            show(0, len(part))
            remaining = None if self._end is None else max(0.0, self._end - time.monotonic())
            found = self._target.measure_kernels(part, show, self.stopped, remaining)
            state.add_measured(found)
            self.disturbed = max(self.disturbed, found.waited)

    def save(self, out: Path) -> int:
        """Writes table and networks; gives the number of kernels that are still to be timed."""
        save_results(out, self._plan, self._target, self._state)
        return len(self._state.wanted())


def slices(kernels: Sequence[Kernel]) -> list[list[Kernel]]:
    """Parts of one arithmetic each (they are timed beside one reference), nearly in the order given."""
    parts: list[tuple[int, list[Kernel]]] = []
    for kind in ("float", "integer"):
        places = [k for k, kernel in enumerate(kernels) if kernel.arithmetic == kind]
        for start in range(0, len(places), SLICE):
            chosen = places[start : start + SLICE]
            parts.append((chosen[0], [kernels[k] for k in chosen]))
    return [part for _, part in sorted(parts, key=lambda part: part[0])]


def _timed(found: Measurements, name: str) -> dict[str, Any]:
    """A network's latency, and its ratio to the uncompressed network in the same run."""
    latency = found[name]
    return {
        "ratio": found.ratio(name, UNCOMPRESSED),
        "ratio_ci95": list(found.ratio_ci95(name, UNCOMPRESSED)),
        "p10_ms": latency.p10_ms,
        "p50_ms": latency.p50_ms,
        "p90_ms": latency.p90_ms,
        "ci95_ms": list(latency.ci95_ms),
        "count": latency.count,
        "uncompressed_p50_ms": found[UNCOMPRESSED].p50_ms,
        "reference_us": found.reference_us,
        "waited": found.waited,
        "time": found.time,
    }
