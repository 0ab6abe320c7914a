"""The whole suite of golden vectors, where tests/test_golden.py has every third case. Minutes."""

from __future__ import annotations

from pathlib import Path

import pytest

from npmeta.verification import golden

from ..test_golden import (  # noqa: F401
    IDS,
    ids_of,
    test_both_containers_have_the_same_tensors,
    test_definitions_agree,
    test_differences_agree,
    test_expected_values_are_npmetas_own,
    test_files_follow_their_schemas,
    test_inputs_fit_into_float32,
    test_mistakes_of_other_algorithms_are_named,
    test_no_case_is_near_a_kink,
    test_oracles_agree,
    test_right_answers_pass,
    test_step_sizes_are_written_out,
    test_the_example_in_c,
    test_the_index_has_every_file_and_its_sum,
    test_wrong_answers_fail,
)
from ..workers import made_once


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Path:
    return made_once(tmp_path_factory, "golden-of-all-cases", golden.write)


@pytest.fixture(scope="module")
def few(suite) -> Path:
    return suite


def test_it_is_the_whole_suite(suite):
    assert ids_of(suite) == IDS
