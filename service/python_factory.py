"""A factory of the operator's own: ``python:MODULE:FACTORY``, imported and called."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.errors import SourceError


@dataclass(frozen=True, slots=True)
class PythonFactory:
    """Imports a function and calls it. Plain data, so it travels to other processes.

    Attributes:
        module: import path.
        name: the function's name in it.
        code_paths: folders added to the *end* of the import path, so that nothing in them can stand
            in for a package that is already there.
        own_only: call only what the module's top-level package defines itself or lists in
            ``__all__``. Without this, allowing a module would allow whatever it happened to import
            as well.
    """

    module: str
    name: str
    code_paths: tuple[Path, ...] = ()
    own_only: bool = True

    @property
    def text(self) -> str:
        return f"python:{self.module}:{self.name}"

    def check(self) -> None:
        """Looks for the top-level package without running any of it.

        Raises:
            SourceError: it is not on the import path.
        """
        top = self.module.partition(".")[0]
        extend_import_path(self.code_paths)
        try:
            found = top in sys.modules or importlib.util.find_spec(top) is not None
        except (ImportError, ValueError):
            found = False
        if not found:
            raise SourceError(
                f"{self.text!r}: no module named {top!r} on the import path; install it, "
                "or name its folder with --code-path"
            )

    def __call__(self) -> Any:
        """Raises SourceError when the import or the call fails, or the name is missing."""
        self.check()
        try:
            module = importlib.import_module(self.module)
        except Exception as error:
            raise SourceError(f"{self.text!r}: import failed: {_reason(error)}") from error
        factory = getattr(module, self.name, None)
        if factory is None:
            raise SourceError(f"{self.text!r}: module {self.module} has no {self.name!r}")
        if not callable(factory):
            raise SourceError(f"{self.text!r}: {self.name} is not callable")
        if self.own_only and not self._is_own(module, factory):
            raise SourceError(
                f"{self.text!r}: {self.name} is not defined by {self.module} itself; the operator "
                f"can allow it by its full name, {self.text}"
            )
        try:
            return factory()
        except TypeError as error:
            if _raised_by_the_call_itself(error):
                raise SourceError(
                    f"{self.text!r}: {self.name} cannot be called without arguments: {error}"
                ) from error
            raise SourceError(f"{self.text!r}: {self.name}() failed: {_reason(error)}") from error
        except Exception as error:
            raise SourceError(f"{self.text!r}: {self.name}() failed: {_reason(error)}") from error

    def _is_own(self, module: Any, factory: Any) -> bool:
        if self.name in getattr(module, "__all__", ()):
            return True
        home = getattr(factory, "__module__", None) or ""
        return bool(home.partition(".")[0] == self.module.partition(".")[0])


def extend_import_path(folders: tuple[Path, ...]) -> None:
    """Appends folders that are not there yet to the end of ``sys.path``."""
    for folder in folders:
        text = str(folder.resolve())
        if text not in sys.path:
            sys.path.append(text)


def _raised_by_the_call_itself(error: BaseException) -> bool:
    # A missing argument is reported from our own frame: the factory never got one.
    return error.__traceback__ is not None and error.__traceback__.tb_next is None


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
