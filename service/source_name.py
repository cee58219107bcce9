"""The name of a model or data source, taken apart: ``KIND:REST?option=value&...``."""

from __future__ import annotations

import difflib
import keyword
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from service.errors import SourceError

Option = int | float | bool

# A name is a plain word: nothing a loader could take for a path, a URL or a hub repository.
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_LONGEST = 300


@dataclass(frozen=True, slots=True)
class SourceName:
    """A source string in its parts.

    Attributes:
        text: as the user wrote it, for messages.
        kind: ``timm``, ``torchvision``, ``python``, ``digits`` or ``imagefolder``.
        name: network, data set or registered folder; for ``python`` the module.
        factory: for ``python`` the function's name, else empty.
        options: after the question mark, still as text.
    """

    text: str
    kind: str
    name: str
    factory: str
    options: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, text: str, forms: Mapping[str, str]) -> SourceName:
        """Takes a source string apart without loading anything.

        Args:
            text: e.g. ``timm:resnet18?num_classes=10`` or ``python:cifar_zoo:resnet20``.
            forms: kind to the form it must have, e.g. ``{"timm": "timm:NAME"}``.

        Raises:
            SourceError: malformed, or a kind that ``forms`` does not have.
        """
        known = ", ".join(forms.values())
        if not isinstance(text, str) or not text or len(text) > _LONGEST:
            raise SourceError(f"a source is a short text of the form {known}")
        head, mark, tail = text.partition("?")
        kind, _, rest = head.partition(":")
        if kind not in forms:
            hint = suggest(kind, forms)
            raise SourceError(f"unknown kind of source in {text!r}{hint}; known: {known}")
        malformed = SourceError(f"{text!r} is not of the form {forms[kind]}")
        name, factory = rest, ""
        if kind == "python":
            name, _, factory = rest.partition(":")
            words = [*name.split("."), factory]
            if not _MODULE.fullmatch(name) or not _IDENTIFIER.fullmatch(factory):
                raise malformed
            if any(keyword.iskeyword(word) for word in words):
                raise malformed
        elif ":" in forms[kind]:
            if not _WORD.fullmatch(name):
                raise malformed
        elif head != kind:
            raise malformed
        if mark and not tail:
            raise malformed
        return cls(text, kind, name, factory, _options(text, tail))

    def typed_options(self, allowed: Mapping[str, tuple[type, float, float]]) -> dict[str, Option]:
        """Options as numbers.

        Args:
            allowed: option to its type (int, float or bool) and the lowest and highest value.

        Raises:
            SourceError: an option that is not allowed, or a value outside its range.
        """
        values: dict[str, Option] = {}
        for key, text in self.options:
            if key not in allowed:
                if not allowed:
                    raise SourceError(f"{self.text!r}: {self.kind} sources take no options")
                raise SourceError(
                    f"{self.text!r}: unknown option {key!r}{suggest(key, allowed)}; "
                    f"known: {', '.join(allowed)}"
                )
            kind, low, high = allowed[key]
            values[key] = _number(self.text, key, text, kind, low, high)
        return values


def suggest(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'resnet18'?`` or nothing when no name is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def _options(source: str, tail: str) -> tuple[tuple[str, str], ...]:
    pairs: dict[str, str] = {}
    for item in tail.split("&") if tail else ():
        key, equals, value = item.partition("=")
        if not equals or not _IDENTIFIER.fullmatch(key) or not value:
            raise SourceError(f"{source!r}: option {item!r} is not of the form name=value")
        if key in pairs:
            raise SourceError(f"{source!r}: option {key!r} is given twice")
        pairs[key] = value
    return tuple(pairs.items())


def _number(source: str, key: str, text: str, kind: type, low: float, high: float) -> Option:
    if kind is bool:
        if text not in ("true", "false"):
            raise SourceError(f"{source!r}: option {key} must be true or false, not {text!r}")
        return text == "true"
    try:
        value: int | float = int(text) if kind is int else float(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise SourceError(f"{source!r}: option {key} must be {what}, not {text!r}") from None
    # The negated form also refuses nan.
    if not low <= value <= high:
        raise SourceError(f"{source!r}: option {key} must lie between {low} and {high}, not {text}")
    return value
