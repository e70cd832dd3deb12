"""A part of the kill campaign (`tests.campaign`), chosen: what no other slow test kills, when it hurts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.campaign import Campaign, Round, campaign

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Campaign]:
    with campaign(tmp_path_factory.mktemp("campaign")) as found:
        yield found


@pytest.mark.parametrize(
    ("number", "victim", "share", "joined"),
    [(0, "gcs_server", 0.7, False), (1, "controller", 0.2, True), (2, "everything", 0.9, False)],
)
def test_whatever_is_killed_the_same_command_ends_in_the_same_table(
    held: Campaign, number: int, victim: str, share: float, joined: bool
) -> None:
    """Issue 15, number 17 (a killed gcs_server ended the driver with exit code 1), and "done when" 3."""
    report = held.play(Round(number, victim, share * held.seconds, joined))
    assert not report.faults, report.line()
    assert report.moment.startswith("killed"), report.line()
