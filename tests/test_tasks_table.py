"""Tables: reading, splits, standardisation on training tasks only, sampling, encoding, errors."""

import hashlib
import itertools
import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npmeta.tasks import Encoding, Table, read_rows
from npmeta.tasks.draws import SPLITS

uint64 = st.integers(0, 2**64 - 1)

#: Rows of each task of the table most tests read.
ROWS = {f"t{i:02d}": 6 + i % 5 for i in range(20)}


def columns(rows: dict[str, int] = ROWS, seed: int = 0) -> dict[str, list]:
    """A table whose column ``id`` tells every row apart; the rows of the tasks are mixed."""
    rng = np.random.default_rng(seed)
    tasks = [name for name, n in rows.items() for _ in range(n)]
    n = len(tasks)
    order = rng.permutation(n)
    price = rng.normal(30, 5, n)
    return {
        "task": [tasks[i] for i in order],
        "id": list(range(n)),
        "load": rng.normal(50, 10, n).tolist(),
        "price": price.tolist(),
        "level": ["high" if p > 30 else "low" for p in price],
    }


def write_csv(path: Path, table: dict[str, list]) -> Path:
    lines = [",".join(table), *(",".join(map(str, row)) for row in zip(*table.values(), strict=True))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def csv_path(tmp_path_factory) -> Path:
    return write_csv(tmp_path_factory.mktemp("data") / "prices.csv", columns())


#: Prices from id and load; 6 rows a task are needed, and every task has them.
PRICE = {"shots": 2, "queries": 4, "target": "price", "features": ["id", "load"]}
LEVEL = {"shots": 2, "queries": 4, "target": "level", "features": ["id", "load"]}


@pytest.fixture(scope="module")
def prices(csv_path) -> Table:
    return Table(csv_path, **PRICE)


@pytest.fixture(scope="module")
def levels(csv_path) -> Table:
    return Table(csv_path, **LEVEL)


def assert_same_tasks(one: Table, other: Table) -> None:
    assert one.encoding == other.encoding
    for split in SPLITS:
        assert one.task_names(split) == other.task_names(split)
        a, b = (tasks.sample(3, 4, 10, split=split) for tasks in (one, other))
        for name in ("support_x", "support_y", "query_x", "query_y"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def ids(tasks: Table, x: np.ndarray) -> np.ndarray:
    """The column ``id``, the first feature, of encoded rows."""
    mean, std = tasks.encoding.mean[0], tasks.encoding.std[0]
    return np.rint(x[..., 0] * std + mean).astype(int)


# --- sampling -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_tasks_are_distinct_rows_of_one_task(prices, levels, split):
    table = columns()
    for tasks, target in ((prices, "price"), (levels, "level")):
        batch = tasks.sample(1, 2, 200, split=split)
        names = tasks.names(1, 2, 200, split=split)
        assert batch.support_x.shape == (200, 2, 2)
        assert batch.query_x.shape == (200, 4, 2)
        assert set(names) <= set(tasks.task_names(split))
        x = np.concatenate([batch.support_x, batch.query_x], axis=1)
        y = np.concatenate([batch.support_y, batch.query_y], axis=1)
        rows = ids(tasks, x)
        for t, name in enumerate(names):
            assert len(set(rows[t])) == 6
            assert {table["task"][i] for i in rows[t]} == {name}
        loads = x[..., 1] * tasks.encoding.std[1] + tasks.encoding.mean[1]
        np.testing.assert_allclose(loads, np.array(table["load"])[rows], rtol=1e-12)
        if target == "price":
            assert y.shape == (200, 6, 1)
            assert (tasks.n_in, tasks.n_out) == (2, 1)
            np.testing.assert_allclose(
                tasks.encoding.decode(y), np.array(table["price"])[rows], rtol=1e-12
            )
        else:
            assert y.shape == (200, 6)
            assert y.dtype == np.int64
            assert (tasks.n_in, tasks.n_out) == (2, 2)
            assert np.array_equal(np.array(["high", "low"])[y], np.array(table["level"])[rows])


def test_tasks_and_rows_are_equally_likely(prices):
    """Counts of 8000 tasks against their binomial distribution, five standard deviations wide."""
    T = 8000
    names = prices.names(0, 0, T)
    batch = prices.sample(0, 0, T)
    own = prices.task_names()
    p = 1 / len(own)
    counts = np.array([names.count(name) for name in own])
    assert np.abs(counts - T * p).max() < 5 * np.sqrt(T * p * (1 - p))
    # Each place of a task is a row of its own, as likely as any other.
    for place in range(2):
        rows = ids(prices, batch.support_x[:, place])
        for i, task in enumerate(columns()["task"]):
            if task in own:
                q = p / ROWS[task]
                assert abs((rows == i).sum() - T * q) < 5 * np.sqrt(T * q * (1 - q))


@given(
    uint64,
    st.integers(0, 2**40),
    st.integers(0, 2**40),
    st.integers(1, 6),
    st.integers(1, 6),
    st.sampled_from(list(SPLITS)),
)
def test_a_task_is_the_same_wherever_it_is_drawn(prices, seed, iteration, start, before, n, split):
    whole = prices.sample(seed, iteration, before + n, start=start, split=split)
    part = prices.sample(seed, iteration, n, start=start + before, split=split)
    for name in ("support_x", "support_y", "query_x", "query_y"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[before:])
    names = prices.names(seed, iteration, before + n, start=start, split=split)
    assert names[before:] == prices.names(seed, iteration, n, start=start + before, split=split)


def test_tasks_depend_on_seed_iteration_and_index(prices):
    drawn = [
        prices.sample(seed, iteration, 2, start=start).support_x.tobytes()
        for seed, iteration, start in itertools.product((0, 1, 2**64 - 1), (0, 1, 10**6), (0, 2, 4))
    ]
    assert len(set(drawn)) == len(drawn)
    own = {split: prices.names(0, 0, 30, split=split) for split in ("validation", "test")}
    index = {split: [prices.task_names(split).index(n) for n in own[split]] for split in own}
    assert index["validation"] != index["test"]  # as many tasks, another stream


def test_sampling_leaves_the_data_alone(prices):
    before = prices.sample(0, 0, 5)
    expected = before.support_x.copy()
    before.support_x[:] = 0
    np.testing.assert_array_equal(prices.sample(0, 0, 5).support_x, expected)


# --- splits -------------------------------------------------------------------------------------------


@given(uint64)
def test_tasks_are_divided_among_the_splits(csv_path, seed):
    tasks = Table(csv_path, **PRICE, split_seed=seed)
    parts = [tasks.task_names(split) for split in SPLITS]
    assert [len(part) for part in parts] == [14, 3, 3]
    assert sorted(itertools.chain(*parts)) == sorted(ROWS)


def test_splits_depend_on_the_seed(csv_path):
    assert len({tuple(Table(csv_path, **PRICE, split_seed=s).task_names()) for s in range(5)}) == 5


def test_splits_do_not_depend_on_the_order_of_the_rows(tmp_path, csv_path):
    table = columns()
    order = np.random.default_rng(1).permutation(len(table["task"]))
    mixed = {name: [cells[i] for i in order] for name, cells in table.items()}
    tasks = Table(write_csv(tmp_path / "mixed.csv", mixed), **PRICE)
    for split in SPLITS:
        assert tasks.task_names(split) == Table(csv_path, **PRICE).task_names(split)


def test_three_tasks_are_enough_and_two_are_not(tmp_path):
    three = write_csv(tmp_path / "3.csv", columns({"a": 6, "b": 6, "c": 6}))
    assert [len(Table(three, **PRICE).task_names(split)) for split in SPLITS] == [1, 1, 1]
    two = write_csv(tmp_path / "2.csv", columns({"a": 6, "b": 6}))
    with pytest.raises(
        ValueError, match=re.escape(f"{two}: too few tasks with 6 rows or more for 3 splits: 2")
    ):
        Table(two, **PRICE)
    assert Table(two, **PRICE, fractions=(0.5, 0, 0.5)).task_names("validation") == []
    with pytest.raises(ValueError, match=r"^the validation split is empty: fractions are \(0\.5, 0"):
        Table(two, **PRICE, fractions=(0.5, 0, 0.5)).sample(0, 0, 1, split="validation")


def test_numbers_as_names_of_tasks_are_in_order(tmp_path):
    rows = {str(i): 6 for i in (100, 9, 10, 1)}
    tasks = Table(write_csv(tmp_path / "n.csv", columns(rows)), **PRICE, fractions=(1, 0, 0))
    assert tasks.task_names() == ["1", "9", "10", "100"]


# --- tasks with too few rows --------------------------------------------------------------------------


def test_tasks_with_too_few_rows_are_named_and_skipped(tmp_path):
    path = write_csv(tmp_path / "few.csv", columns({**ROWS, "small": 5, "tiny": 1}))
    message = r"^tasks with fewer than 6 rows are skipped: small \(5\), tiny \(1\)$"
    with pytest.warns(UserWarning, match=message) as caught:
        tasks = Table(path, **PRICE)
    assert caught[0].filename == __file__
    assert tasks.skipped == (("small", 5), ("tiny", 1))
    assert {name for split in SPLITS for name in tasks.task_names(split)} == set(ROWS)


def test_many_skipped_tasks_are_counted(tmp_path):
    path = write_csv(tmp_path / "few.csv", columns({**ROWS, **{f"u{i:02d}": 2 for i in range(13)}}))
    with pytest.warns(UserWarning, match=r"u09 \(2\) and 3 more$"):
        tasks = Table(path, **PRICE)
    assert len(tasks.skipped) == 13


def test_enough_rows_are_exactly_shots_and_queries(csv_path, prices):
    assert prices.skipped == ()
    with pytest.warns(UserWarning, match="fewer than 7 rows"):
        tasks = Table(csv_path, **{**PRICE, "queries": 5})
    assert {name for name, _ in tasks.skipped} == {name for name, n in ROWS.items() if n == 6}


def test_no_task_left(csv_path):
    with pytest.raises(ValueError, match=r"no task has the 14 rows .*; the largest, 't04', has 10$"):
        Table(csv_path, **{**PRICE, "queries": 12})


def test_classes_of_skipped_tasks_do_not_count(tmp_path):
    table = columns({**ROWS, "small": 3})
    table["level"] = [
        "odd" if task == "small" else level
        for task, level in zip(table["task"], table["level"], strict=True)
    ]
    with pytest.warns(UserWarning, match="small"):
        tasks = Table(write_csv(tmp_path / "c.csv", table), **LEVEL)
    assert tasks.encoding.classes == ("high", "low")


# --- standardisation ----------------------------------------------------------------------------------


def rows_of(table: dict[str, list], names: list[str], column: str) -> np.ndarray:
    return np.array(
        [v for v, task in zip(table[column], table["task"], strict=True) if task in names], float
    )


def test_standardisation_is_fitted_on_the_training_tasks(prices):
    table, own = columns(), prices.task_names("train")
    for i, name in enumerate(("id", "load")):
        values = rows_of(table, own, name)
        assert abs(prices.encoding.mean[i] / values.mean() - 1) < 1e-13
        assert abs(prices.encoding.std[i] / values.std() - 1) < 1e-13
    values = rows_of(table, own, "price")
    assert abs(prices.encoding.target_mean / values.mean() - 1) < 1e-13
    assert abs(prices.encoding.target_std / values.std() - 1) < 1e-13


@pytest.mark.parametrize("split", SPLITS)
def test_standardisation_sees_no_other_task(tmp_path, prices, split):
    table = columns()
    for name in ("load", "price"):
        table[name] = [
            v + 1000 * (task in prices.task_names(split))
            for v, task in zip(table[name], table["task"], strict=True)
        ]
    changed = Table(write_csv(tmp_path / "changed.csv", table), **PRICE)
    assert changed.task_names(split) == prices.task_names(split)
    assert (changed.encoding == prices.encoding) == (split != "train")


def test_standardisation_can_be_left_out(csv_path):
    encoding = Table(csv_path, **PRICE, standardise=False).encoding
    assert encoding == Encoding(("id", "load"), "price", (0.0, 0.0), (1.0, 1.0))


@pytest.mark.parametrize("value", [0.1, 0.0, -3e200, 7e-300])
def test_constant_columns_become_zero(tmp_path, value):
    table = columns()
    table["load"] = table["price"] = [value] * len(table["task"])
    tasks = Table(write_csv(tmp_path / "c.csv", table), **PRICE)
    assert tasks.encoding.std[1] == tasks.encoding.target_std == 1
    assert tasks.encoding.mean[1] == tasks.encoding.target_mean == value
    batch = tasks.sample(0, 0, 5)
    assert not batch.support_x[..., 1].any()
    assert not batch.support_y.any()


@pytest.mark.parametrize(("scale", "shift"), [(1e200, 0), (1e-200, 0), (1e-3, 1e9), (1, -1e6)])
def test_columns_of_any_size_are_standardised(tmp_path, scale, shift):
    table = columns()
    table["load"] = (scale * np.array(table["load"]) + shift).tolist()
    tasks = Table(write_csv(tmp_path / "c.csv", table), **PRICE, fractions=(1, 0, 0))
    encoded = tasks.encoding.encode(np.stack([table["id"], table["load"]], 1))
    # Rounding at 1e9 leaves about 1e-7 / 1e-2 of a deviation.
    np.testing.assert_allclose(encoded[:, 1].mean(), 0, atol=1e-5 if shift else 1e-13)
    np.testing.assert_allclose(encoded[:, 1].std(), 1, rtol=1e-5 if shift else 1e-13)


# --- reading ------------------------------------------------------------------------------------------


def test_the_checksum_is_of_the_file(csv_path, prices):
    assert prices.checksum == hashlib.sha256(csv_path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\n", "\r"),
        lambda text: text.replace(",", " , "),
        lambda text: text.replace("\n", "\n\n  \n,,,,\n"),
        lambda text: re.sub(r"([^,\n]+)", r'"\1"', text),
        lambda text: text.rstrip("\n"),
    ],
    ids=["byte order mark", "crlf", "cr", "spaces", "blank lines", "quotes", "no last newline"],
)
def test_dialects_of_csv(tmp_path, csv_path, prices, levels, change):
    path = tmp_path / "other.csv"
    path.write_bytes(change(csv_path.read_text()).encode())
    assert_same_tasks(Table(path, **PRICE), prices)
    assert_same_tasks(Table(path, **LEVEL), levels)


def test_an_npz_is_read_as_a_csv(tmp_path, prices, levels):
    arrays = {name: np.array(cells) for name, cells in columns().items()}
    np.savez(tmp_path / "t.npz", **arrays)
    assert_same_tasks(Table(tmp_path / "t.npz", **PRICE), prices)
    assert_same_tasks(Table(tmp_path / "t.npz", **LEVEL), levels)
    np.savez_compressed(tmp_path / "compressed.npz", **arrays)
    (tmp_path / "compressed.npz").rename(tmp_path / "compressed")
    assert_same_tasks(Table(tmp_path / "compressed", **PRICE), prices)


def test_arrays_of_several_columns(tmp_path, prices):
    table = columns()
    x = np.stack([table["id"], table["load"]], axis=1)
    np.savez(tmp_path / "t.npz", x=x, task=table["task"], price=np.array(table["price"])[:, None])
    arguments = {"shots": 2, "queries": 4, "target": "price"}
    whole = Table(tmp_path / "t.npz", **arguments)
    assert whole.features == whole.encoding.features == ("x[0]", "x[1]")
    assert Table(tmp_path / "t.npz", **arguments, features=["x"]).encoding == whole.encoding
    second = Table(tmp_path / "t.npz", **arguments, features=["x[1]"])
    assert second.features == ("x[1]",)
    assert abs(second.encoding.mean[0] / whole.encoding.mean[1] - 1) < 1e-14
    assert whole.encoding.mean == prices.encoding.mean
    with pytest.raises(ValueError, match=r"'x' is 2 columns, where one is expected$"):
        Table(tmp_path / "t.npz", **{**arguments, "target": "x"}, features=["price"])


def test_the_default_features_are_all_other_columns(tmp_path, csv_path):
    table = columns()
    del table["level"]
    tasks = Table(write_csv(tmp_path / "t.csv", table), shots=2, queries=4, target="load")
    assert tasks.features == tasks.encoding.features == ("id", "price")
    assert tasks.target == tasks.encoding.target == "load"
    assert Table(csv_path, **{**PRICE, "features": ("load", "id")}).features == ("load", "id")


def with_target(tmp_path: Path, cells: list) -> Path:
    table = columns()
    table["target"] = list(itertools.islice(itertools.cycle(cells), len(table["task"])))
    return write_csv(tmp_path / "t.csv", table)


@pytest.mark.parametrize(
    ("cells", "kind", "classes"),
    [
        (["1", "2.5", "-3e4"], "number", None),
        (["1", "2"], "number", None),
        (["a", "b", "c"], "class", ("a", "b", "c")),
        (["True", "False"], "class", ("False", "True")),
        (["1_0", "2_0"], "class", ("1_0", "2_0")),
    ],
)
def test_the_kind_of_the_target(tmp_path, cells, kind, classes):
    tasks = Table(with_target(tmp_path, cells), shots=2, queries=4, features=["load"])
    assert tasks.kind == tasks.encoding.kind == kind
    assert tasks.encoding.classes == classes
    assert tasks.n_out == (1 if classes is None else len(classes))


def test_numbers_can_be_classes(tmp_path):
    path = with_target(tmp_path, ["10", "9", "2"])
    arguments = {"shots": 2, "queries": 4, "features": ["load"], "kind": "class"}
    tasks = Table(path, **arguments)
    assert tasks.encoding.classes == ("2", "9", "10")
    assert tasks.sample(0, 0, 3).support_y.dtype == np.int64
    table = columns()
    for dtype in (np.int16, np.float32):
        values = np.resize(np.array([10, 9, 2], dtype), len(table["task"]))
        np.savez(tmp_path / "t.npz", task=table["task"], load=table["load"], target=values)
        assert_same_tasks(Table(tmp_path / "t.npz", **arguments), tasks)
    values = np.resize(np.array([0.5, 2.0]), len(table["task"]))
    np.savez(tmp_path / "t.npz", task=table["task"], load=table["load"], target=values)
    assert Table(tmp_path / "t.npz", **arguments).encoding.classes == ("0.5", "2")


def test_truth_values_of_an_npz(tmp_path):
    table = columns()
    truth = np.resize([True, False, False], len(table["task"]))
    np.savez(tmp_path / "t.npz", task=table["task"], flag=~truth, target=truth)
    tasks = Table(tmp_path / "t.npz", shots=2, queries=4, standardise=False)
    assert tasks.encoding.classes == ("False", "True")
    batch = tasks.sample(0, 0, 30)
    np.testing.assert_array_equal(batch.support_x[..., 0], 1 - batch.support_y)


# --- errors -------------------------------------------------------------------------------------------

HEADER = "task,x,target\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("\n , ,\n", "the file is empty"),
        (HEADER, "there are no rows under the header"),
        ("task,x,x,target\na,1,2,3\n", "two columns are called 'x'"),
        ("task, x,x ,target\na,1,2,3\n", "two columns are called 'x'"),
        (
            "\n,task,x,target\n0,a,1,3\n",
            "line 2: column 1 has no name in the header; name it, or write the table without it",
        ),
        (
            "task;x;target\na;1;3\n",
            "line 1: the header is one column, 'task;x;target'; separate cells by commas",
        ),
        (HEADER + "a,1,2\na,1\n", "line 3: 2 cells, where the header has 3"),
        (HEADER + "a,1,2\n\na,1,2,3\n", "line 4: 4 cells, where the header has 3"),
        (HEADER + 'a,"1,2\na,1,2\n', "line 3: unexpected end of data"),
        (HEADER + "a,1,2\nb,one,2\n", "line 3: column 'x' is 'one', not a number"),
        (HEADER + 'a,1,2\nb,"1,5",2\n', "line 3: column 'x' is '1,5', not a number"),
        (HEADER + "a,1_000,2\n", "line 2: column 'x' is '1_000', not a number"),
        (HEADER + "a,1,2\nb, ,2\n", "line 3: column 'x' is empty"),
        (HEADER + "a,1,2\nb,NaN,2\n", "line 3: column 'x' is nan, not a finite number"),
        (HEADER + "a,1,2\nb,-inf,2\n", "line 3: column 'x' is -inf, not a finite number"),
        (HEADER + "a,1e999,2\n", "line 2: column 'x' is inf, not a finite number"),
        (HEADER + "a,1,2\nb,1,nan\n", "line 3: column 'target' is nan, not a finite number"),
        (HEADER + "a,1,2\nb,1,\n", "line 3: column 'target' is empty"),
        (HEADER + "a,1,p\nb,1,\n", "line 3: column 'target' is empty"),
        (HEADER + "a,1,2\n,1,2\n", "line 3: column 'task' is empty"),
        (
            HEADER + "a,1,2\na,1,n/a\n",
            "line 3: target 'target' is 'n/a', but other cells are numbers; correct it, or say whether "
            "the target's kind is 'number' or 'class'",
        ),
        ("tsk,x,target\na,1,2\n", "unknown column 'task' (did you mean 'tsk'?); known: tsk, x, target"),
        ("task,x,y\na,1,2\n", "unknown column 'target'; known: task, x, y"),
        ("task,target\na,1\n", "there is no feature column"),
        (HEADER + "a,1,p\na,2,p\nb,3,p\nb,4,p\n", "target 'target' is 'p' in all training tasks"),
    ],
)
def test_errors_in_a_csv_say_where(tmp_path, text, message):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    expected = "^" + re.escape(f"{path}: {message}")
    with pytest.raises(ValueError, match=expected):
        Table(path, shots=1, queries=1, fractions=(1, 0, 0))


