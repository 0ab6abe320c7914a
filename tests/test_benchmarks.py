"""The benchmark: its cases, its judgement of gradients, and one run of it. Nothing about speed."""

import itertools
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import npmeta as nm
from benchmarks import limit, memory, pictures
from benchmarks.cases import CASES, QUICK, Case, make_problem
from benchmarks.curves import CURVES
from benchmarks.peers import EVERYBODY, OURS, PEERS, REFERENCE, Peer, Prepared
from benchmarks.report import format_header, format_row, format_training, problems
from benchmarks.runner import Plan, best, measure
from benchmarks.training import TRAINERS, Chunks, train
from npmeta.bilevel.plan import dense_cost, factored_cost

ROOT = Path(__file__).resolve().parents[1]

# As published: network, T, K, Q, S, loss.
PUBLISHED = {
    "sine-1": ("1-40-40-1", 25, 10, 10, 1, "mse"),
    "sine-5": ("1-40-40-1", 25, 10, 10, 5, "mse"),
    "sine-1000": ("1-40-40-1", 1000, 10, 10, 1, "mse"),
    "omniglot-5w1s": ("784-256-128-64-64-5", 32, 5, 5, 5, "cross_entropy"),
    "omniglot-5w1s-q75": ("784-256-128-64-64-5", 32, 5, 75, 5, "cross_entropy"),
    "omniglot-20w1s": ("784-256-128-64-64-20", 16, 20, 20, 5, "cross_entropy"),
    "wide": ("784-1024-1024-5", 32, 5, 15, 5, "cross_entropy"),
}

SHORT = Plan(rounds=2, turn=0.0, row=60.0)


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


