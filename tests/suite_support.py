"""What the runs of other projects' tests share: their sources, and counterparts."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType

    #: Returns the originals, each with its replacement on Trio.
    Counterparts = Callable[[], list[tuple[object, object]]]


def fetch_tests(project: str, version: str, sources: Path) -> Path:
    """Return the ``tests`` folder of a project's release, downloading it once."""
    folder = sources / f"{project.lower()}-{version}"
    if not folder.exists():
        sources.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=sources) as temporary:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            only_source = ["--no-binary", ":all:"]
            target = ["-d", temporary, f"{project}=={version}"]
            subprocess.run([*pip, *only_source, *target], check=True)
            (archive,) = Path(temporary).glob("*.tar.gz")
            shutil.unpack_archive(archive, temporary, filter="data")
            (unpacked,) = (path for path in Path(temporary).iterdir() if path.is_dir())
            unpacked.rename(folder)
    return folder / "tests"


def hand_out(tests: Path, counterparts: Counterparts) -> None:
    """Give each module imported from ``tests`` its counterparts after the import.

    Args:
        tests: The folder of the test modules.
        counterparts: Returns the originals, each with its replacement on Trio.
    """
    sys.meta_path.insert(0, _Finder(tests, counterparts))


class _Finder(MetaPathFinder):
    """Finds only the test modules."""

    def __init__(self, tests: Path, counterparts: Counterparts) -> None:
        self._tests = tests
        self._counterparts = counterparts

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target)
        if (
            spec is None
            or type(spec.loader) is not SourceFileLoader
            or self._tests not in Path(spec.loader.path).parents
        ):
            return None
        spec.loader = _Loader(spec.loader.name, spec.loader.path)
        spec.loader.counterparts = self._counterparts
        return spec


class _Loader(SourceFileLoader):
    """Loads a module, and then gives it the counterparts."""

    counterparts: Counterparts

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        counterparts = self.counterparts()
        for name, value in list(vars(module).items()):
            for original, counterpart in counterparts:
                if value is original:
                    setattr(module, name, counterpart)