def test_an_error_after_a_cell_of_several_lines_has_the_right_line(tmp_path):
    path = tmp_path / "bad.csv"
    path.write_text(HEADER + '"a\nb\nc",1,2\na,one,2\n')
    with pytest.raises(ValueError, match="line 5: column 'x' is 'one'"):
        Table(path)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_csv_that_is_not_utf8(tmp_path, encoding):
    path = tmp_path / "bad.csv"
    path.write_bytes((HEADER + "a,1,2\nÜ,1,2\n").encode(encoding))
    line = 3 if encoding == "latin-1" else 1
    message = f"{path}: line {line}: the text is not UTF-8; save the file as UTF-8"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Table(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "nowhere.csv"}, "no such file or folder: nowhere.csv"),
        ({"path": "."}, ". is a folder, a CSV or NPZ file is expected"),
        ({"shots": 0}, "shots must be a whole number of at least 1, got 0"),
        ({"queries": 2.0}, "queries must be a whole number of at least 1, got 2.0"),
        ({"split_seed": -1}, "split_seed must be a whole number of at least 0, got -1"),
        ({"kind": "numbers"}, "unknown kind 'numbers' (did you mean 'number'?)"),
        ({"fractions": (0.5, 0.5)}, "fractions must be the shares"),
        ({"fractions": (0, 0, 1)}, "a table without training tasks needs an encoding, got fractions"),
        ({"features": "load"}, "features must be a sequence of columns, got 'load'"),
        ({"features": ["lod"]}, "PATH: unknown column 'lod' (did you mean 'load'?)"),
        ({"features": ["load", "id", "load"]}, "PATH: feature 'load' is given twice"),
        (
            {"features": ["price"]},
            "PATH: 'price' is the task or the target and cannot be a feature",
        ),
        ({"features": ["task"]}, "PATH: 'task' is the task or the target and cannot be a feature"),
        ({"features": []}, "PATH: there is no feature column"),
        ({"features": ["level"]}, "PATH: line 2: column 'level' is "),
        ({"target": "level", "kind": "number"}, "PATH: line 2: column 'level' is "),
    ],
)
def test_arguments_are_checked(csv_path, arguments, message):
    message = message.replace("PATH", str(csv_path))
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        Table(**{"path": csv_path, **PRICE, **arguments})


