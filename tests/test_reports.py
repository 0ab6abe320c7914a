"""Tables of scores are read at 80 columns, whatever has become of the tasks."""

import numpy as np

from npmeta.algorithms import Scores
from npmeta.cli.reports import score_table


def test_two_digits_of_the_narrowest_interval():
    loss = np.array([[3.0, 1.0], [1.0, 1.1]])
    assert score_table(Scores(loss, None), "mse", "test").splitlines()[2:] == [
        "          0  2.00 ± 12.71",
        "          1   1.05 ± 0.64",
    ]


def test_tasks_that_diverged_do_not_make_the_table_wide():
    loss = np.array([[1.0, 2e3, 4e11, 1e57, 1e200, np.nan], [3.0, 1e3, 2e11, 2e57, 2e200, 1.0]])
    table = score_table(Scores(loss, np.array(loss < 9.0) + 0 * loss), "cross_entropy", "test")
    assert max(map(len, table.splitlines())) < 80
    assert "1.5e+57 ± " in table
    assert table.splitlines()[-1].split() == ["5", "diverged:", "1", "of", "2", "tasks", "diverged"]


def test_an_interval_of_rounding_alone_gets_no_digits():
    guessed = np.full((100, 2), 0.2)
    guessed[:50, 0], guessed[0, 1] = 0.4, np.nextafter(0.2, 1)
    table = score_table(Scores(np.ones((100, 2)), guessed), "cross_entropy", "test")
    assert table.splitlines()[2].endswith("  30.0 ± 2.0")
    assert table.splitlines()[3].endswith("  20.0 ± 0.0")
