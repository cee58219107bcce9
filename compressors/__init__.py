"""What is done to a network: pruning, dropped blocks, refit, quantization, export, fine-tuning."""

from compressors.compressor import Choices, Compressed, Compressor
from compressors.errors import ExportError, PlanError, PruningError, QuantizationError, TraceError
from compressors.exported import ExportedNetwork
from compressors.groups import PruningGroup, find_groups
from compressors.integer_network import IntegerNetwork
from compressors.loading import load, rebuild, save
from compressors.plan import ActivationScale, Plan, WeightScale
from compressors.preparation import fold_norms, foldable, prepare
from compressors.quantization import QuantizedNetwork
from compressors.recipe import CompressionRecipe
from compressors.skeleton import Skeleton
from compressors.structure import Structure, analyse

__all__ = [
    "ActivationScale",
    "Choices",
    "Compressed",
    "CompressionRecipe",
    "Compressor",
    "ExportError",
    "ExportedNetwork",
    "IntegerNetwork",
    "Plan",
    "PlanError",
    "PruningError",
    "PruningGroup",
    "QuantizationError",
    "QuantizedNetwork",
    "Skeleton",
    "Structure",
    "TraceError",
    "WeightScale",
    "analyse",
    "find_groups",
    "fold_norms",
    "foldable",
    "load",
    "prepare",
    "rebuild",
    "save",
]
