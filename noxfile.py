"""The project's chores: ``nox`` before a push, ``nox -l`` for a list of all.

CONTRIBUTING.md says which ones you need. Those that run often keep their environments,
and install only what is missing: ``nox --reuse-venv=never`` makes them anew.

Versions of Python and groups of dependencies are read from ``pyproject.toml``.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import time
from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "docs", "quick"]
nox.options.default_venv_backend = "virtualenv"
nox.options.error_on_missing_interpreters = False

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)
SITE = Path("examples/site")

#: What each Django needs at least, and the oldest and newest of what it runs on.
DJANGO_PYTHONS = {"5.2": "3.10", "6.0": "3.12", "6.1": "3.12"}
COMPANIONS = {
    "oldest": ["asgiref==3.9.2", "trio==0.31.0"],
    "newest": ["asgiref", "trio"],
}


#: What `quick` leaves out: these tests start many processes.
SLOW = [
    "tests/hosting",
    "tests/test_docs.py",
    "tests/test_interrupts.py",
    "tests/test_tools.py",
    "tests/test_user_testing.py",
]
#: What tests have in their environment. pytest keeps what it has compiled; without
#: that, each of its processes takes a second longer.
TEST_ENV = {"PYTHONDONTWRITEBYTECODE": ""}

#: What `matrix` runs: Python, Django, companions.
MATRIX = [
    (python, django, companions)
    for python in PYTHONS
    for django, oldest in DJANGO_PYTHONS.items()
    for companions in COMPANIONS
    if int(python.split(".")[1]) >= int(oldest.split(".")[1])
]

#: What `django_suite` runs: Python and Django.
SUITES = [("3.11", "5.2"), ("3.12", "6.0"), ("3.13", "6.1")]
#: Of Django's tests that use its sync client, those that `django_suite` runs besides.
CLIENT_LABELS = [
    "conditional_processing",
    "csrf_tests",
    "file_uploads",
    "generic_views",
    "handlers",
    "messages_tests",
    "middleware",
    "middleware_exceptions",
    "sitemaps_tests",
    "test_client",
    "test_client_regress",
    "view_tests",
]

# pyenv keeps several versions of Python, but shows one at a time.
PYENV = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
for python in PYTHONS:
    for pythons in PYENV.glob(f"versions/{python}.*/bin"):
        os.environ["PATH"] = f"{pythons}{os.pathsep}{os.environ['PATH']}"


def group(name: str) -> list[str]:
    """Return the requirements of a dependency group."""
    return list(nox.project.dependency_groups(PROJECT, name))


def dependencies(*extras: str) -> list[str]:
    """Return what the package requires, with these extras."""
    project = PROJECT["project"]
    optional = [project["optional-dependencies"][extra] for extra in extras]
    return [*project["dependencies"], *itertools.chain(*optional)]


def install_wheel(session: nox.Session, *extras: str) -> None:
    """Build the wheel, and install what users will get."""
    dist = Path(session.create_tmp()).resolve() / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    session.run("python", "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(dist), ".")
    (wheel,) = dist.glob("*.whl")
    wanted = f"{wheel}[{','.join(extras)}]" if extras else str(wheel)
    # The version stays the same from build to build, so the old one has to go.
    session.run("python", "-m", "pip", "uninstall", "-q", "-y", "trio-asgi")
    session.install(wanted)


def run_tests(session: nox.Session, *command: str) -> None:
    """Run the tests against the installed wheel; one of them sees to that."""
    session.run(*command, *session.posargs, env={**TEST_ENV, "TRIO_ASGI_WHEEL": "1"})


def test_sources(session: nox.Session, *arguments: str) -> None:
    """Run pytest on the source tree, which is found before an installed wheel."""
    session.install(*group("test"), *dependencies("hypercorn", "anycorn"))
    session.run("pytest", *arguments, env={**TEST_ENV, "PYTHONPATH": str(Path.cwd())})


@nox.session(reuse_venv=True)
def quick(session: nox.Session) -> None:
    """Run the tests that are quick, on the source tree, some with fewer examples."""
    session.env["TRIO_ASGI_CHAINS"] = "50"
    test_sources(session, "-q", *(f"--ignore={path}" for path in SLOW))


@nox.session(reuse_venv=True)
def tests(session: nox.Session) -> None:
    """Run all tests on this Python, on the built wheel, and measure coverage.

    With arguments, which are pytest's, just run it on the source tree.
    """
    if session.posargs:
        test_sources(session, *session.posargs)
        return
    session.install(*group("test"))
    install_wheel(session, "hypercorn", "anycorn")
    session.run("coverage", "erase")
    # Not ``-m pytest``, which would put the source tree before the installed wheel.
    pytest = str(Path(session.bin) / "pytest")
    # The tests over sockets mostly wait for their servers, so they run beside the
    # others, and are shown when those have ended.
    command = [f"{session.bin}/coverage", "run", pytest, "tests/hosting"]
    path = os.pathsep.join([str(session.bin), os.environ["PATH"]])
    env = {**os.environ, **TEST_ENV, "PATH": path, "TRIO_ASGI_WHEEL": "1"}
    log = Path(session.create_tmp()) / "hosting.log"
    with (
        log.open("w") as output,
        subprocess.Popen(  # noqa: S603 - ours
            command, env=env, stdout=output, stderr=output
        ) as hosting,
    ):
        try:
            run_tests(session, "coverage", "run", pytest, "--ignore=tests/hosting")
        finally:
            status = hosting.wait()
            session.log("The tests in tests/hosting:\n%s", log.read_text())
    if status:
        session.error("The tests in tests/hosting have failed, see above.")
    session.run("coverage", "combine", "-q")
    session.run("coverage", "report", "--fail-under=95")


@nox.session
@nox.parametrize("python, django, companions", MATRIX)
def matrix(session: nox.Session, django: str, companions: str) -> None:
    """Run all tests on every Python here, with each Django that it supports."""
    session.install(*group("test"))
    install_wheel(session, "hypercorn", "anycorn")
    session.install(f"Django=={django}.*", *COMPANIONS[companions])
    run_tests(session, "pytest", "-q")


@nox.session
def hosts(session: nox.Session) -> None:
    """Run the tests over sockets on every server, or on those that are named."""
    session.install(*group("test"), *group("hosts"))
    install_wheel(session, "hypercorn", "anycorn")
    env = {**TEST_ENV, "TRIO_ASGI_WHEEL": "1"}
    env["HOSTS"] = " ".join(session.posargs) or "all"
    session.run("pytest", "-q", "tests/hosting", env=env)


@nox.session
@nox.parametrize("python, django", SUITES)
def django_suite(session: nox.Session, django: str) -> None:
    """Run Django's own async tests on Trio; see tests/django_suite/run.py.

    And some of those that use its sync client, through `ASGIHandler`. With arguments,
    only what they say is run.
    """
    session.install("-r", "tests/django_suite/requirements.txt")
    install_wheel(session)
    session.install(f"Django=={django}.*")
    sources = (session.cache_dir / "django").resolve()
    # Not from here, which would put the source tree before the installed wheel.
    run = ("python", "-m", "django_suite.run", "--sources", str(sources))
    with session.chdir("tests"):
        session.run(*run, *session.posargs)
        if not session.posargs:
            session.run(*run, "--client", "--labels", *CLIENT_LABELS)


@nox.session(venv_backend="none")
def django_suite_turn(session: nox.Session) -> None:
    """Run `django_suite` for one Django: each commit's turn is another one's."""
    git = ("git", "rev-list", "--count", "HEAD")
    output = session.run(*git, external=True, silent=True, success_codes=[0, 128])
    commits = str(output).strip()
    # Outside a repository, each day's turn is.
    turn = int(commits) if commits.isdigit() else int(time.time() // 86400)
    python, django = SUITES[turn % len(SUITES)]
    session.notify(f"django_suite(python='{python}', django='{django}')")


@nox.session
@nox.parametrize("python, companions", [("3.10", "oldest"), ("3.13", "newest")])
def asgiref_suite(session: nox.Session, companions: str) -> None:
    """Run asgiref's own tests on Trio; see tests/asgiref_suite/run.py."""
    session.install(*group("test"))
    install_wheel(session)
    session.install(*COMPANIONS[companions])
    sources = (session.cache_dir / "asgiref").resolve()
    # Not from here, which would put the source tree before the installed wheel.
    with session.chdir("tests"):
        session.run(
            *("python", "-m", "asgiref_suite.run", "--sources", str(sources)),
            *session.posargs,
        )


