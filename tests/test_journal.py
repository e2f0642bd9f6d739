"""The judge of Django's tests on Trio: what counts as a proof, and what does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from django_suite.journal import (
    ClientVerdict,
    Journal,
    Verdict,
    count_failed,
    lost_passes,
)

if TYPE_CHECKING:
    from pathlib import Path

    from django_suite.journal import Test

Facts = list[tuple[str, str, str | None]]


def read_tests(path: Path, facts: Facts) -> dict[str, Test]:
    """Write a journal, as test processes do, and read it.

    Args:
        path: Where to write the journal.
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
    """A failure, even of a subtest, or a coroutine not on Trio is reported."""
    verdict = Verdict(read_tests(tmp_path / "journal", [*GOOD, fact]))
    assert not verdict.good
    assert verdict.details() == [detail]


def test_asyncio_beside_a_sync_test_spoils_the_proof(tmp_path: Path) -> None:
    """A sync test that has started an asyncio loop is reported."""
    tests = read_tests(tmp_path / "journal", GOOD)
    tests["s"].ran_on.add("asyncio")
    verdict = Verdict(tests)
    assert not verdict.good
    assert verdict.details() == ["NOT ON TRIO s (asyncio)"]


def test_no_test_is_no_proof(tmp_path: Path) -> None:
    """Sync and skipped tests alone prove nothing."""
    assert not Verdict(read_tests(tmp_path / "journal", GOOD[1:])).good


def test_what_was_lost(tmp_path: Path) -> None:
    """Tests that passed before, and now fail, are skipped, or are missing, are lost."""
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


def client_verdict(
    path: Path,
    accepted: dict[str, str],
    *,
    requests: int = 2,
    differences: tuple[str, ...] = (),
) -> ClientVerdict:
    """Judge two tests of the sync client, of which "b" has failed."""
    journal = Journal(path)
    journal.note_outcome("a", "passed", is_async=False)
    journal.note_outcome("b", "failed", is_async=False)
    journal.note_request("a", on_trio=False)
    for _ in range(requests):
        journal.note_request("a", on_trio=True)
    for difference in differences:
        journal.note_difference("a", difference)
    return ClientVerdict(journal.read(), accepted)


def test_client_is_well(tmp_path: Path) -> None:
    """Tests that fail by design are no objection."""
    verdict = client_verdict(tmp_path / "journal", {"b": "by design"})
    assert verdict.good
    assert verdict.failed == []
    assert verdict.details() == []
    assert str(verdict) == (
        "tests 2, requests 2, and by Django's handler 1; differences on the wire 0; "
        "differ by design 1"
    )


def test_failures_of_the_client_are_told(tmp_path: Path) -> None:
    """Tests that fail for no known reason must be run with Django's handler."""
    verdict = client_verdict(tmp_path / "journal", {"c": "not run here"})
    assert verdict.failed == ["b"]


def test_no_request_is_no_proof(tmp_path: Path) -> None:
    """A run whose requests all went to Django's handler proves nothing."""
    accepted = {"b": "by design"}
    assert not client_verdict(tmp_path / "journal", accepted, requests=0).good


def test_what_was_sent_counts(tmp_path: Path) -> None:
    """A difference on the wire is reported, even if the test swallowed its error."""
    verdict = client_verdict(
        tmp_path / "journal", {"b": "by design"}, differences=("the status is 200",)
    )
    assert not verdict.good
    assert verdict.details() == ["ON THE WIRE  a: the status is 200"]


def test_nothing_is_accepted_needlessly(tmp_path: Path) -> None:
    """If a test that should differ passes, it spoils the proof."""
    verdict = client_verdict(tmp_path / "journal", {"a": "once", "b": "by design"})
    assert not verdict.good
    assert verdict.details() == ["NO LONGER    differs: a"]
