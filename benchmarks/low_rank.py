"""Where factoring a layer pays: its time whole and as factors, and what the factors lose.

Every wide layer of a network stands alone (with a rectifier, as an exported file of its own) and is timed whole and
at ranks that leave about a half and a quarter of its multiply-accumulates, in float and in integers, round robin in
one run. Beside it: the relative error of the layer's output on images that the factors were not fitted to, for plain
factors (truncated SVD, Tucker-2 of the weight) and for those fitted to the layer's inputs. Layers of equal shape are
timed once.

    python -m benchmarks.low_rank torchvision:vgg11_bn --input 3x64x64 [--data python:MODULE:FACTORY]
        [--weights FILE] [--layers 4] [--only features] [--seconds 0.5] [--code-path DIR] [--json FILE]

Without data the inputs are noise, on which errors mean little.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressors import Choices, Compressor, fold_norms, foldable, prepare
from compressors.exporter import export_onnx, save_onnx
from compressors.factorization import factorize
from compressors.low_rank import Ranks, ranks_of
from compressors.structure import Layer, Structure, analyse, inside
from evaluation.splits import carve, gather
from latency_tables import Target, parse_target
from search_spaces.network_space import runs_integer
from search_spaces.ranks import rank_candidates
from service.job_setup import default_shape
from service.sources import Sources
from service.weights import load_weights

SHARES = (0.5, 0.25)
IMAGES = 256
_LAYER = "layer"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sources", nargs="+", metavar="SOURCE")
    parser.add_argument("--input", metavar="CxHxW")
    parser.add_argument("--data", metavar="SOURCE")
    parser.add_argument("--weights", type=Path, metavar="FILE")
    parser.add_argument("--target", default="x86-ort")
    parser.add_argument("--layers", type=int, help="at most so many shapes, those of most work")
    parser.add_argument("--only", metavar="MODULE", help="layers within this module alone")
    parser.add_argument("--seconds", type=float, default=0.5, help="of timing for each form")
    parser.add_argument("--images", type=int, default=IMAGES, help="to fit to, and as many to test")
    parser.add_argument("--code-path", type=Path, action="append", default=[])
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for source in args.sources:
        found.append({"name": source, "data": args.data, "layers": list(rows(source, args))})
    if args.json:
        args.json.write_text(json.dumps({"target": args.target, "networks": found}, indent=1))
    return 0


def rows(source: str, args: argparse.Namespace) -> Iterable[dict[str, Any]]:
    """One a layer shape, printed as they come."""
    sources = Sources(allow=("python:*",), code_paths=args.code_path)
    network, structure, images = load(source, sources, args)
    target = parse_target(args.target)
    candidates = rank_candidates(network, structure, images[:2], target)
    layers = [layer for layer in structure.layers if layer.path in candidates]
    if args.only:
        layers = [layer for layer in layers if inside(layer.path, (args.only,))]
    kept: dict[tuple[Any, ...], list[Layer]] = {}
    for layer in sorted(layers, key=lambda x: -x.macs):
        kept.setdefault(shape_of(layer), []).append(layer)
    print(f"{source} on {target.spec}: {len(layers)} wide layers of {len(kept)} shapes")
    print(HEAD)
    for alike in list(kept.values())[: args.layers]:
        row = one(network, structure, alike, images, target, args)
        print(describe(row), flush=True)
        yield row


def load(
    source: str, sources: Sources, args: argparse.Namespace
) -> tuple[nn.Module, Structure, Tensor]:
    """The network with its norms folded, its structure, and images to fit to and to test on."""
    torch.manual_seed(0)
    made = sources.model_factory(source)()
    if args.weights:
        load_weights(made, args.weights)
    prepared = prepare(made)
    if args.data:
        bundle = sources.data(args.data)
        pool = bundle.train if bundle.validation is None else bundle.validation
        splits = carve(len(bundle.train), None, 2 * args.images)
        images = gather(pool, splits.search, "the train split").inputs
    else:
        shape = default_shape(source, sources, args.input)
        generator = torch.Generator().manual_seed(0)
        images = torch.randn((2 * args.images, *shape), generator=generator)
    network = prepare(prepared)
    fold_norms(network, foldable(prepared, analyse(prepared, images[:2])))
    return network, analyse(network, images[:2]), images


def shape_of(layer: Layer) -> tuple[Any, ...]:
    return (layer.kind, layer.kernel, layer.stride, layer.input_shape, layer.output_shape)


def one(
    network: nn.Module,
    structure: Structure,
    alike: Sequence[Layer],
    images: Tensor,
    target: Target,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Times of one shape; errors are those of the first layer that has it."""
    layer = alike[0]
    module = network.get_submodule(layer.path)
    assert isinstance(module, nn.Conv2d | nn.Linear)
    named = {share: rank_for(network, structure, layer, share) for share in SHARES}
    seen = inputs_of(network, module, images)
    half = len(images) // 2
    forms: list[dict[str, Any]] = []
    ratios, whole_us = timed(module, layer, named, target, args.seconds)
    for share, rank in named.items():
        ranks = ranks_of(structure, network, {}, {layer.path: rank})[layer.path]
        forms.append(
            {
                "share": share,
                "rank": rank,
                "time_ratio": {bits: ratios[bits, share] for bits in whole_us},
                "plain_error": error(module, ranks, None, seen[half:]),
                "fitted_error": error(module, ranks, seen[:half], seen[half:]),
            }
        )
    return {
        "layers": [x.path for x in alike],
        "kind": layer.kind,
        "kernel": layer.kernel,
        "in_channels": layer.in_channels,
        "out_channels": layer.out_channels,
        "input": list(layer.input_shape[1:]),
        "macs": layer.macs,
        "whole_us": {str(bits): us for bits, us in whole_us.items()},
        "forms": forms,
    }


