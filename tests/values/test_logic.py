"""Three-valued logic: the truth tables as data, and the laws that hold for any outcomes."""

from __future__ import annotations

from itertools import product
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.values.logic import (
    UNKNOWN_ORDER,
    Outcome,
    Reason,
    all_of,
    any_of,
    at_least,
    negate,
    unknown_rank,
)

P, U, F = Outcome.PASS, Outcome.UNKNOWN, Outcome.FAIL
OUTCOMES = st.sampled_from(Outcome)
SOME = st.lists(OUTCOMES, max_size=6)
LETTERS = {"P": P, "U": U, "F": F}

# Rows and columns: P(ass), U(nknown), F(ail).
ALL = """
    P U F
  P P U F
  U U U F
  F F F F
"""
ANY = """
    P U F
  P P P P
  U P U U
  F P U F
"""
NOT = {P: F, U: U, F: P}
# How many of three are needed, and what follows from each combination (order plays no part).
AT_LEAST = """
      1 2 3
  PPP P P P
  PPU P P U
  PPF P P F
  PUU P U U
  PUF P U F
  PFF P F F
  UUU U U U
  UUF U U F
  UFF U F F
  FFF F F F
"""
# Strength of an outcome: all_of gives the weakest, any_of the strongest.
STRENGTH = {F: 0, U: 1, P: 2}


def rows(table: str) -> list[tuple[str, str, Outcome]]:
    """Read a table: row, column, outcome."""
    header, *lines = (line.split() for line in table.strip().splitlines())
    return [
        (line[0], column, LETTERS[cell])
        for line in lines
        for column, cell in zip(header, line[1:], strict=True)
    ]


@pytest.mark.parametrize(("first", "second", "expected"), rows(ALL))
def test_all_of_two_is_as_the_table_says(first: str, second: str, expected: Outcome) -> None:
    """Fail if one fails, else unknown if one is unknown, else pass."""
    assert all_of([LETTERS[first], LETTERS[second]]) is expected


@pytest.mark.parametrize(("first", "second", "expected"), rows(ANY))
def test_any_of_two_is_as_the_table_says(first: str, second: str, expected: Outcome) -> None:
    """Pass if one passes, else unknown if one is unknown, else fail."""
    assert any_of([LETTERS[first], LETTERS[second]]) is expected


@pytest.mark.parametrize(("outcome", "expected"), NOT.items())
def test_not_swaps_pass_and_fail_and_leaves_unknown(outcome: Outcome, expected: Outcome) -> None:
    """What isn't known isn't known of its opposite either."""
    assert negate(outcome) is expected


@pytest.mark.parametrize(("outcomes", "needed", "expected"), rows(AT_LEAST))
def test_at_least_so_many_of_three_is_as_the_table_says(
    outcomes: str, needed: str, expected: Outcome
) -> None:
    """Pass if enough pass, fail if they no longer can, else unknown."""
    for order in {*product(outcomes, repeat=3)}:
        if sorted(order) == sorted(outcomes):
            assert at_least(int(needed), (LETTERS[letter] for letter in order)) is expected


def test_of_nothing_all_pass_and_none_passes() -> None:
    """The neutral elements: all of nothing passes, any of nothing fails."""
    assert all_of([]) is P
    assert any_of([]) is F
    assert at_least(0, []) is P
    assert at_least(1, []) is F


@given(SOME, SOME, SOME)
def test_all_and_any_are_associative(
    first: list[Outcome], second: list[Outcome], third: list[Outcome]
) -> None:
    """How parts are grouped into parents makes no difference to the outcome."""
    for of in (all_of, any_of):
        flat = of([*first, *second, *third])
        assert of([of(first), of([*second, *third])]) is flat
        assert of([of([*first, *second]), of(third)]) is flat


@given(SOME, st.randoms(use_true_random=False))
def test_order_and_repetition_make_no_difference_to_all_and_any(
    outcomes: list[Outcome], random: Random
) -> None:
    """They are commutative and idempotent."""
    shuffled = list(outcomes)
    random.shuffle(shuffled)
    for of in (all_of, any_of):
        assert of(shuffled) is of(outcomes)
        assert of([*outcomes, *outcomes]) is of(outcomes)


@given(SOME)
def test_de_morgan_holds_for_three_values(outcomes: list[Outcome]) -> None:
    """Not all is any not, and not any is all not."""
    negated = [negate(outcome) for outcome in outcomes]
    assert negate(all_of(outcomes)) is any_of(negated)
    assert negate(any_of(outcomes)) is all_of(negated)


