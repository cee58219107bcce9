"""A compressed network as its exported file computes it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from compressors.errors import ExportError
from compressors.exporter import export_onnx
from compressors.plan import Plan
from latency_tables import HostFingerprint

# Examples a run. Of 1, 2, 4, 8 and 16 the fastest or close to it; 16 cost the largest of six sampled MobileNetV2
# policies a third more.
BATCH = 8
# A product of 8-bit numbers whose weights stay within 7 bits does not saturate on any processor.
_UNSATURATED = 63
# Network, plan and batch to the file.
Export = Callable[[nn.Module, Plan, int], onnx.ModelProto]


class ExportedNetwork:
    """The network in ONNX Runtime, on as many threads as torch has.

    Where 8-bit products do not saturate (the processor has VNNI or AMX, or the plan's weights are held to 7 bits)
    integer layers run in integers, by the kernels that run the file on an x86-ort target; float layers may sum in
    another order where the file's batch is another. Elsewhere the same file runs with its quantize/dequantize pairs
    in float: fake quantization, up to 4 times slower.

    Args:
        network: built from the plan, weights of quantized layers on their grid (``Compressed.network``).
        plan: its quantizers; an empty one for a float network needs its ``input_shape``.
        batch: examples a run.
        integers: run integer layers in integers; by what the processor can when left out.
        export: writes the file, see ``export_onnx``.

    Raises:
        ExportError: the network cannot be exported, or the runtime refuses the file.
    """

    def __init__(
        self,
        network: nn.Module,
        plan: Plan,
        batch: int = BATCH,
        integers: bool | None = None,
        export: Export = export_onnx,
    ) -> None:
        model = export(network, plan, batch)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if not (runs_integers(plan) if integers is None else integers):
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        try:
            self._session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise ExportError(f"the exported network cannot be loaded: {_line(error)}") from error
        self._batch = batch
        self._shape = tuple(plan.input_shape)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Outputs float32 [n, ...] on inputs float [n, C, H, W].

        Raises:
            ExportError: the runtime fails, or the outputs are not one an example.
        """
        if tuple(inputs.shape[1:]) != self._shape:
            raise ExportError(
                f"the exported network takes inputs {list(self._shape)}, given {list(inputs.shape[1:])}"
            )
        given = np.ascontiguousarray(inputs.detach().numpy(), dtype=np.float32)
        (name,) = (spec.name for spec in self._session.get_inputs())
        parts = []
        for start in range(0, len(given), self._batch):
            part = given[start : start + self._batch]
            missing = self._batch - len(part)
            # The file takes whole batches only; the last one is filled with copies.
            fed = np.concatenate([part, np.repeat(part[-1:], missing, axis=0)]) if missing else part
            try:
                out = self._session.run(None, {name: fed})[0]
            except Exception as error:
                raise ExportError(f"the exported network fails: {_line(error)}") from error
            if out.ndim == 0 or len(out) != self._batch:
                raise ExportError(
                    f"the exported network gives {list(out.shape)} for {self._batch} examples"
                )
            parts.append(torch.from_numpy(out[: len(part)]))
        return torch.cat(parts)


def runs_integers(plan: Plan) -> bool:
    """Whether this processor multiplies the plan's integers without saturating."""
    held = all(scale.limit <= _UNSATURATED for scale in plan.weights.values())
    return held or HostFingerprint.here().has_vnni


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
