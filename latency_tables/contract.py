"""What every target keeps to, as a test suite.

A plug-in's tests subclass ``TargetContract`` and give a target::

    class TestMine(TargetContract):
        def target(self) -> Target:
            return parse_target("mine?batch=2")
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from latency_tables.energy import Metered
from latency_tables.errors import KernelError, MeasurementError, TargetError
from latency_tables.kernel import merge_uses
from latency_tables.table import LatencyTable
from latency_tables.target import Target, parse_target


def small_network(batch: int, channels: int = 8) -> bytes:
    """An ONNX file of [batch, 3, 8, 8] to [batch, channels]: a convolution, ReLU, global mean."""
    generator = np.random.default_rng(0)
    weight = generator.normal(0, 0.1, (channels, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], name="/conv/Conv", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["r"], name="/act/Relu"),
            helper.make_node("GlobalAveragePool", ["r"], ["p"], name="/pool/GlobalAveragePool"),
            helper.make_node("Flatten", ["p"], ["y"], name="/Flatten"),
        ],
        "small",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [batch, channels])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


class TargetContract:
    """Subclass it in a test module, override ``target``; ``model`` too where ONNX is not read."""

    def target(self) -> Target:
        """The target under test."""
        raise NotImplementedError

    def parse(self, text: str) -> Target:
        """Reads a target's name; override it where ``parse_target`` does not know the name."""
        return parse_target(text)

    def model(self, channels: int = 8) -> bytes:
        """A small network from [batch, 3, 8, 8] that the target reads."""
        return small_network(self.target().batch, channels)

    def _file(self, folder: str, channels: int = 8) -> Path:
        path = Path(folder) / f"{channels}-{self.target().artifact_name}"
        path.write_bytes(self.model(channels))
        return path

    def test_is_a_target(self) -> None:
        assert isinstance(self.target(), Target)

    def test_spec_is_canonical(self) -> None:
        target = self.target()
        again = self.parse(target.spec)
        assert again.spec == target.spec
        assert again.options == target.options
        assert target.spec.startswith(target.name)

    def test_unknown_option_is_refused(self) -> None:
        try:
            self.parse(f"{self.target().name}?no_such_option=1")
        except TargetError as error:
            assert "no_such_option" in str(error)
        else:
            raise AssertionError("an unknown option was accepted")

    def test_facts_are_sane(self) -> None:
        target = self.target()
        assert target.threads >= 1
        assert target.batch >= 1
        assert target.precisions == tuple(sorted(set(target.precisions)))
        assert all(bits > 0 for bits in target.precisions)
        assert target.device_class
        assert Path(target.artifact_name).name == target.artifact_name
        for channels in (1, 3, 8, 16, 17, 64, 100):
            assert target.channel_step(channels) >= 1

    def test_kernels_of_a_network(self) -> None:
        target = self.target()
        uses = target.kernels(self.model())
        assert uses
        assert [use.kernel.key for use in uses] == [
            use.kernel.key for use in target.kernels(self.model())
        ]
        assert all(spec is not None for use in uses for spec in use.kernel.outputs)

    def test_weights_do_not_matter_to_kernels_but_widths_do(self) -> None:
        target = self.target()
        keys = {use.kernel.key for use in target.kernels(self.model(8))}
        assert keys != {use.kernel.key for use in target.kernels(self.model(16))}

    def test_not_a_network(self) -> None:
        try:
            self.target().kernels(b"not a network")
        except KernelError:
            pass
        else:
            raise AssertionError("rubbish was read as a network")

    def test_measures_every_kernel_once(self) -> None:
        target = self.target()
        kernels = [use.kernel for use in target.kernels(self.model())]
        if not target.can_measure:
            try:
                target.measure_kernels(kernels)
            except MeasurementError:
                return
            raise AssertionError("a target that cannot measure gave rows")
        told: list[tuple[int, int]] = []
        result = target.measure_kernels(kernels * 2, progress=lambda *done: told.append(done))
        distinct = merge_uses(target.kernels(self.model()))
        settled = {row.kernel.key for row in result.rows}
        failed = {failure.kernel.key for failure in result.failures}
        assert settled | failed == {use.kernel.key for use in distinct}
        assert not settled & failed
        assert not result.left
        assert told[-1] == (len(distinct), len(distinct))
        for row in result.rows:
            assert row.median_us > 0
            assert row.ci95[0] <= row.median_us <= row.ci95[1]
            assert row.p10_us <= row.median_us <= row.p90_us
            assert row.provenance == "measured"
            assert row.reference_us == result.references_us[row.kernel.arithmetic]

    def test_rows_without_a_device(self) -> None:
        """A measured target brings none along; what a table-only one says is of the kernels asked for."""
        target = self.target()
        kernels = [use.kernel for use in target.kernels(self.model())]
        rows = target.rows(kernels * 2)
        assert {row.kernel.key for row in rows} <= {kernel.key for kernel in kernels}
        assert len({row.kernel.key for row in rows}) == len(rows)
        assert target.rows([]) == ()
        if not rows:
            return
        # They add up: all of one arithmetic at one reference time, which is what a table asks for.
        table = LatencyTable.empty(target).with_rows(rows)
        assert len(table) == len(rows)
        assert all(table.rows[row.kernel.key] == row for row in rows)
        assert all(row.provenance in ("measured", "simulated", "imported") for row in rows)
        assert [row.median_us for row in target.rows(kernels)] == [row.median_us for row in rows]

    def test_stops_when_told(self) -> None:
        target = self.target()
        if not target.can_measure:
            return
        kernels = [use.kernel for use in target.kernels(self.model())]
        result = target.measure_kernels(kernels, stop=lambda: True)
        assert not result.rows
        assert len(result.left) == len(merge_uses(target.kernels(self.model())))

    def test_measures_networks_side_by_side(self) -> None:
        target = self.target()
        with tempfile.TemporaryDirectory() as folder:
            models = {"a": self._file(folder), "b": self._file(folder, 64)}
            if not target.can_measure:
                try:
                    target.measure(models, seconds=0.1)
                except MeasurementError:
                    return
                raise AssertionError("a target that cannot measure gave latencies")
            measured = target.measure(models, seconds=0.1)
        assert set(measured) == {"a", "b"}
        for latency in measured.values():
            assert 0 < latency.p10_ms <= latency.p50_ms <= latency.p90_ms
            assert latency.count > 0
        assert len(measured.rounds["a"]) == len(measured.rounds["b"])
        assert measured.ratio("a", "a") == 1
        assert measured.ratio("b", "a") > 0

    def test_energy_is_measured_or_its_absence_explained(self) -> None:
        target = self.target()
        if not isinstance(target, Metered):
            return
        absent = target.energy_absent()
        with tempfile.TemporaryDirectory() as folder:
            models = {"a": self._file(folder)}
            if absent is not None:
                assert len(absent) > 20  # a sentence that says why
                try:
                    target.measure_energy(models, seconds=0.1)
                except MeasurementError:
                    return
                raise AssertionError("a target without an energy counter gave energies")
            energy = target.measure_energy(models, seconds=0.3)["a"]
        assert 0 <= energy.net_mj <= energy.gross_mj
        assert energy.ms > 0 and energy.idle_w > 0 and energy.meter

    def test_runs_any_number_of_examples(self) -> None:
        target = self.target()
        if not target.can_measure:
            return
        examples = np.random.default_rng(0).normal(size=(2 * target.batch + 1, 3, 8, 8))
        examples = examples.astype(np.float32)
        with tempfile.TemporaryDirectory() as folder:
            path = self._file(folder)
            together = target.run(path, examples)
            alone = np.concatenate(
                [target.run(path, examples[i : i + 1]) for i in range(len(examples))]
            )
        assert together.shape[0] == len(examples)
        np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)
