"""The stage ``compete`` for one network: the peers' answers become files, and Trimtab is run where each of them ends.

A peer that leaves a family of networks (one a pruning ratio) enters with the member that classifies most search images
rightly among those within the wanted time, or with its fastest where none is. What a peer kept is also given our
refit, which tells its choice apart from how the rest is mended.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from benchmarks.peers.answers import ANSWER_FILE, MODEL_FILE, PROBED, Answer, Kind, read_network
from benchmarks.peers.assignment import FILE, Assignment
from benchmarks.peers.ours import Effort, Found, at_bytes, at_latency
from benchmarks.peers.registry import peer_of
from benchmarks.peers.transfer import (
    PrunedNetwork,
    check_same,
    choices_of_bits,
    integer_layers,
)
from benchmarks.verify_artifacts import FLOAT, UNIFORM
from compressors import Choices, Compressed, Compressor, Plan, PruningError, prepare
from compressors.exporter import export_onnx, save_onnx
from compressors.packed import pack_network
from compressors.recipe import CompressionRecipe
from latency_tables import Target, parse_target
from search_spaces.network_space import runs_integer

ENTRIES_FILE = "entries.json"
# Of a job's own recipe (``service.job_spec``), for channels that are solved anew.
_RECIPE = CompressionRecipe(criterion="fisher")
_QUICK_SECONDS, _SECONDS = 0.6, 2.0
# From this share of its time on, uniform int8 itself is what a peer is held against.
_LIKE_UNIFORM = 0.97
# A scope's Trimtab rows at equal bytes.
SCOPES = {"quantize": "bits alone", "joint": "bits, channels, blocks, zeros"}


@dataclass(frozen=True)
class Entry:
    """A file that is timed and read off on the test split.

    Attributes:
        name: of its file, and in the table.
        against: entry of the peer that this one of ours was searched for; empty for others.
        group: peer's name, or ``trimtab``, or ``reference``.
        what: how it was made, for a reader.
        packed_bytes: of the packed file; None where the file was not written by us.
        search_accuracy: of the exported file on the search images.
        facts: of the search.
    """

    name: str
    against: str
    group: str
    what: str
    packed_bytes: int | None
    search_accuracy: float
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read_all(cls, folder: Path) -> list[Entry]:
        return [cls(**row) for row in json.loads((folder / ENTRIES_FILE).read_text())]


def file_of(folder: Path, name: str) -> Path:
    """An entry's file, of a network's folder."""
    return folder / "files" / f"{name.replace(' ', '-')}.onnx"


class Competition:
    """See the module's docstring.

    Args:
        folder: of the network: ``assignment.json``, ``answers`` and, when done, ``files`` and ``entries.json``.
        wanted: share of uniform int8's time that families are held to.
    """

    def __init__(self, folder: Path, wanted: float) -> None:
        self._folder, self._wanted = folder, wanted
        self._assignment = Assignment.read(folder / FILE)
        self._target: Target = parse_target("x86-ort")
        self._original: nn.Module = prepare(self._assignment.original())
        self._inputs, self._targets = self._assignment.search()
        self._calibration = self._assignment.calibration()
        self._compressor = Compressor(
            self._original, self._calibration, [], _RECIPE, self._target.reduce_range
        )
        self._layers = [
            x.path for x in self._compressor.structure.layers if runs_integer(x, self._target)
        ]
        (folder / "files").mkdir(exist_ok=True)
        self._entries: list[Entry] = []

    def run(self, effort: Effort | None, kernel_seconds: float, only: Sequence[str] = ()) -> None:
        """Writes all files and ``entries.json``.

        Args:
            effort: of a search of ours; a peer's own number of evaluations is taken where it is higher. None for the
                peers' files alone.
            only: peers; all that left answers when empty.
        """
        self._references()
        answers = self._answers(only)
        families: dict[str, list[tuple[str, Answer]]] = {}
        for name, answer in answers.items():
            if answer.kind is Kind.CHANNELS:
                families.setdefault(peer_of(name), []).append((name, answer))
        for family in families.values():
            self._channels(family)
        for name, answer in answers.items():
            if answer.kind is Kind.FILE:
                self._finished(name, answer)
            elif answer.kind is Kind.BITS:
                self._bits(name, answer)
        self._keep()
        for entry in [e for e in self._entries if effort and e.facts.get("leads")]:
            assert effort is not None
            self._ours(entry, answers[entry.facts["answer"]], effort, kernel_seconds)
            self._keep()

    def _answers(self, only: Sequence[str]) -> dict[str, Answer]:
        folders = sorted((self._folder / "answers").glob(f"*/{ANSWER_FILE}"))
        found = {file.parent.name: Answer.read(file.parent) for file in folders}
        return {name: a for name, a in found.items() if not only or peer_of(name) in only}

    def _keep(self) -> None:
        rows = json.dumps([asdict(entry) for entry in self._entries], indent=1)
        (self._folder / ENTRIES_FILE).write_text(rows)

    def _add(
        self, name: str, made: Compressed | Path, group: str, what: str, against: str = "", **facts: Any
    ) -> Entry:  # fmt: skip
        file = self.file(name)
        packed = None
        if isinstance(made, Path):
            file.write_bytes(made.read_bytes())
        else:
            save_onnx(export_onnx(made.network, made.plan), file)
            packed = len(pack_network(made.network, made.plan))
        entry = Entry(name, against, group, what, packed, self._accuracy(file), facts)
        self._entries.append(entry)
        said = "" if packed is None else f", {packed} bytes packed"
        print(
            f"{self._assignment.network}: {name}: {entry.search_accuracy:.4f} of the search images{said}",
            flush=True,
        )
        return entry

    def file(self, name: str) -> Path:
        return file_of(self._folder, name)

    def _accuracy(self, file: Path) -> float:
        outputs = self._target.run(file, self._inputs.numpy())
        return float((outputs.argmax(1) == self._targets.numpy()).mean())

    def _references(self) -> None:
        plain = Compressed(
            self._compressor.folded, Plan(input_shape=tuple(self._calibration.shape[1:]))
        )
        uniform = self._compressor.compress(Choices(integer=frozenset(self._layers)))
        self._add(FLOAT, plain, "reference", "uncompressed")
        self._add(UNIFORM, uniform, "reference", "every layer in int8")

    def _ratio(self, names: Sequence[str], seconds: float) -> dict[str, float]:
        """Share of uniform int8's time by name, in one run."""
        files = {name: self.file(name) for name in (UNIFORM, *names)}
        times = self._target.measure(files, seconds=seconds)
        return {name: times.ratio(name, UNIFORM) for name in names}

    def _channels(self, family: Sequence[tuple[str, Answer]]) -> None:
        """The member of a family of pruned networks that enters, as it is and refitted."""
        pruned = {}
        before = len(self._entries)
        for name, answer in family:
            state, outputs = read_network(self._folder / "answers" / name)
            try:
                one = PrunedNetwork(
                    self._original, self._calibration, state, _RECIPE, self._target.reduce_range
                )
                check_same(one.network(), self._inputs[:PROBED], outputs)
            except PruningError as error:
                print(f"{self._assignment.network}: {name} is left out: {error}", flush=True)
                continue
            pruned[name] = one
            self._add(name, one.own(), peer_of(name), f"{answer.method}, int8", answer=name)
        members = self._entries[before:]
        del self._entries[before:]
        if not members:
            return
        ratios = self._ratio([m.name for m in members], _QUICK_SECONDS)
        inside = [m for m in members if ratios[m.name] <= self._wanted]
        chosen = (
            max(inside, key=lambda m: m.search_accuracy)
            if inside
            else min(members, key=lambda m: ratios[m.name])
        )
        tried = {m.name: [ratios[m.name], m.search_accuracy] for m in members}
        facts = {**chosen.facts, "leads": True, "wanted": self._wanted, "family": tried}
        self._entries.append(replace(chosen, facts=facts | self._cost(dict(family)[chosen.name])))
        refitted = pruned[chosen.name].refitted()
        what = f"{chosen.what}, with Trimtab's refit"
        self._add(f"{chosen.name}-refit", refitted, chosen.group, what, answer=chosen.name)
        for member in members:
            if member.name != chosen.name:
                self.file(member.name).unlink()

    def _finished(self, name: str, answer: Answer) -> None:
        """A peer's own file, and the layers that it runs in integers in a file of ours."""
        file = self._folder / "answers" / name / MODEL_FILE
        layers = integer_layers(onnx.load(file))
        facts = {**self._cost(answer), "integer_layers": len(layers), "of_layers": len(self._layers)}  # fmt: skip
        self._add(
            name, file, peer_of(name), f"{answer.method}, its own file", answer=name, leads=True, **facts
        )  # fmt: skip
        made = self._compressor.compress(Choices(integer=frozenset(layers)))
        what = f"{answer.method}, exported by Trimtab"
        self._add(f"{name}-exported", made, peer_of(name), what, answer=name)

    def _bits(self, name: str, answer: Answer) -> None:
        made = self._compressor.compress(choices_of_bits(self._layers, answer.bits))
        self._add(
            name, made, peer_of(name), answer.method, answer=name, leads=True, **self._cost(answer)
        )

    @staticmethod
    def _cost(answer: Answer) -> dict[str, Any]:
        own = ("version", "goal", "evaluations", "images", "seconds", "threads", "notes")
        return {k: v for k, v in asdict(answer).items() if k in own} | {
            "own_search_accuracy": answer.search_accuracy
        }

    def _ours(self, entry: Entry, answer: Answer, effort: Effort, kernel_seconds: float) -> None:
        """Trimtab in the peer's time, or in its bytes."""
        own = replace(effort, evaluations=max(effort.evaluations, answer.evaluations))
        if answer.kind is Kind.BITS:
            assert entry.packed_bytes is not None
            for scope, said in SCOPES.items():
                found = at_bytes(self._assignment, entry.packed_bytes, scope, own)
                self._add_ours(f"trimtab-{scope}-{entry.name}", entry, found, said)
            return
        ratio = self._ratio([entry.name], _SECONDS)[entry.name]
        if ratio > _LIKE_UNIFORM:
            print(f"{entry.name} takes {ratio:.3f} of uniform int8's time, which needs no search")
            return
        found = at_latency(self._assignment, ratio, own, kernel_seconds)
        what = f"within {ratio:.3f} of uniform int8's time"
        self._add_ours(f"trimtab-{entry.name}", entry, found, what)

    def _add_ours(self, name: str, entry: Entry, found: Found, what: str) -> None:
        self._add(name, found.compressed, "trimtab", what, entry.name, **found.facts)


def compete(
    folder: Path, wanted: float, effort: Effort | None, kernel_seconds: float, only: Sequence[str]
) -> None:
    """One network's files."""
    torch.set_num_threads(1)
    Competition(folder, wanted).run(effort, kernel_seconds, only)
