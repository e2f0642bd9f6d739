"""Which modules may import which, and what the package exports."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import trio_asgi

PACKAGE = Path(trio_asgi.__file__).parent

#: A folder, or a module of the top level, imports only from those above it.
RANKS = [
    "errors",
    "threads",
    "asgi",
    "hosts",
    "islands",
    "conf",
    "bridge",
    "response",
    "request",
    "chain",
    "hops",
    "conversion",
    "ranges transactions",
    "middleware uploads checks",
    "debugging",
    "handler",
    "application servestatic staticfiles tasks",
    "views",
    "urls",
    "testing",
    "apps",
    "management",
    "__init__",
]
RANK = {name: rank for rank, names in enumerate(RANKS) for name in names.split()}

FOLDERS = [name for name in RANK if (PACKAGE / name).is_dir()]

#: These modules must not be imported, not even for type checkers.
TRIO_ONLY = ["errors", "threads", "asgi", "hosts"]

#: More than this cannot be read at one sitting.
MAX_LINES = 300


def modules() -> dict[str, Path]:
    """Return the package's modules by their name below it, ``threads.call`` say."""
    found = {}
    for file in PACKAGE.rglob("*.py"):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts) if parts != ("__init__",) else "__init__"] = file
    return found


def imports(name: str, file: Path) -> set[str]:
    """Return all imports of a module, including those for type checkers and late ones.

    Its own package's modules have a leading dot before the name in `modules`.
    """
    found: set[str] = set()
    known = modules()
    parents = [] if name == "__init__" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1] if node.level else []
            path = [*base, *(node.module or "").split(".")]
            if path[0] == "trio_asgi":
                path = path[1:]
            elif not node.level:
                found.add(str(node.module))
                continue
            module = ".".join(path).strip(".")
            if module in known:
                found.add(f".{module}")
            else:  # the names are modules
                names = (f"{module}.{alias.name}" for alias in node.names)
                found.update("." + name.strip(".") for name in names)
    return found


def own(name: str) -> set[str]:
    """Return the package's own modules that a module imports."""
    known = modules()
    found = imports(name, known[name])
    return {name[1:] for name in found if name[0] == "." and name[1:] in known}


def top(name: str) -> str:
    """Return the folder of a module; the module itself at the top level."""
    return name.partition(".")[0]


def test_every_folder_has_its_rank() -> None:
    """A new folder or top-level module is given a place in the order."""
    assert {top(name) for name in modules()} == set(RANK)


@pytest.mark.parametrize("name", sorted(modules()))
def test_a_folder_imports_only_from_above(name: str) -> None:
    """No module imports from a folder of equal or lower rank, not even a type."""
    if name == "__init__":
        return
    for imported in own(name):
        if top(imported) != top(name):
            assert RANK[top(imported)] < RANK[top(name)], imported


def test_no_module_imports_itself_by_way_of_others() -> None:
    """There are no import cycles, not even under ``TYPE_CHECKING``."""
    left = {name: own(name) for name in modules()}
    while free := [name for name, needed in left.items() if not needed & set(left)]:
        for name in free:
            del left[name]
    assert left == {}


def test_every_folder_says_what_it_is() -> None:
    """A folder's ``__init__`` has one sentence of purpose, and no code."""
    for folder in FOLDERS:
        tree = ast.parse((PACKAGE / folder / "__init__.py").read_text())
        assert ast.get_docstring(tree)
        assert folder == "testing" or len(tree.body) == 1


@pytest.mark.parametrize(
    "name", sorted(name for name in modules() if top(name) in TRIO_ONLY)
)
def test_the_core_knows_nothing_of_django(name: str) -> None:
    """Pure Trio modules import neither Django nor asgiref."""
    for imported in imports(name, modules()[name]):
        assert imported.split(".")[0] not in {"django", "asgiref"}


@pytest.mark.parametrize("name", sorted(modules()))
def test_no_module_is_a_giant(name: str) -> None:
    """A module can be read at one sitting."""
    assert len(modules()[name].read_text().splitlines()) <= MAX_LINES


def test_the_design_pages_name_files_that_exist() -> None:
    """A page is changed with the module that it names."""
    pages = Path(__file__).parents[1] / "docs/design"
    for page in pages.glob("*.md"):
        for name in re.findall(r"`(\w+/\w+\.py)`", page.read_text()):
            places = PACKAGE / name, pages.parents[1] / name
            assert any(map(Path.exists, places)), f"{page.name}: {name}"


def run_python(code: str) -> str:
    """Run code in a fresh interpreter without settings; return what it prints."""
    env = {k: v for k, v in os.environ.items() if k != "DJANGO_SETTINGS_MODULE"}
    result = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env=env,
        timeout=60,
    )
    return result.stdout.strip()


def test_importing_the_package_is_quick() -> None:
    """``import trio_asgi`` loads neither Django nor Trio."""
    code = (
        "import sys, trio_asgi; print({'django', 'trio', 'asgiref'} & {*sys.modules})"
    )
    assert run_python(code) == "set()"


def test_public_names_need_no_settings() -> None:
    """Every public name can be imported, and the bridge installed, unconfigured."""
    code = """
import trio_asgi, trio_asgi.testing
for name in trio_asgi.__all__:
    getattr(trio_asgi, name)
trio_asgi.install_bridge()
from django.conf import settings
print(settings.configured, *sorted(trio_asgi.__all__))
"""
    assert run_python(code) == (
        "False ASGIHandler ASGIRequest ASGIStaticFilesHandler BodyTimeout BodyTooLarge "
        "EventStream ServerSentEvent __version__ apply_range asyncio_island atomic "
        "get_asgi_application install_bridge last_event_id limit_body release_thread "
        "serve start_soon stream_body sync_context trio_island uninstall_bridge"
    )


def test_an_unknown_name_is_an_attribute_error() -> None:
    """The package's lazy loading does not hide misspellings."""
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = trio_asgi.nothing
    assert "serve" in dir(trio_asgi)


def test_the_package_is_typed() -> None:
    """Type checkers learn that there are annotations."""
    assert (PACKAGE / "py.typed").exists()


@pytest.mark.skipif(
    "TRIO_ASGI_WHEEL" not in os.environ, reason="only nox tests the built wheel"
)
def test_the_wheel_is_what_is_tested() -> None:
    """The package comes from site-packages, not from the source tree."""
    assert "site-packages" in PACKAGE.parts
