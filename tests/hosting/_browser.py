"""A real browser."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from support import skip_without_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def browser(url: str) -> Iterator[Callable[[str], None]]:
    """Let a headless browser visit a page; give a function that opens another tab."""
    names = ["chromium", "chromium-browser", "google-chrome"]
    command = next(filter(None, map(shutil.which, names)), None)
    if command is None:
        skip_without_server("there is no Chromium")
    # Not the test's own directory: a browser that was killed may still write there.
    # Its sockets have to have short paths.
    with tempfile.TemporaryDirectory(
        dir="/tmp" if Path("/tmp").is_dir() else None,  # noqa: S108
        ignore_cleanup_errors=True,
    ) as profile:
        process = subprocess.Popen(
            [
                command,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                # It visits the test's own server.
                "--no-proxy-server",
                # It keeps running, and opens tabs.
                "--remote-debugging-port=0",
                f"--user-data-dir={profile}",
                url,
            ],
            env={**os.environ, "TMPDIR": profile},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield functools.partial(open_tab, Path(profile) / "DevToolsActivePort")
        finally:
            process.terminate()
            process.wait()


def open_tab(port_file: Path, url: str) -> None:
    """Open a tab, which covers the first one. The browser has loaded a page before."""
    port = port_file.read_text().split()[0]
    new = f"http://127.0.0.1:{port}/json/new?{url}"
    httpx.put(new, timeout=30, trust_env=False).raise_for_status()