@given(OUTCOMES, SOME)
def test_all_distributes_over_any_and_any_over_all(outcome: Outcome, others: list[Outcome]) -> None:
    """Combinations can be written out either way."""
    assert all_of([outcome, any_of(others)]) is any_of(all_of([outcome, each]) for each in others)
    assert any_of([outcome, all_of(others)]) is all_of(any_of([outcome, each]) for each in others)


@given(OUTCOMES, OUTCOMES)
def test_absorption_and_double_negation_hold(first: Outcome, second: Outcome) -> None:
    """A part that is repeated inside a combination adds nothing."""
    assert all_of([first, any_of([first, second])]) is first
    assert any_of([first, all_of([first, second])]) is first
    assert negate(negate(first)) is first


@given(st.lists(OUTCOMES, min_size=1, max_size=6))
def test_all_gives_the_weakest_outcome_and_any_the_strongest(outcomes: list[Outcome]) -> None:
    """Fail is weaker than unknown, unknown weaker than pass."""
    assert STRENGTH[all_of(outcomes)] == min(STRENGTH[outcome] for outcome in outcomes)
    assert STRENGTH[any_of(outcomes)] == max(STRENGTH[outcome] for outcome in outcomes)


@given(SOME)
def test_any_is_at_least_one_and_all_is_at_least_as_many_as_there_are(
    outcomes: list[Outcome],
) -> None:
    """Both are special cases of at-least."""
    assert at_least(1, outcomes) is any_of(outcomes)
    assert at_least(len(outcomes), outcomes) is all_of(outcomes)


@given(st.integers(1, 6), SOME)
def test_not_at_least_so_many_is_at_least_the_rest_not(
    needed: int, outcomes: list[Outcome]
) -> None:
    """De Morgan for counts: fewer than n of k pass if more than k - n fail."""
    negated = [negate(outcome) for outcome in outcomes]
    rest = len(outcomes) - needed + 1
    assert negate(at_least(needed, outcomes)) is (at_least(rest, negated) if rest > 0 else P)


@given(SOME, st.integers(0, 6))
def test_needing_more_never_helps(outcomes: list[Outcome], needed: int) -> None:
    """At least n + 1 is no easier than at least n."""
    more, fewer = at_least(needed + 1, outcomes), at_least(needed, outcomes)
    assert STRENGTH[more] <= STRENGTH[fewer]


@given(SOME, SOME.filter(bool), st.integers(0, 6))
def test_settling_an_unknown_never_contradicts_what_was_known(
    settled: list[Outcome], more: list[Outcome], needed: int
) -> None:
    """A known outcome stays whatever the unknown parts turn out to be: unknown is honest."""
    hidden = [*settled, *(U for _ in more)]
    shown = [*settled, *more]
    for before, after in (
        (all_of(hidden), all_of(shown)),
        (any_of(hidden), any_of(shown)),
        (at_least(needed, hidden), at_least(needed, shown)),
    ):
        assert before is U or before is after


@given(SOME)
def test_unknown_is_given_only_if_the_unknown_parts_could_decide(outcomes: list[Outcome]) -> None:
    """If the outcome is unknown, the unknown parts settled one way pass, the other way fail."""
    best = [P if outcome is U else outcome for outcome in outcomes]
    worst = [F if outcome is U else outcome for outcome in outcomes]
    for of in (all_of, any_of):
        assert of(outcomes) is (of(best) if of(best) is of(worst) else U)


def test_the_reasons_for_unknown_come_in_the_order_of_the_semantics() -> None:
    """Judgement first, then what the semantics list, then the checks of a result (1.1, 1.3)."""
    stated = (
        Reason.JUDGEMENT_REQUIRED,
        Reason.UNCONFIRMED,
        Reason.STATUS_NOT_RECORDED,
        Reason.INDETERMINATE_DATE,
        Reason.CONFLICTING_DATA,
        Reason.UNMAPPED_CODE,
        Reason.SOURCE_UNAVAILABLE,
    )
    assert UNKNOWN_ORDER[: len(stated)] == stated
    assert [unknown_rank(reason) for reason in UNKNOWN_ORDER] == list(range(len(UNKNOWN_ORDER)))


def test_every_reason_is_either_a_decision_or_has_its_place_among_the_unknown() -> None:
    """No reason for unknown can be forgotten when several meet."""
    decided = {
        Reason.VALUE_MEETS,
        Reason.VALUE_VIOLATES,
        Reason.RECORD_PRESENT,
        Reason.RECORD_ABSENT,
        Reason.NOT_APPLICABLE,
        Reason.ATTESTED,
    }
    assert set(UNKNOWN_ORDER) | decided == set(Reason)
    assert not set(UNKNOWN_ORDER) & decided
    assert all(unknown_rank(reason) == len(UNKNOWN_ORDER) for reason in decided)
