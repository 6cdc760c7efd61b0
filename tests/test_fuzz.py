"""What must hold for every file, however damaged. tests/fuzz makes the files and asks other decoders."""

from collections import Counter

import pytest

from tests.fuzz.examine import MEMORY, SECONDS, SIZES, Job, Outcome, examine, examined
from tests.fuzz.mutants import Mutant, mutant
from tests.fuzz.sources import generated_sources

FEW, MANY = 100, 500  # mutants of the normal run and of the slow one
REAL_SHARE = 0.01


@pytest.fixture(scope="module", params=[range(FEW), pytest.param(range(FEW, MANY), marks=pytest.mark.slow)])
def seeds(request: pytest.FixtureRequest) -> range:
    return request.param


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory, seeds: range) -> list[Outcome]:
    log = tmp_path_factory.mktemp("fuzz") / "log"
    return list(examined(Job(seeds.start, seeds.stop, str(log), REAL_SHARE)))


def those(outcomes: list[Outcome], condition) -> list[str]:
    """Describe the mutants that meet a condition, for the message of a failing test."""
    return [str(outcome) for outcome in outcomes if condition(outcome)]


def test_no_damaged_file_kills_the_reader(outcomes, seeds):
    assert those(outcomes, lambda outcome: outcome.kind == "death" and outcome.faults) == []
    assert [outcome.seed for outcome in outcomes] == list(seeds)


def test_no_damaged_file_takes_long_or_much_memory(outcomes):
    assert those(outcomes, lambda outcome: outcome.seconds > SECONDS or outcome.megabytes * 1e6 > MEMORY) == []


def test_a_damaged_file_is_an_error_or_a_picture_of_what_another_decoder_reads(outcomes):
    assert those(outcomes, lambda outcome: outcome.faults) == []


def test_every_error_says_what_is_wrong(outcomes):
    assert those(outcomes, lambda outcome: outcome.is_unexplained) == []


def test_the_mutants_are_of_all_kinds(outcomes, seeds):
    """Otherwise the tests above would show little."""
    kinds = Counter(outcome.kind for outcome in outcomes)
    assert kinds["picture"] > len(seeds) / 6
    assert kinds["error"] > len(seeds) / 5
    reasons = Counter(outcome.detail.split(":")[0].split("(")[0] for outcome in outcomes if outcome.kind == "error")
    assert len(reasons) > 10
    decoders = {decoder for outcome in outcomes for decoder in outcome.agreed}
    assert {"pydicom", "Pillow's OpenJPEG", "imagecodecs' OpenJPEG"} <= decoders


@pytest.mark.parametrize("sizes", [1, pytest.param(len(SIZES), marks=pytest.mark.slow)])
def test_without_damage_every_source_is_read_as_other_decoders_read_it(tmp_path, sizes):
    decoders = set()
    for number, source in enumerate(generated_sources()):
        for seed in range(number, number + sizes):  # the seed decides the size
            codestream = source.file.codestream if source.file else b""
            whole = Mutant(seed, source.name, (), source.content, codestream)
            outcome = examine(whole, Job(0, 0, ""), tmp_path / "x.dcm", lambda phase: None)
            assert (outcome.kind, outcome.faults, outcome.differing) == ("picture", [], []), str(outcome)
            decoders |= set(outcome.agreed)
    assert {"pydicom", "jpegsof3", "Pillow's OpenJPEG", "imagecodecs' OpenJPEG", "NumPy"} <= decoders


def test_a_seed_decides_its_mutant():
    assert mutant(7) == mutant(7)
    assert len({mutant(seed).content for seed in range(100)}) > 95
