"""What the process keeps of freed memory between micro-batches."""

from __future__ import annotations

from itertools import pairwise

from lowregret.training.memory import FILLING, MOST_GROWTH, REMEASURED, FreedPages

MIB = 1 << 20
HELD = 1000 * MIB


def resident_after(pages: FreedPages, touched: list[int], *, left_behind: int = 0) -> list[int]:
    """Resident bytes after micro-batches that touch so much from a clean heap, and leave so much more behind."""
    resident, seen = HELD, list[int]()
    for number in touched:
        resident = max(resident + left_behind, HELD + number)
        seen.append(resident)
        if not pages.keep(resident):
            resident = HELD
            pages.released(resident)
    return seen


def test_pages_stay_for_micro_batches_of_one_size() -> None:
    pages = FreedPages()
    kept = [pages.keep(HELD + 400 * MIB) or pages.released(HELD) for _ in range(REMEASURED - 1)]
    assert kept == [None] * FILLING + [True] * (REMEASURED - 1 - FILLING)


def test_fragments_grow_by_no_more_than_a_quarter() -> None:
    seen = resident_after(FreedPages(), [400 * MIB] * 300, left_behind=30 * MIB)
    assert max(seen) <= HELD + MOST_GROWTH * 400 * MIB + 30 * MIB
    assert sum(now > before for before, now in pairwise(seen)) > 100  # and they are kept meanwhile


def test_a_larger_micro_batch_makes_room_for_its_like() -> None:
    pages = FreedPages()
    resident_after(pages, [100 * MIB] * 10)
    assert not pages.keep(HELD + 300 * MIB)
    pages.released(HELD)
    assert [pages.keep(HELD + 300 * MIB) for _ in range(5)] == [True] * 5


def test_what_a_passing_giant_allowed_is_forgotten() -> None:
    pages = FreedPages()
    resident_after(pages, [4000 * MIB] * 5 + [100 * MIB] * (2 * REMEASURED))
    assert not pages.keep(HELD + 1000 * MIB)
