"""The judge of Django's tests on Trio: what it takes for a proof, and what not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from django_suite.journal import Journal, Verdict, count_failed, lost_passes

if TYPE_CHECKING:
    from pathlib import Path

    from django_suite.journal import Test

Facts = list[tuple[str, str, str | None]]


def read_tests(path: Path, facts: Facts) -> dict[str, Test]:
    """Write a journal, as test processes do, and read it.

    Args:
        path: Where the journal is to be.
        facts: For each test its name, its outcome, and where its coroutine has run;
            None for a sync test.
    """
    journal = Journal(path)
    path.touch()
    for name, outcome, ran_on in facts:
        if ran_on:
            journal.note_ran_on(name, ran_on)
        if outcome != "lost":
            journal.note_outcome(name, outcome, is_async=ran_on is not None)
    return journal.read()


GOOD: Facts = [("a", "passed", "trio"), ("s", "passed", None), ("t", "skipped", "")]


def test_all_is_well(tmp_path: Path) -> None:
    """Async tests that passed on Trio, beside sync and skipped ones, are a proof."""
    verdict = Verdict(read_tests(tmp_path / "journal", GOOD))
    assert verdict.good
    assert verdict.details() == []
    assert str(verdict) == (
        "async tests: passed on Trio 1 of 1, failed 0, ran on asyncio 0, skipped 1; "
        "sync tests: passed 1, failed 0, started asyncio 0"
    )


@pytest.mark.parametrize(
    ("fact", "detail"),
    [
        (("b", "failed", "trio"), "FAILED      b"),
        (("b", "failed", ""), "FAILED      b"),
        (("b", "passed", "asyncio"), "NOT ON TRIO b (asyncio)"),
        (("b", "passed", "nothing"), "NOT ON TRIO b (nothing)"),
        (("b", "passed", ""), "NOT ON TRIO b (unknown)"),
        (("b", "failed", None), "FAILED      b"),
        (("a", "passed", "asyncio"), "NOT ON TRIO a (asyncio, trio)"),
        (("a", "failed", "trio"), "FAILED      a"),
    ],
)
def test_one_test_spoils_the_proof(
    tmp_path: Path, fact: tuple[str, str, str | None], detail: str
) -> None:
    """A failure, a subtest's too, or a coroutine anywhere but on Trio is told."""
    verdict = Verdict(read_tests(tmp_path / "journal", [*GOOD, fact]))
    assert not verdict.good
    assert verdict.details() == [detail]


def test_asyncio_beside_a_sync_test_spoils_the_proof(tmp_path: Path) -> None:
    """A sync test that has started a loop of asyncio is told."""
    tests = read_tests(tmp_path / "journal", GOOD)
    tests["s"].ran_on.add("asyncio")
    verdict = Verdict(tests)
    assert not verdict.good
    assert verdict.details() == ["NOT ON TRIO s (asyncio)"]


def test_no_test_is_no_proof(tmp_path: Path) -> None:
    """Sync and skipped tests alone prove nothing."""
    assert not Verdict(read_tests(tmp_path / "journal", GOOD[1:])).good


def test_what_was_lost(tmp_path: Path) -> None:
    """What passed before and fails, is skipped, or is gone now is lost."""
    before: Facts = [(name, "passed", None) for name in "abcd"]
    before += [("e", "failed", None), ("f", "skipped", None)]
    after: Facts = [
        ("a", "passed", None),
        ("b", "failed", None),
        ("c", "skipped", None),
    ]
    after += [("e", "failed", None), ("f", "failed", None)]
    tests = read_tests(tmp_path / "after", after)
    assert lost_passes(read_tests(tmp_path / "before", before), tests) == [
        "b",
        "c",
        "d",
    ]
    assert count_failed(tests) == 3