def test_draws_are_checked(prices):
    with pytest.raises(ValueError, match=r"unknown split 'tests' \(did you mean 'test'"):
        prices.sample(0, 0, 1, split="tests")
    with pytest.raises(ValueError, match=r"unknown split 'tests' \(did you mean 'test'"):
        prices.task_names("tests")
    with pytest.raises(ValueError, match="seed must be a whole number"):
        prices.sample(-1, 0, 1)


TASK, NUMBERS = np.array(["a", "a", "b"]), np.arange(3.0)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "the file holds no arrays"),
        ({"x": np.array([{}, 1, 2])}, "array 'x' cannot be read: arrays of objects are not read"),
        ({"x": NUMBERS + 1j}, "array 'x' must hold numbers or strings, got dtype complex128"),
        ({"x": np.array([b"a", b"b", b"c"])}, "array 'x' must hold numbers or strings, got dtype |S1"),
        ({"x": np.zeros((3, 2, 2))}, "array 'x' must be (rows,) or (rows, columns), got (3, 2, 2)"),
        ({"x": np.array(1.0)}, "array 'x' must be (rows,) or (rows, columns), got ()"),
        ({"x": np.zeros(0)}, "array 'x' must be (rows,) or (rows, columns), got (0,)"),
        ({"x": np.zeros(4)}, "arrays must have as many rows, got task: 3, target: 3, x: 4"),
        ({"x": np.array([1, np.nan, 2])}, "row 1: column 'x' is nan, not a finite number"),
        ({"x": np.array([[1, 2], [1, 2], [1, np.inf]])}, "row 2: column 'x[1]' is inf, not a finite"),
        ({"x": np.array(["1", "2", " "])}, "row 2: column 'x' is empty"),
        ({"x": np.array(["1", "2", "z"])}, "row 2: column 'x' is 'z', not a number"),
        ({"x": np.zeros((3, 2)), "x[1]": NUMBERS}, "two columns are called 'x[1]'"),
    ],
)
def test_errors_in_an_npz_say_where(tmp_path, arrays, message):
    path = tmp_path / "bad.npz"
    np.savez(path, **({"task": TASK, "target": NUMBERS, **arrays} if arrays else {}))
    with pytest.raises(ValueError, match="^" + re.escape(f"{path}: {message}")):
        Table(path, shots=1, queries=1, fractions=(1, 0, 0))


