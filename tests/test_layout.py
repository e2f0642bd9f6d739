"""Which module may import which, and what the package exports."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import trio_asgi

PACKAGE = Path(trio_asgi.__file__).parent

#: A module imports only from modules above it; what stands in one line is a layer.
LAYERS = [
    "_types",
    "_as_written _errors",
    # Trio only: no Django, no asgiref
    "_beside _byte_ranges _clock _connection _executor _lookout _managed_stream _pace "
    "_receive",
    "_contents _leave _send _shelter _sigterm _trio_thread _wakeups",
    "_island_threads _websocket _hosting _native_calls _serve",
    "_call",
    "_lease _reentry",
    "_worker",
    "_offload",
    "_body_stream _exchange _island_loop _lifespan _new_run",
    "_island_stream",
    "testing.communicator testing.scopes",
    # Trio and asgiref
    "_carry",
    "_islands",
    "_async_to_sync _asyncio_calls _sync_to_async",
    "_hop",
    "testing.threads",
    "testing",
    # Django
    "_connections",
    "conf",
    "_bridge",
    "_files _headers _loop_safe _request_body _spool _server_sent_event _thread_stream",
    "_file_stream _view_errors ranges uploads",
    "_body_options _release _request _response _signals middleware",
    "_life",
    "_event_stream",
    "_passage",
    "_middleware",
    "_hop_causes _stage",
    "_stand_ins",
    "_background checks",
    "apps",
    "handler",
    "_application servestatic staticfiles _rehearsal",
    "_hop_report",
    "management management.commands",
    "management.commands.trio_asgi_hops",
    "testing.pytest_plugin",
    "__init__",
]
TRIO_ONLY = " ".join(LAYERS[: LAYERS.index("_carry")]).split()
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer.split()}


def modules() -> dict[str, Path]:
    """Return the package's modules by their name below it."""
    return {
        ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(
            ".__init__"
        ): file
        for file in PACKAGE.rglob("*.py")
    }


def imports(name: str, file: Path) -> set[str]:
    """Return what a module imports when it runs: own modules with a leading dot."""
    found: set[str] = set()
    parents = name.split(".")[:-1] if file.stem != "__init__" else name.split(".")
    if name == "__init__":
        parents = []
    tree = ast.parse(file.read_text())
    tree.body = [
        node
        for node in tree.body
        if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(str(node.module))
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1]
            path = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            if path:
                found.add("." + path)
            else:
                found.update("." + alias.name for alias in node.names)
    return found


def test_every_module_has_its_layer() -> None:
    """A new module is given a place in the order."""
    assert set(modules()) == set(RANK)


@pytest.mark.parametrize("name", [name for name in RANK if name != "__init__"])
def test_a_module_imports_only_from_above(name: str) -> None:
    """No module imports one of its own layer or below."""
    for imported in imports(name, modules()[name]):
        if imported.startswith("."):
            assert RANK[imported[1:]] < RANK[name], imported


@pytest.mark.parametrize("name", TRIO_ONLY)
def test_the_core_knows_nothing_of_django(name: str) -> None:
    """Modules that are Trio only import neither Django nor asgiref."""
    for imported in imports(name, modules()[name]):
        assert imported.split(".")[0] not in {"django", "asgiref"}


@pytest.mark.parametrize("name", sorted(modules()))
def test_no_module_is_a_giant(name: str) -> None:
    """A module can be read at one sitting."""
    lines = len(modules()[name].read_text().splitlines())
    assert lines <= 420


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
trio_asgi.install()
from django.conf import settings
print(settings.configured, *sorted(trio_asgi.__all__))
"""
    assert run_python(code) == (
        "False ASGIHandler ASGIRequest ASGIStaticFilesHandler BodyTimeout BodyTooLarge "
        "EventStream ServerSentEvent __version__ apply_range asyncio_island "
        "get_asgi_application install last_event_id limit_body release_thread serve "
        "stream_body trio_island uninstall"
    )


def test_an_unknown_name_is_an_attribute_error() -> None:
    """The package's lazy loading does not hide misspellings."""
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = trio_asgi.nothing
    assert "serve" in dir(trio_asgi)


def test_the_package_is_typed() -> None:
    """Type checkers are told that the annotations are there."""
    assert (PACKAGE / "py.typed").exists()


@pytest.mark.skipif(
    "TRIO_ASGI_WHEEL" not in os.environ, reason="only nox tests the built wheel"
)
def test_the_wheel_is_what_is_tested() -> None:
    """The package comes from site-packages, not from the source tree."""
    assert "site-packages" in PACKAGE.parts