def rank_for(network: nn.Module, structure: Structure, layer: Layer, share: float) -> int:
    """The largest multiple of 8 whose factors hold at most so large a share of the layer's weights."""
    widest = max(layer.in_channels, layer.out_channels)
    fitting = 1
    for rank in range(8, widest, 8):
        ranks = ranks_of(structure, network, {}, {layer.path: rank}).get(layer.path)
        if ranks is None or weights_of(layer, ranks) > share * layer.weights:
            break
        fitting = rank
    return fitting


def weights_of(layer: Layer, ranks: Ranks) -> int:
    core = layer.weights // (layer.in_channels * layer.out_channels) * math.prod(ranks)
    ends = layer.in_channels * ranks[0] + layer.out_channels * ranks[-1]
    return ends + (core if len(ranks) == 2 else 0)


def inputs_of(network: nn.Module, module: nn.Module, images: Tensor) -> Tensor:
    """What reaches the layer, all images."""
    parts: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _m, inputs: parts.append(inputs[0].clone()))
    with torch.no_grad():
        for part in torch.split(images, 32):
            network(part)
    handle.remove()
    return torch.cat(parts)


def error(
    module: nn.Conv2d | nn.Linear, ranks: Ranks, fitted: Tensor | None, images: Tensor
) -> float:
    """Norm of what the outputs lose over their norm about the mean."""
    made = factorize(module, ranks, fitted)
    with torch.no_grad():
        wanted, given = module(images), made(images)
        axes = [0, *range(2, wanted.dim())] if isinstance(module, nn.Conv2d) else [0]
        spread = wanted - wanted.mean(axes, keepdim=True)
        return float((given - wanted).norm() / spread.norm())


def timed(
    module: nn.Module, layer: Layer, named: dict[float, int], target: Target, seconds: float
) -> tuple[dict[tuple[int, float], float], dict[int, float]]:
    """Time over the whole layer's by (bits, share), and the whole layer's microseconds by bits."""
    alone = nn.Sequential()
    alone.add_module(_LAYER, module)
    alone.add_module("rectifier", nn.ReLU())
    shape = (8, *layer.input_shape[1:])
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    compressor = Compressor(alone.eval(), images, [], reduce_range=target.reduce_range)
    precisions = [32, 8] if runs_integer(layer, target) else [32]
    with tempfile.TemporaryDirectory() as folder:
        files: dict[str, Path] = {}
        for bits in precisions:
            for share, rank in (*named.items(), (1.0, None)):
                choices = Choices(
                    integer=frozenset([_LAYER] if bits == 8 else []),
                    rank={} if rank is None else {_LAYER: rank},
                )
                made = compressor.compress(choices, quick=True)
                name = f"{bits}-{share}"
                files[name] = Path(folder) / f"{name}.onnx"
                save_onnx(export_onnx(made.network, made.plan, target.batch), files[name])
        measured = target.measure(files, seconds=seconds)
    ratios = {
        (bits, share): measured.ratio(f"{bits}-{share}", f"{bits}-1.0")
        for bits in precisions
        for share in named
    }
    return ratios, {bits: 1e3 * measured[f"{bits}-1.0"].p50_ms for bits in precisions}


HEAD = (
    f"{'layer':28} {'shape':26} {'MACs':>8} {'us fp32':>8} {'int8':>7}  "
    + "  ".join(
        f"{f'1/{round(1 / s)}: rank':>10} {'fp32':>5} {'int8':>5} {'plain':>6} {'fitted':>6}"
        for s in SHARES
    )
)  # fmt: skip


def describe(row: dict[str, Any]) -> str:
    name = row["layers"][0] + (f" (+{len(row['layers']) - 1})" if len(row["layers"]) > 1 else "")
    size = "x".join(map(str, row["input"][1:]))
    shape = f"{row['in_channels']}>{row['out_channels']} k{row['kernel']} {size}"
    line = f"{name:28} {shape:26} {row['macs'] / 1e6:7.2f}M {row['whole_us']['32']:8.1f} "
    line += f"{row['whole_us'].get('8', np.nan):7.1f}  "
    parts = []
    for form in row["forms"]:
        ratio = form["time_ratio"]
        parts.append(
            f"{form['rank']:10d} {ratio[32]:5.2f} {ratio.get(8, np.nan):5.2f} "
            f"{form['plain_error']:6.3f} {form['fitted_error']:6.3f}"
        )
    return line + "  ".join(parts)


if __name__ == "__main__":
    raise SystemExit(main())