# --- cases ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_case_has_the_published_sizes(name):
    case = CASES[name]
    network = "-".join(map(str, case.widths))
    sizes = case.tasks, case.support_rows, case.query_rows, case.steps
    assert (network, *sizes, case.loss) == PUBLISHED[name]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_arrays_are_those_of_the_case(name, dtype):
    case, (_, model, theta, tasks) = CASES[name], make_problem(CASES[name], dtype)
    T, K, Q = case.tasks, case.support_rows, case.query_rows
    n_in, n_out = case.widths[0], case.widths[-1]
    assert model.activations[0].name == "relu"
    assert theta.dtype == tasks.support_x.dtype == tasks.query_x.dtype == dtype
    assert (tasks.support_x.shape, tasks.query_x.shape) == ((T, K, n_in), (T, Q, n_in))
    for y, rows in ((tasks.support_y, K), (tasks.query_y, Q)):
        if case.loss == "mse":
            assert (y.shape, y.dtype) == ((T, rows, n_out), dtype)
        else:
            assert y.dtype.kind == "i"
            assert (np.sort(y, axis=1) == np.repeat(np.arange(n_out), rows // n_out)).all()


def test_images_are_sparse_drawings_in_the_unit_interval():
    tasks = make_problem(CASES["omniglot-5w1s-q75"], "float64").tasks
    for x in (tasks.support_x, tasks.query_x):
        assert x.min() == 0.0
        assert x.max() <= 1.0
        assert 0.05 < (x > 0).mean() < 0.2
        # A blank image has pre-activations of exactly 0, where libraries may differ in the slope.
        assert (x > 0).any(-1).all()
    # An image is nearer to the one of its class than to those of the others.
    overlap = np.einsum("tqi,tki->tqk", tasks.query_x, tasks.support_x)
    assert (overlap.argmax(-1) == tasks.query_y).all()


@pytest.mark.parametrize("name", QUICK)
def test_a_seed_names_its_arrays(name):
    def arrays(dtype, seed):
        _, _, theta, tasks = make_problem(CASES[name], dtype, seed)
        return [theta, tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y]

    first, again, other = arrays("float64", 0), arrays("float64", 0), arrays("float64", 1)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (first[0] != other[0]).any()
    assert (first[1] != other[1]).any()
    # float32 is the same problem, rounded.
    for a, b in zip(first, arrays("float32", 0), strict=True):
        np.testing.assert_array_equal(a.astype(b.dtype), b)


# --- the judgement of gradients -------------------------------------------------------------------


def peer(name="peer", loss=lambda loss: loss, grad=lambda grad: grad, **options) -> Peer:
    """npmeta's gradient under another name, read with a mistake."""

    def prepare(problem) -> Prepared:
        run, read, *_ = REFERENCE.prepare(problem)

        def misread(out):
            its_loss, its_grad = read(out)
            return loss(its_loss), grad(its_grad)

        return Prepared(run, misread)

    return Peer(name, options.pop("package", "npmeta"), prepare, **options)


def row_of(*peers: Peer, dtype="float64", plan=SHORT, cores=1, name="sine-1", rate=1e9):
    return measure(make_problem(CASES[name], dtype), peers, plan, cores, rate)


def first_order(problem) -> Prepared:
    case = problem.case
    maml = nm.MAML(problem.model, case.loss, case.inner_lr, case.steps, first_order=True)
    return Prepared(
        lambda: maml.meta_gradient(problem.theta, problem.tasks), lambda out: (out.loss, out.grad)
    )


def instant(problem) -> Prepared:
    """Wrong, and faster than anybody."""
    return Prepared(lambda: None, lambda _: (1.0, np.zeros_like(problem.theta)))


WRONG = {
    "a little larger": peer(grad=lambda grad: grad * (1 + 1e-9)),
    "one component": peer(grad=lambda grad: grad + 1e-6 * np.abs(grad).max() * np.eye(len(grad))[7]),
    "not a number": peer(grad=lambda grad: grad * np.nan),
    "infinite": peer(grad=lambda grad: np.full_like(grad, np.inf)),
    "another order": peer(grad=lambda grad: grad[::-1]),
    "a shape that broadcasts": peer(grad=lambda grad: grad[:, None]),
    "too short": peer(grad=lambda grad: grad[:-1]),
    "another dtype": peer(grad=lambda grad: grad.astype(np.float32)),
    "only the loss": peer(loss=lambda loss: loss * (1 + 1e-9)),
    "a loss that is no number": peer(loss=lambda loss: float("nan")),
    "first order": Peer("peer", "npmeta", first_order),
    "instant": Peer("peer", "npmeta", instant),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_wrong_gradient_gets_no_time(mistake):
    row = row_of(WRONG[mistake], peer("right"))
    entry = row["entries"]["peer"]
    assert entry["status"] == "disagrees"
    assert entry["samples"] == []
    assert entry["median"] is None
    assert row["time"]["peer"] == "right"
    shown = {"setting": "one-core", **row}
    assert "DISAGREES" in format_row(shown, ["peer", "right"])
    (line,) = problems(shown)
    assert "sine-1 float64 one core: peer disagrees" in line
    json.dumps(row, allow_nan=False)


def test_float32_allows_for_rounding_and_for_little_more():
    assert row_of(peer(grad=lambda g: g * (1 + 2**-10)), dtype="float32")["time"]["peer"] == "peer"
    for wrong in (peer(grad=lambda g: g * (1 + 2**-6)), Peer("peer", "npmeta", first_order)):
        assert row_of(wrong, dtype="float32")["entries"]["peer"]["status"] == "disagrees"


def test_a_right_gradient_gets_a_time_and_the_ratio_is_of_medians():
    row = row_of(peer("a"), peer("b"), plan=Plan(rounds=3, turn=0.005, row=60.0))
    medians = {}
    for name, entry in row["entries"].items():
        assert entry["status"] == "ok"
        assert entry["gradient_difference"] == entry["loss_difference"] == 0.0
        assert len(entry["samples"]) == 3
        samples = [sample for turn in entry["samples"] for sample in turn]
        assert min(samples) > 0
        medians[name] = statistics.median(samples)
        assert entry["median"] == medians[name]
    ours = medians.pop("npmeta")
    fastest = min(medians, key=medians.get)
    assert row["time"] == {"peer": fastest, "ratio": medians[fastest] / ours}
    assert problems({"setting": "one-core", **row}) == []


def test_a_peer_that_raises_fails_alone():
    def prepare(problem):
        raise RuntimeError("no such device\nand a long story")

    row = row_of(Peer("broken", "npmeta", prepare), peer("right"))
    assert row["entries"]["broken"]["status"] == "failed"
    assert row["entries"]["broken"]["note"] == "RuntimeError: no such device"
    assert row["time"]["peer"] == "right"
    assert "FAILED" in format_row({"setting": "all-cores", **row}, ["broken", "right"])


def test_an_absent_peer_is_not_an_error():
    row = row_of(peer("absent", package="no_such_package_here"))
    assert row["entries"]["absent"]["status"] == "not installed"
    assert row["time"] is None
    assert problems({"setting": "one-core", **row}) == []


def test_a_peer_uses_one_thread_or_all_and_is_compared_with_one():
    asked_for = []
    threaded = peer("threaded", set_threads=asked_for.append)
    entry = row_of(threaded, cores=3)["entries"]["threaded"]
    assert asked_for[:3] == [1, 1, 3]
    assert entry["threads"] in (1, 3)
    assert set(asked_for[3:]) == {entry["threads"]}


def test_a_long_row_ends_after_its_first_round():
    row = row_of(peer(), plan=Plan(rounds=50, turn=0.0, row=0.0))
    assert [len(entry["samples"]) for entry in row["entries"].values()] == [1, 1]


def test_columns_are_aligned():
    columns = ["right", "torch-batched"]
    row = row_of(peer("right"), Peer("torch-batched", "npmeta", instant))
    for name, mebibytes in (("npmeta", 3), ("right", 1500)):
        row["entries"][name]["memory"] = {"extra": mebibytes * 2**20, "before": 0, "planned": None}
    header = format_header(columns)
    time, memory = format_row({"setting": "one-core", **row}, columns).splitlines()
    assert len(header) == len(time) == len(memory)
    for column in columns:
        for line in (time, memory):
            assert line[header.index(column) + len(column)] == " "
        assert time[header.index(column) + len(column) - 1] != " "
    assert "1500.0" in memory


def test_shards_count_where_they_are_and_forms_never_compete():
    numbers = {"npmeta": 2.0, "npmeta-dense": 0.1, "npmeta-sharded": 1.0, "a": 3.0, "b": None}
    assert best(numbers) == {"peer": "a", "ratio": 1.5}
    assert best(numbers, "npmeta-sharded") == {"peer": "a", "ratio": 3.0}
    assert best({"npmeta": 2.0, "npmeta-dense": 0.1}) is None
    assert best({"npmeta": None, "a": 1.0}) is None
    assert row_of(peer())["ours"] == "npmeta"
    assert row_of(peer(), peer("npmeta-sharded"))["ours"] == "npmeta-sharded"


# --- memory ---------------------------------------------------------------------------------------

needs_proc = pytest.mark.skipif(not memory.measurable(), reason="the system does not tell")


@needs_proc
def test_extra_memory_is_that_of_the_weights_where_they_are_dense():
    case = Case("dense", (300, 300, 5), 40, 5, 5, 1, "cross_entropy", 0.01)
    weights = 8 * 40 * 300 * 300
    # One matrix a task for the weights, one for their gradient, and at most a few in between.
    measured = memory.extra_memory(OURS["npmeta-dense"], case, "float64", None)
    assert 2 * weights < measured["extra"] < 8 * weights
    assert measured["before"] > 0
    assert measured["planned"] is None


def test_memory_of_a_process_that_fails_is_unknown():
    broken = Peer("no such peer", "npmeta", REFERENCE.prepare)
    assert memory.extra_memory(broken, CASES["sine-1"], "float32", None) is None


# --- the limit ------------------------------------------------------------------------------------


def counted(case: Case) -> list[tuple[int, int, float, float]]:
    """Of each layer: operations dense and factored, counted here and in the library's estimate."""
    sizes = {"T": case.tasks, "K": case.support_rows, "Q": case.query_rows, "S": case.steps}
    layers = []
    for l, (n_in, n_out) in enumerate(itertools.pairwise(case.widths)):
        costs = [
            cost(n_in, n_out, **sizes, itemsize=8, first=l == 0, second_order=True).flops
            for cost in (dense_cost, factored_cost)
        ]
        here = [form(n_in, n_out, case, first=l == 0) for form in (limit.dense, limit.factored)]
        layers.append((*here, *costs))
    return layers


@pytest.mark.parametrize("name", CASES)
def test_fewest_operations_beside_the_librarys_estimate(name):
    layers = counted(CASES[name])
    for dense, factored, estimated_dense, estimated_factored in layers:
        assert dense == estimated_dense
        # The estimate has some Gram matrices twice.
        assert 0.5 * estimated_factored < factored <= estimated_factored
    assert limit.fewest_flops(CASES[name]) == sum(min(layer[:2]) for layer in layers)


def test_operations_of_the_smallest_case_counted_by_hand():
    # All sizes 1, two layers: every product is one multiplication and one addition.
    case = Case("smallest", (1, 1, 1), 1, 1, 1, 1, "mse", 0.01)
    # Forward and gradient of support and query; h V and its gradient.
    assert limit.dense(1, 1, case, first=True) == 2 * (2 + 2 + 2)
    # Forward, backward, gradient of both; the differential of each, two parts.
    assert limit.dense(1, 1, case, first=False) == 2 * (3 + 3 + 6)
    # x W and the mean, of both; Gram matrices x xᵀ of both, then times δ of support and of query.
    assert limit.factored(1, 1, case, first=True) == 2 * (2 + 2 + 2 + 2)
    # With W: four of the support's pass and differential, two of the query's, three rows of the mean.
    # Thin, on both sides: Gram matrix of query and support; times δ and, in the direction, times δ^Q.
    assert limit.factored(1, 1, case, first=False) == 2 * (4 + 2 + 3 + 2 * (1 + 1 + 1))


def test_rate_of_a_product():
    assert limit.matrix_product_rate("float32", n=8, seconds=0.0) > 0


# --- training -------------------------------------------------------------------------------------


def test_everybody_trains_and_learns():
    row = train(Chunks(2, 2), [])
    assert list(row["entries"]) == ["npmeta"]
    assert len(row["entries"]["npmeta"]["samples"]) == 2
    assert row["loss"]["npmeta"] < row["loss"]["before"]
    assert row["time"] is None
    shown = {"setting": "one-core", **row}
    assert problems(shown) == []
    assert "npmeta" in format_training(shown, 70_000)


def test_training_that_learns_nothing_gets_no_time(monkeypatch):
    def idle(problem, n):
        return Prepared(lambda: (0.0, 100 * problem.theta), lambda out: out)

    lazy = TRAINERS["npmeta"]._replace(gradient=peer("lazy"), start=idle)
    monkeypatch.setitem(TRAINERS, "lazy", lazy)
    row = train(Chunks(1, 1), ["lazy"])
    assert row["entries"]["lazy"]["status"] == "disagrees"
    assert row["entries"]["lazy"]["median"] is None
    (line,) = problems({"setting": "one-core", **row})
    assert "training one core: lazy disagrees: loss" in line


@pytest.mark.parametrize("name", TRAINERS)
def test_every_trainer_begins_where_the_others_do(name):
    trainer = TRAINERS[name]
    if not trainer.gradient.installed:
        pytest.skip("not installed")
    problem = make_problem(CASES["sine-1"], "float32")
    prepared = trainer.start(problem, 1)
    _, theta = prepared.read(prepared.run())
    # Adam's first step has the size of the learning rate in every component that has a gradient.
    moved = np.abs(theta - problem.theta)
    assert theta.dtype == np.float32
    # 1e-3 and rounding of theta, which is below 4.
    assert moved.max() < 1e-3 + 1e-6
    assert np.median(moved) > 0.9e-3


# --- curves and pictures --------------------------------------------------------------------------


def test_curves_change_one_size():
    for name, curve in CURVES.items():
        values = [point.value for point in curve.points]
        assert values == sorted(set(values))
        sizes = [
            {"tasks": p.case.tasks, "steps": p.case.steps, "width": p.case.widths[1]}.get(name)
            for p in curve.points
        ]
        assert name == "cores" or sizes == values


def test_pictures_of_a_table_and_of_curves(tmp_path):
    pytest.importorskip("matplotlib")
    rows = []
    for value, seconds in ((1, 0.5), (2, 2.0)):
        row = {"setting": "one-core", "curve": "steps", "value": value, **row_of(peer("jax"))}
        for entry in row["entries"].values():
            entry["median"] = seconds
        rows.append(row)
    (ax,) = pictures.curves(rows).axes
    drawn = {line.get_label(): [float(y) for y in line.get_ydata()] for line in ax.lines}
    assert drawn.pop("in proportion") == [500.0, 1000.0]
    assert drawn == {"npmeta": [500.0, 2000.0], "jax": [500.0, 2000.0]}
    assert ax.get_xlabel() == CURVES["steps"].label
    plain = [{**row, "time": {"peer": "jax", "ratio": 4.0}} for row in rows]
    figure = pictures.table(plain)
    (ax,) = figure.axes
    assert [bar.get_x() + bar.get_width() for bar in ax.patches] == [4.0, 4.0]
    pictures.draw({"rows": rows, "training": []}, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 0
    with pytest.raises(ValueError, match="no rows"):
        pictures.draw({"rows": [], "training": []}, tmp_path / "nothing.png")


# --- the command ----------------------------------------------------------------------------------


def test_list_names_every_case_peer_and_curve():
    done = run("--list")
    assert done.returncode == 0, done.stderr
    for name in (*CASES, *PEERS, *CURVES):
        assert f"  {name} " in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [("--case", "sine-2"), ("--peer", "abacus"), ("--repeats", "0"), ("--curves", "depth")],
)
def test_the_command_line_knows_its_words(arguments):
    done = run(*arguments)
    assert done.returncode == 2
    assert arguments[0] in done.stderr


def test_a_file_that_cannot_be_written_is_heard_of_first(tmp_path):
    done = run("--quick", "--case", "sine-1", "--json", str(tmp_path / "no" / "such.json"))
    assert done.returncode == 1
    assert done.stdout == ""


def test_a_quick_run_compares_gradients_and_keeps_every_sample(tmp_path):
    file = tmp_path / "quick.json"
    arguments = ["--quick", "--case", "sine-1", "--repeats", "2", "--json", str(file)]
    done = run(*arguments, "--dtype", "float64", "--no-memory")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(file.read_text(encoding="utf-8"))

    assert report["format"] == "npmeta benchmark 2"
    assert report["machine"]["cpu"]
    assert report["machine"]["cores"] >= 1
    assert report["versions"]["numpy"] == np.__version__
    assert report["plan"]["rounds"] == 2

    # One core means one core, in force before any library was loaded.
    one, every = report["settings"]["one-core"], report["settings"]["all-cores"]
    assert one["variables"]["OPENBLAS_NUM_THREADS"] == "1"
    assert "OPENBLAS_NUM_THREADS" not in every["variables"]
    if hasattr(os, "sched_setaffinity"):
        assert len(one["cores"]) == 1
        assert one["cores"][0] in every["cores"]
    assert len(every["cores"]) == report["machine"]["cores"]

    expected = [("sine-1", "float64", setting) for setting in ("one-core", "all-cores")]
    assert [(row["case"]["name"], row["dtype"], row["setting"]) for row in report["rows"]] == expected
    for row in report["rows"]:
        assert row["tolerance"] <= 1e-10
        one_core = row["setting"] == "one-core"
        ours = [name for name, form in OURS.items() if not (form.in_workers and one_core)]
        asked_for = [name for name, peer in PEERS.items() if peer.by_default]
        assert list(row["entries"]) == [*ours, *asked_for]
        assert row["limit"] > 0
        for name, entry in row["entries"].items():
            if not EVERYBODY[name].installed:
                assert entry["status"] == "not installed"
                continue
            assert entry["status"] == "ok", entry["note"]
            assert 0 <= entry["gradient_difference"] <= row["tolerance"]
            assert 0 <= entry["loss_difference"] <= row["tolerance"]
            assert 1 <= len(entry["samples"]) <= 2
            assert all(sample > 0 for turn in entry["samples"] for sample in turn)
            assert entry["median"] > 0

    lines = done.stdout.splitlines()
    assert sum(line.startswith("sine-1 ") for line in lines) == 2