@nox.session(python="3.11")
def ecosystem(session: nox.Session) -> None:
    """Run other packages' own tests on Trio; see tests/ecosystem/run.py.

    With arguments, only the packages that they name.
    """
    session.install("-r", "tests/ecosystem/requirements.txt")
    install_wheel(session)
    sources = (session.cache_dir / "ecosystem").resolve()
    # Not from here, which would put the source tree before the installed wheel.
    with session.chdir("tests"):
        session.run(
            *("python", "-m", "ecosystem.run", "--sources", str(sources)),
            *session.posargs,
        )


@nox.session(reuse_venv=True)
def lint(session: nox.Session) -> None:
    """Check the style with ruff."""
    session.install(*group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session(reuse_venv=True)
def types(session: nox.Session) -> None:
    """Check the types with mypy, strictly; but for the first time, what has changed."""
    needed = dependencies("hypercorn", "anycorn", "servestatic")
    session.install(*group("types"), *needed)
    session.run("mypy")


@nox.session(reuse_venv=True)
def docs(session: nox.Session) -> None:
    """Build the documentation; a warning is an error."""
    session.install(*group("docs"), *dependencies("hypercorn", "servestatic"))
    # All pages, and as a module: that finds the package's source tree.
    sphinx = ("python", "-m", "sphinx", "-W", "-n", "-q", "-E", "-b", "html")
    session.run(*sphinx, "docs", "docs/_build/html")


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Measure everything, and print tables with targets; see benchmarks/README.md."""
    session.install(*group("benchmarks"))
    install_wheel(session, "hypercorn", "anycorn")
    session.run("python", "benchmarks/run.py", *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """Make many requests under uvicorn, and see whether anything grows."""
    session.install(*group("uvicorn"))
    install_wheel(session)
    session.run("python", "benchmarks/soak.py", *session.posargs)


@nox.session
def demo(session: nox.Session) -> None:
    """Serve the example site at http://127.0.0.1:8000 (or $PORT).

    The next port is for the same site under Django's own handler: the page Load
    compares them.
    """
    session.install("-e", ".[example]")
    port = int(os.environ.get("PORT", "8000"))
    address, other = f"127.0.0.1:{port}", f"127.0.0.1:{port + 1}"
    with session.chdir(SITE):
        # Without what it says: the server prints the address.
        session.run("python", "manage.py", "setup_demo", "--verbosity", "0")
        command = [f"{session.bin}/hypercorn", "--log-level", "ERROR", "--workers", "0"]
        command += ["--bind", other, "teahouse.asgi_django:application"]
        with subprocess.Popen(command) as comparison:  # noqa: S603 - ours
            try:
                session.run(
                    *("hypercorn", "-k", "trio", "--bind", address),
                    "teahouse.asgi:application",
                    env={"TEAHOUSE_COMPARE": other},
                )
            finally:
                comparison.kill()  # it may still make reports, for nobody
