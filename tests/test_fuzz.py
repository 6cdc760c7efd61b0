"""What must hold of every file, whatever is wrong with it: tests/fuzz makes the files and the second opinions."""

from collections import Counter

import pytest

from tests.fuzz.examine import MEMORY, SECONDS, SIZES, Job, Outcome, examine, examined
from tests.fuzz.mutants import Mutant, mutant
from tests.fuzz.sources import generated_sources

MUTANTS = 500
REAL_SHARE = 0.01


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    log = tmp_path_factory.mktemp("fuzz") / "log"
    return list(examined(Job(0, MUTANTS, str(log), REAL_SHARE)))


def those(outcomes: list[Outcome], condition) -> list[str]:
    """For the message of a failing test: which mutants they are, and how they came about."""
    return [str(outcome) for outcome in outcomes if condition(outcome)]


def test_a_damaged_file_kills_no_reader(outcomes):
    assert those(outcomes, lambda outcome: outcome.kind == "death" and outcome.faults) == []
    assert [outcome.seed for outcome in outcomes] == list(range(MUTANTS))


def test_a_damaged_file_takes_neither_long_nor_much_memory(outcomes):
    assert those(outcomes, lambda outcome: outcome.seconds > SECONDS or outcome.megabytes * 1e6 > MEMORY) == []


def test_a_damaged_file_is_an_error_or_a_picture_of_what_a_second_decoder_finds_in_it(outcomes):
    assert those(outcomes, lambda outcome: outcome.faults) == []


def test_every_refusal_says_what_is_wrong(outcomes):
    assert those(outcomes, lambda outcome: outcome.is_unexplained) == []


def test_the_mutants_are_of_all_kinds(outcomes):
    """Else the tests above say little."""
    kinds = Counter(outcome.kind for outcome in outcomes)
    assert kinds["picture"] > MUTANTS / 5
    assert kinds["error"] > MUTANTS / 5
    reasons = Counter(outcome.detail.split(":")[0].split("(")[0] for outcome in outcomes if outcome.kind == "error")
    assert len(reasons) > 15
    decoders = Counter(decoder for outcome in outcomes for decoder in outcome.agreed)
    assert {"pydicom", "jpegsof3", "Pillow's OpenJPEG", "imagecodecs' OpenJPEG"} <= set(decoders)


def test_without_damage_every_source_is_read_as_the_second_decoders_read_it(tmp_path):
    for source in generated_sources():
        for seed in range(len(SIZES)):
            codestream = source.file.codestream if source.file else b""
            whole = Mutant(seed, source.name, (), source.content, codestream)
            outcome = examine(whole, Job(0, 0, ""), tmp_path / "x.dcm", lambda phase: None)
            assert (outcome.kind, outcome.faults, outcome.differing) == ("picture", [], []), str(outcome)


def test_a_seed_is_a_mutant():
    assert mutant(7) == mutant(7)
    assert len({mutant(seed).content for seed in range(100)}) > 95