def test_files_that_are_not_npz(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "sheet.xlsx", "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>")
    np.savez(tmp_path / "cut.npz", task=TASK, target=NUMBERS)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:-30])
    np.save(tmp_path / "one.npy", NUMBERS)
    (tmp_path / "text.npz").write_text(HEADER)
    for name, message in {
        "sheet.xlsx": "'xl/workbook.xml' is not an array: a CSV or NPZ file is expected",
        "cut.npz": "not an NPZ file: ",
        "one.npy": "this is a single array; an NPZ file with a named array a column is expected",
        "text.npz": "not an NPZ file: ",
    }.items():
        with pytest.raises(ValueError, match="^" + re.escape(f"{tmp_path / name}: {message}")):
            Table(tmp_path / name)


def test_a_damaged_array_is_named(tmp_path):
    np.savez(tmp_path / "t.npz", task=TASK, target=NUMBERS)
    data = bytearray((tmp_path / "t.npz").read_bytes())
    data[data.index(NUMBERS.tobytes()) + 10] ^= 1
    (tmp_path / "t.npz").write_bytes(data)
    with pytest.raises(ValueError, match=r"target\.npy in .*t\.npz cannot be unzipped: Bad CRC"):
        Table(tmp_path / "t.npz")


# --- classes ------------------------------------------------------------------------------------------


