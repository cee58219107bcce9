"""The command line of a peer's search. Read in the peer's own environment."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks.peers.assignment import Assignment


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """What every search takes: its assignment's file and the folder that answers go to."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("assignment", type=Path)
    parser.add_argument("out", type=Path)
    return parser


def begin(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, Assignment]:
    """The arguments and the assignment; from here on torch has one thread and the assignment's seed."""
    args = parser.parse_args()
    torch.set_num_threads(1)
    assignment = Assignment.read(args.assignment)
    torch.manual_seed(assignment.seed)
    return args, assignment