def test_a_class_that_is_in_no_training_task_is_named(tmp_path, levels):
    table = columns()
    task = levels.task_names("validation")[0]
    row = table["task"].index(task)
    table["level"][row] = "middle"
    table["level"][row + 1 + table["task"][row + 1 :].index(task)] = "lowest"
    path = write_csv(tmp_path / "t.csv", table)
    message = (
        f"{path}: line {row + 2}: class 'middle' of 'level' is in no training task; known: high, low"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        Table(path, **LEVEL)
    table = columns()
    table["level"][table["task"].index(levels.task_names("train")[0])] = "middle"
    tasks = Table(write_csv(path, table), **LEVEL)
    assert tasks.encoding.classes == ("high", "low", "middle")
    assert tasks.n_out == 3


# --- another table ------------------------------------------------------------------------------------


def test_on_keeps_the_encoding_and_makes_everything_test(tmp_path, prices, levels):
    path = write_csv(tmp_path / "new.csv", columns({"n1": 8, "n2": 7}, seed=5))
    for tasks in (prices, levels):
        new = tasks.on(path)
        assert new.encoding == tasks.encoding
        assert new.task_names("test") == ["n1", "n2"]
        assert new.task_names("train") == new.task_names("validation") == []
        assert (new.shots, new.queries, new.kind) == (2, 4, tasks.kind)
        assert new.checksum == hashlib.sha256(path.read_bytes()).hexdigest()
        table = columns({"n1": 8, "n2": 7}, seed=5)
        batch = new.sample(0, 0, 20, split="test")
        rows = ids(new, batch.query_x)
        loads = batch.query_x[..., 1] * tasks.encoding.std[1] + tasks.encoding.mean[1]
        np.testing.assert_allclose(loads, np.array(table["load"])[rows], rtol=1e-12)


def test_on_names_what_is_missing_or_new(tmp_path, prices, levels):
    table = columns({"n1": 8})
    table["level"][2] = "middle"
    path = write_csv(tmp_path / "new.csv", table)
    with pytest.raises(ValueError, match="line 4: class 'middle' of 'level' is in no training task"):
        levels.on(path)
    table["Load"] = table.pop("load")
    with pytest.raises(ValueError, match=r"unknown column 'load' \(did you mean 'Load'"):
        prices.on(write_csv(path, table))


def test_with_an_encoding_everything_else_must_agree(csv_path, prices, levels):
    sizes = {"shots": 2, "queries": 4}
    tasks = Table(csv_path, **sizes, encoding=levels.encoding)
    assert (tasks.features, tasks.target, tasks.kind) == (("id", "load"), "level", "class")
    assert_same_tasks(tasks, levels)
    assert_same_tasks(Table(csv_path, **LEVEL, kind="class", encoding=levels.encoding), levels)
    for arguments, message in (
        ({"features": ["load"]}, "features must be the encoding's, ('id', 'load'), got ('load',)"),
        ({"target": "price"}, "target must be the encoding's, 'level', got 'price'"),
        ({"kind": "number"}, "kind must be the encoding's, 'class', got 'number'"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            Table(csv_path, **sizes, **arguments, encoding=levels.encoding)
    # An encoding of numbers reads a number where the column looks like classes.
    with pytest.raises(ValueError, match=r"column 'level' is '(high|low)', not a number"):
        Table(csv_path, **sizes, encoding=Encoding(("id",), "level", (0.0,), (1.0,)))


# --- rows to adapt on ---------------------------------------------------------------------------------


def test_rows_are_read_with_an_encoding(tmp_path, prices, levels):
    path = tmp_path / "mine.csv"
    path.write_text("load,price,note,id,level\n40,31.5,hello,3,low\n60,28,,4,high\n")
    raw = np.array([[3, 40], [4, 60]])
    x, y = read_rows(path, prices.encoding)
    np.testing.assert_array_equal(x, prices.encoding.encode(raw))
    assert y.shape == (2, 1)
    np.testing.assert_allclose(prices.encoding.decode(y), [31.5, 28], rtol=1e-15)
    x, y = read_rows(path, levels.encoding)
    np.testing.assert_array_equal(x, levels.encoding.encode(raw))
    assert y.tolist() == [1, 0]
    assert y.dtype == np.int64
    path.write_text("id,load\n3,40\n4,60\n")
    x, y = read_rows(path, levels.encoding, with_target=False)
    np.testing.assert_array_equal(x, levels.encoding.encode(raw))
    assert y is None
    np.savez(tmp_path / "mine.npz", id=[3, 4], load=[40, 60])
    np.testing.assert_array_equal(read_rows(tmp_path / "mine.npz", levels.encoding, False)[0], x)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,load\n3,40\n", "unknown column 'level'; known: id, load"),
        ("id,laod,level\n3,40,low\n", "unknown column 'load' (did you mean 'laod'?)"),
        ("id,load,level\n3,40,low\n4,x,low\n", "line 3: column 'load' is 'x', not a number"),
        ("id,load,level\n3,40,low\n4,,low\n", "line 3: column 'load' is empty"),
        ("id,load,level\n3,40,low\n4,50,\n", "line 3: column 'level' is empty"),
        (
            "id,load,level\n3,40,low\n4,50,lo\n",
            "line 3: class 'lo' of 'level' is in no training task; known: high, low",
        ),
    ],
)
def test_errors_in_rows_say_where(tmp_path, levels, text, message):
    path = tmp_path / "mine.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match="^" + re.escape(f"{path}: {message}")):
        read_rows(path, levels.encoding)


# --- encoding -----------------------------------------------------------------------------------------

finite = st.floats(-1e6, 1e6)
positive = st.floats(1e-3, 1e3)


@given(
    st.lists(st.tuples(finite, positive), min_size=1, max_size=4),
    finite,
    positive,
    st.none() | st.lists(st.text(), min_size=2, max_size=4, unique=True),
)
def test_an_encoding_survives_json(moments, target_mean, target_std, classes):
    mean, std = zip(*moments, strict=True)
    names = tuple(f"f{i}" for i in range(len(mean)))
    encoding = Encoding(
        names, "y", mean, std, target_mean, target_std, None if classes is None else tuple(classes)
    )
    again = Encoding.from_dict(json.loads(json.dumps(encoding.to_dict())))
    assert again == encoding
    assert hash(again) == hash(encoding)


@given(st.lists(st.tuples(finite, positive), min_size=1, max_size=4), finite, positive, st.data())
def test_encoding_and_decoding_are_inverse(moments, target_mean, target_std, data):
    mean, std = zip(*moments, strict=True)
    encoding = Encoding(
        tuple(f"f{i}" for i in range(len(mean))), "y", mean, std, target_mean, target_std
    )
    x = np.array(data.draw(st.lists(finite, min_size=2 * len(mean), max_size=2 * len(mean))))
    x = x.reshape(2, 1, len(mean))
    encoded = encoding.encode(x)
    assert encoded.shape == x.shape
    # Subtracting the mean may cancel: errors are relative to the numbers themselves, up to 1e6.
    np.testing.assert_allclose(encoded * std + mean, x, rtol=0, atol=1e-9)
    y = x[..., 0]
    targets = encoding.encode_targets(y)
    assert targets.shape == (2, 1, 1)
    np.testing.assert_allclose(targets[..., 0] * target_std + target_mean, y, rtol=0, atol=1e-9)
    np.testing.assert_allclose(encoding.decode(targets), y, rtol=0, atol=1e-9)


CLASSES = Encoding(("a", "b"), "y", (0.0, 1.0), (1.0, 2.0), classes=("no", "maybe", "yes"))
NUMBER = Encoding(("a", "b"), "y", (0.0, 1.0), (1.0, 2.0), target_mean=10.0, target_std=3.0)


def test_classes_are_encoded_and_decoded():
    assert (CLASSES.kind, CLASSES.n_in, CLASSES.n_out) == ("class", 2, 3)
    y = [["yes", "no"], ["maybe", "yes"]]
    labels = CLASSES.encode_targets(y)
    assert labels.tolist() == [[2, 0], [1, 2]]
    assert labels.dtype == np.int64
    outputs = np.array([[[-5, 0, 1], [0, -1, -2]], [[0, 9, 8], [-3, -2, -1]]])
    assert CLASSES.decode(outputs).tolist() == y


def test_numbers_are_decoded():
    assert (NUMBER.kind, NUMBER.n_in, NUMBER.n_out) == ("number", 2, 1)
    assert NUMBER.decode([[0.0], [-1.0]]).tolist() == [10, 7]
    assert NUMBER.encode([2.0, 5.0]).tolist() == [2, 2]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: NUMBER.encode([1.0]), "x must have shape (..., 2), got (1,)"),
        (lambda: NUMBER.encode(1.0), "x must have shape (..., 2), got ()"),
        (lambda: NUMBER.encode([1.0, np.nan]), "x must be finite, but x[1] is nan"),
        (lambda: NUMBER.encode_targets([1.0, np.inf]), "y must be finite, but y[1] is inf"),
        (lambda: CLASSES.encode_targets(["ye"]), "unknown class 'ye' (did you mean 'yes'?)"),
        (lambda: NUMBER.decode([1.0, 2.0]), "outputs must have shape (..., 1), got (2,)"),
        (lambda: CLASSES.decode([[1.0, 2.0]]), "outputs must have shape (..., 3), got (1, 2)"),
        (lambda: CLASSES.decode(1.0), "outputs must have shape (..., 3), got ()"),
        (lambda: Encoding((), "y", (), ()), "features must be different columns, at least one, got ()"),
        (lambda: Encoding(("a", "a"), "y", (0, 0), (1, 1)), "features must be different columns"),
        (
            lambda: Encoding(("a",), "y", (0, 0), (1,)),
            "mean and std must have a number for each of 1 features, got 2 and 1",
        ),
        (lambda: Encoding(("a",), "y", (0,), (0,)), "std and target_std must be positive, got 0.0"),
        (
            lambda: Encoding(("a",), "y", (0,), (1,), target_std=-1.0),
            "std and target_std must be positive, got -1.0",
        ),
        (lambda: Encoding(("a",), "y", (np.nan,), (1,)), "mean and target_mean must be finite"),
        (lambda: Encoding(("a",), "y", (0,), (np.inf,)), "std and target_std must be finite"),
        (
            lambda: Encoding(("a",), "y", (0,), (1,), classes=("one",)),
            "classes must be at least two different names, got ('one',)",
        ),
        (
            lambda: Encoding(("a",), "y", (0,), (1,), classes=("one", "one")),
            "classes must be at least two different names, got ('one', 'one')",
        ),
        (
            lambda: Encoding.from_dict({**NUMBER.to_dict(), "mena": 0}),
            "unknown field of an encoding 'mena' (did you mean 'mean'?)",
        ),
        (
            lambda: Encoding.from_dict({k: v for k, v in NUMBER.to_dict().items() if k != "std"}),
            "an encoding has no 'std'",
        ),
    ],
)
def test_encodings_are_checked(call, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        call()


def test_a_pickled_distribution_draws_the_same_tasks(prices):
    assert_same_tasks(pickle.loads(pickle.dumps(prices)), prices)


def test_repr_shows_the_settings_only(prices):
    assert repr(prices).startswith("Table(path=")
    assert repr(prices).endswith("fractions=(0.7, 0.15, 0.15))")
