"""Shards of a batch: the same bits from anybody who computes them, whoever dies meanwhile."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import active_children, get_context
from pathlib import Path

import numpy as np
import pytest

import npmeta as nm
from npmeta._support import blas as _blas
from npmeta.cli.main import main
from npmeta.cli.runs import Run
from npmeta.training import parallel, runners, shared_memory
from npmeta.training import pool as crew
from npmeta.training.parallel import Deferred, Sharded, default_shard_size
from tests.shards import Deadly, Means, Picky, Slow, digest, numbered

ROOT = Path(nm.__file__).parent.parent
WAVES = nm.tasks.Sinusoid(shots=4, queries=6)
MAML = nm.MAML(nm.MLP([1, 12, 1]), inner_lr=0.05, inner_steps=2, learn_inner_lr=True)
PARAMS = MAML.init(np.random.default_rng(0), np.float32)
SIZES = [1, 4, 7, 23, 50]  # of 23 tasks: single ones, ragged, one shard, and more than there are


@pytest.fixture(scope="module")
def pools():
    """Everybody who can compute shards, by name; started once."""
    with (
        ThreadPoolExecutor(3) as threads,
        ProcessPoolExecutor(2, mp_context=get_context("spawn")) as processes,
    ):
        yield {
            "workers-2": {"workers": 2},
            "workers-3": {"workers": 3},
            "threads": {"executor": threads},
            "processes": {"executor": processes},
        }


def workers():
    return [child for child in active_children() if child.name == "npmeta"]


@pytest.fixture
def no_worker_is_left():
    yield
    assert workers() == []


POOLS = ["workers-2", "workers-3", "threads", "processes"]

pytestmark = pytest.mark.usefixtures("no_worker_is_left")


# --- what is computed -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_the_sum_is_that_of_the_terms_in_order(size):
    batch = WAVES.sample(seed=0, iteration=3, n_tasks=23)
    shards = [
        WAVES.sample(seed=0, iteration=3, n_tasks=min(size, 23 - start), start=start)
        for start in range(0, 23, size)
    ]
    outs = [MAML.meta_gradient(PARAMS, shard) for shard in shards]
    found = Sharded(MAML, size).meta_gradient(PARAMS, Deferred(WAVES, 0, 3, 23))
    for name in PARAMS:
        total = np.zeros_like(PARAMS[name])
        for out, shard in zip(outs, shards, strict=True):
            total += len(shard) / 23 * out.grads[name]
        np.testing.assert_array_equal(found.grads[name], total)
        assert found.grads[name].dtype == np.float32
    assert found.loss == sum(len(s) / 23 * out.loss for out, s in zip(outs, shards, strict=True))
    assert found.hessian == "exact"
    # The same as in one batch, but for the order of sums: some roundings of float32.
    whole = MAML.meta_gradient(PARAMS, batch)
    np.testing.assert_allclose(found.task_loss, whole.task_loss, rtol=1e-5)
    for name in PARAMS:
        scale = np.abs(whole.grads[name]).max()
        np.testing.assert_allclose(found.grads[name], whole.grads[name], atol=1e-5 * scale)


def test_anybody_gives_the_same_bits(pools):
    batch = WAVES.sample(seed=0, iteration=3, n_tasks=23)
    deferred = Deferred(WAVES, 0, 3, 23)
    alone = {size: digest(Sharded(MAML, size).meta_gradient(PARAMS, deferred)) for size in SIZES}
    scores = nm.evaluate(Sharded(MAML), PARAMS, WAVES, n_tasks=120, steps=3).loss.tobytes()
    assert len({loss for loss, *_ in alone.values()}) > 1  # there is something to agree on
    for name in POOLS:
        with Sharded(MAML, **pools[name]) as sharded:
            for size in SIZES:
                sharded.shard_size = size
                assert digest(sharded.meta_gradient(PARAMS, deferred)) == alone[size], (name, size)
                assert digest(sharded.meta_gradient(PARAMS, batch)) == alone[size], (name, size)
            found = nm.evaluate(sharded, PARAMS, WAVES, n_tasks=120, steps=3)
            assert found.loss.shape == (120, 4)
            assert found.loss.tobytes() == scores


def test_what_is_said_of_each_task_comes_along(pools):
    """Implicit MAML's report of its solves: that of the shards, one after another."""
    imaml = nm.algorithms.IMAML(nm.MLP([1, 5, 1], "tanh"))
    params, deferred = imaml.init(np.random.default_rng(0)), Deferred(WAVES, 0, 3, 11)
    alone = Sharded(imaml, 4).meta_gradient(params, deferred)
    assert list(alone.by_task) == ["inner_steps", "inner_residual", "solve_steps", "solve_residual"]
    shards = [
        imaml.meta_gradient(params, WAVES.sample(0, 3, min(4, 11 - start), start=start))
        for start in (0, 4, 8)
    ]
    for name, values in alone.by_task.items():
        np.testing.assert_array_equal(values, np.concatenate([getattr(s, name) for s in shards]))
    for name in POOLS:
        with Sharded(imaml, 4, **pools[name]) as sharded:
            assert digest(sharded.meta_gradient(params, deferred)) == digest(alone), name


def test_metrics_have_the_report(tmp_path, monkeypatch):
    monkeypatch.setattr("npmeta.cli.commands.train.draw", lambda *_: [])
    quick = ["--iterations", "4", "--log-every", "2", "--meta-batch", "4", "--shard-size", "2"]
    quick += ["--hidden", "4", "--eval-tasks", "2", "--validation-tasks", "2", "--inner-steps", "3"]
    assert main(["train", "sinusoid", "--algorithm", "imaml", *quick, "--out", f"{tmp_path}/run"]) == 0
    run = Run(tmp_path / "run")
    rows, imaml = run.metrics(), run.config.algorithm(1, 1)
    params = imaml.init(np.random.default_rng(run.config["seed"]))
    with Sharded(imaml, 2) as sharded:
        steps = list(nm.meta_train(sharded, params, run.config.tasks(), iterations=4, meta_batch=4))
    assert [row["iteration"] for row in rows] == [2, 4]
    for row in rows:
        assert row["inner_steps"] == 3
        assert row["inner_residual"] > 1e-10  # three steps are too few
        report = steps[int(row["iteration"]) - 1].report
        assert {name: row[name] for name in report} == report
    maml = next(nm.meta_train(MAML, PARAMS, WAVES, iterations=1, meta_batch=2))
    assert maml.report == {}


def test_evaluation_is_that_without_shards():
    plain = nm.evaluate(MAML, PARAMS, WAVES, n_tasks=120, split="validation", seed=5)
    found = nm.evaluate(Sharded(MAML), PARAMS, WAVES, n_tasks=120, split="validation", seed=5)
    np.testing.assert_array_equal(found.loss, plain.loss)


def test_training_is_the_same_with_any_number_of_workers():
    def last(workers):
        with Sharded(MAML, 4, workers=workers) as sharded:
            return list(nm.meta_train(sharded, PARAMS, WAVES, iterations=5, meta_batch=10))[-1]

    alone, shared = last(1), last(3)
    assert alone.loss == shared.loss
    for name, array in alone.params.items():
        np.testing.assert_array_equal(shared.params[name], array)


def test_an_algorithm_of_any_kind(pools):
    """Other names, shapes and dtypes than the parameters', so gradients do not go through slots."""
    params = {"scale": np.array(2.0), "theta": np.ones(3)}
    batch = numbered(11, n_in=2)
    alone = Sharded(Means(), 4).meta_gradient(params, batch)
    assert alone.grads["theta"].dtype == np.float32
    assert alone.grads["scale"].shape == ()
    np.testing.assert_allclose(alone.loss, batch.query_x.mean(), rtol=1e-14)
    for name in POOLS:
        with Sharded(Means(), 4, **pools[name]) as sharded:
            assert digest(sharded.meta_gradient(params, batch)) == digest(alone), name
            np.testing.assert_array_equal(
                sharded.evaluate(params, batch).loss, Means().evaluate(params, batch).loss
            )


def test_pipes_do_where_there_is_no_shared_memory(monkeypatch):
    batch = WAVES.sample(seed=0, iteration=3, n_tasks=23)
    expected = digest(Sharded(MAML, 4).meta_gradient(PARAMS, batch))
    monkeypatch.setattr(shared_memory.Segment, "new", lambda size: None)
    with Sharded(MAML, 4, workers=2) as sharded:
        assert digest(sharded.meta_gradient(PARAMS, batch)) == expected


def test_what_stays_the_same_goes_through_shared_memory_once(monkeypatch):
    made = []

    def recorded(size):
        made.append(size)
        return new(size)

    new = shared_memory.Segment.new
    monkeypatch.setattr(shared_memory.Segment, "new", recorded)
    batch, other = numbered(23, n_in=1), numbered(22, n_in=1)
    data = sum(array.nbytes for array in parallel._sets(batch))
    with Sharded(MAML, 4, workers=2) as sharded:
        outs = [sharded.meta_gradient(PARAMS, batch) for _ in range(3)]
        n_exchanged = 7 * shared_memory.Exchange.size(
            shared_memory.layout_of(PARAMS), 0
        )  # parameters and six slots
        assert made[1:] == [n_exchanged]
        assert data <= made[0] < data + 4 * shared_memory.ALIGNMENT
        sharded.meta_gradient(PARAMS, other)
        assert len(made) == 3  # other data, in as many shards
    assert len({digest(out)[0] for out in outs}) == 1


def test_the_default_size_depends_on_the_sizes_alone():
    assert default_shard_size(25, 1_761) == 25  # sine waves: one shard
    assert default_shard_size(32, 246_597) == 8  # Omniglot: four
    assert default_shard_size(1000, 1_761) == 77
    for n_tasks in range(1, 100):
        size = default_shard_size(n_tasks, 10**6)
        assert min(n_tasks, 8) <= size <= 15
    sharded = Sharded(MAML)
    batch = WAVES.sample(0, 0, 9)
    assert digest(sharded.meta_gradient(PARAMS, batch)) == digest(
        Sharded(MAML, 9).meta_gradient(PARAMS, batch)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard_size": 0}, "shard_size must be a whole number of at least 1, got 0"),
        ({"workers": 0}, "workers must be a whole number of at least 1, got 0"),
        ({"workers": 1.5}, "workers must be a whole number"),
        ({"workers": None}, "workers must be a whole number of at least 1, got None"),
        ({"shard_size": "4"}, "shard_size must be a whole number of at least 1, got '4'"),
        ({"shard_size": float("nan")}, "shard_size must be a whole number of at least 1, got nan"),
        ({"workers": 2, "executor": ThreadPoolExecutor(1)}, "pass either workers or executor"),
    ],
)
def test_arguments_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        Sharded(MAML, **options)


def test_what_is_no_batch_is_named():
    batch = WAVES.sample(0, 0, 2)
    for call in (Sharded(MAML, 1).meta_gradient, Sharded(MAML, 1).evaluate):
        with pytest.raises(ValueError, match="tasks must be a TaskBatch or Deferred, got a tuple"):
            call(PARAMS, (batch.support_x, batch.support_y))


# --- whether workers pay ----------------------------------------------------------------------------


@pytest.mark.parametrize("pays", [True, False])
def test_workers_are_left_out_for_a_while_if_they_cost_more(monkeypatch, pays):
    batch = WAVES.sample(0, 0, 8)
    sharded = Sharded(MAML, 4, workers=2)
    calls = []

    def fake(work, params, jobs, *, gradients):
        calls.append(len(jobs))
        return [work(params, job) for job in jobs], 1e6 if pays else 0.0

    monkeypatch.setattr(sharded._runner, "_crew", fake)
    outs = {
        digest(sharded.meta_gradient(PARAMS, batch))[0]
        for _ in range(1 + runners.TRIALS + runners.HOLD + 3)
    }
    assert len(outs) == 1
    n_alone = 0 if pays else runners.HOLD
    assert len(calls) == 1 + runners.TRIALS + runners.HOLD + 3 - n_alone


def test_threads_wait_for_each_other(monkeypatch):
    join, others = parallel._joined, []
    batches = [WAVES.sample(seed, 0, 6) for seed in range(2)]
    expected = [Sharded(MAML, 3).meta_gradient(PARAMS, batch).grad for batch in batches]

    def meanwhile(outcomes):
        if not others:  # a call that overwrites the outcomes of this one, unless it has to wait
            others.append(threads.submit(sharded.meta_gradient, PARAMS, batches[1]))
            time.sleep(0.3)
        return join(outcomes)

    with Sharded(MAML, 3, workers=2) as sharded, ThreadPoolExecutor(1) as threads:
        sharded.meta_gradient(PARAMS, batches[0])
        monkeypatch.setattr(parallel, "_joined", meanwhile)
        found = [sharded.meta_gradient(PARAMS, batches[0]), others[0].result()]
    for out, gradient in zip(found, expected, strict=True):
        np.testing.assert_array_equal(out.grad, gradient)


def test_a_single_shard_needs_no_worker():
    with Sharded(MAML, 50, workers=2) as sharded:
        sharded.meta_gradient(PARAMS, WAVES.sample(0, 0, 8))
        assert sharded._runner._crew._members == []


# --- one BLAS thread --------------------------------------------------------------------------------

#: Products that OpenBLAS shares among threads, and then adds up in another order.
PRODUCTS = """
import hashlib, sys
import numpy as np, npmeta as nm
from npmeta.training.parallel import Sharded

if __name__ == "__main__":
    rng = np.random.default_rng(0)
    model = nm.MLP([400, 128, 64, 5])
    x, y = rng.random((16, 10, 400)), rng.integers(5, size=(16, 10))
    tasks = nm.TaskBatch(x[:, :5], y[:, :5], x[:, 5:], y[:, 5:])
    maml = nm.MAML(model, "cross_entropy", inner_lr=0.1, inner_steps=2)
    theta = model.init(rng, np.float32)
    for workers in (1, 2):
        with Sharded(maml, 8, workers=workers) as sharded:
            print(hashlib.sha256(sharded.meta_gradient(theta, tasks).grad.tobytes()).hexdigest())
"""


def script_environment(**variables):
    environment = {name: value for name, value in os.environ.items() if name not in _blas.ONE_THREAD}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**environment, "PYTHONPATH": path, **variables}


def test_bits_do_not_depend_on_the_blas_threads_of_the_environment(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(PRODUCTS)
    digests = set()
    for variables in ({}, {"OPENBLAS_NUM_THREADS": "4"}, _blas.ONE_THREAD):
        done = subprocess.run(
            [sys.executable, script],
            env=script_environment(**variables),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        digests |= set(done.stdout.split())
    assert len(digests) == 1


def test_threads_are_given_back_by_the_last_that_leaves(monkeypatch):
    set_to = [3]
    control = _blas._Control(lambda: set_to[-1], set_to.append)
    monkeypatch.setattr(_blas, "_found", lambda: _blas._controls)
    monkeypatch.setattr(_blas, "_controls", [control])
    with _blas.one_thread():
        with pytest.raises(KeyError), _blas.one_thread():
            raise KeyError
        assert set_to[-1] == 1
    assert set_to == [3, 1, 3]


def test_a_worker_computes_where_blas_cannot_be_told(monkeypatch):
    monkeypatch.setattr(runners, "can_be_one_thread", lambda: False)
    batch = WAVES.sample(0, 0, 8)
    with Sharded(MAML, 4) as sharded:
        out = sharded.meta_gradient(PARAMS, batch)
        assert len(sharded._runner._crew._members) == 1
    monkeypatch.undo()
    assert digest(out) == digest(Sharded(MAML, 4).meta_gradient(PARAMS, batch))


def test_wheels_can_be_told():
    config = np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"]
    if config != "scipy-openblas":
        pytest.skip(f"NumPy uses {config}")
    assert _blas.can_be_one_thread()
    with _blas.one_thread():
        assert [control.get() for control in _blas._controls] == [1] * len(_blas._controls)
    assert _blas._controls


# --- deaths, errors, interrupts -----------------------------------------------------------------------


def deadly(folder, deaths):
    maml = Deadly(MAML.model, inner_lr=0.05)
    object.__setattr__(maml, "folder", folder)
    object.__setattr__(maml, "deaths", deaths)
    return maml


@pytest.mark.parametrize("deaths", [1, 3])
def test_shards_of_a_killed_worker_are_computed_again(tmp_path, deaths):
    batch = numbered(16)
    maml = deadly(tmp_path, deaths)
    expected = digest(Sharded(maml, 3).meta_gradient(PARAMS["theta"], batch))
    with Sharded(maml, 3, workers=2) as sharded:
        for _ in range(3):  # before, between and after
            assert digest(sharded.meta_gradient(PARAMS["theta"], batch)) == expected
    assert len(list(tmp_path.iterdir())) == deaths


def test_a_worker_that_dies_between_calls_is_replaced():
    batch = WAVES.sample(0, 0, 16)
    with Sharded(MAML, 4, workers=2) as sharded:
        expected = digest(sharded.meta_gradient(PARAMS, batch))
        for child in workers()[:2]:
            os.kill(child.pid, signal.SIGKILL)
        assert digest(sharded.meta_gradient(PARAMS, batch)) == expected


def test_a_death_while_other_tasks_are_handed_out():
    """Nobody steps in who still has the old ones."""
    old, new = WAVES.sample(0, 0, 3), WAVES.sample(0, 1, 2)
    with Sharded(MAML, 1, workers=3) as sharded:
        sharded.meta_gradient(PARAMS, old)
        os.kill(sharded._runner._crew._members[0]._process.pid, signal.SIGKILL)
        found = sharded.meta_gradient(PARAMS, new)
    assert digest(found) == digest(Sharded(MAML, 1).meta_gradient(PARAMS, new))


def test_a_call_whose_workers_always_die_is_given_up(tmp_path):
    with Sharded(deadly(tmp_path, 99), 3, workers=2) as sharded:
        with pytest.raises(RuntimeError, match=r"4 worker processes died in one call \(signal 9, "):
            sharded.meta_gradient(PARAMS["theta"], numbered(16))
        few = numbered(8)  # no task 9
        expected = Sharded(MAML, 3).meta_gradient(PARAMS["theta"], few)
        found = sharded.meta_gradient(PARAMS["theta"], few)
        np.testing.assert_allclose(found.loss, expected.loss, rtol=1)  # it works again


@pytest.mark.parametrize("name", POOLS)
def test_an_error_in_a_worker_is_raised_as_itself(pools, name):
    with Sharded(MAML, 4, **pools[name]) as sharded:
        with pytest.raises(ValueError, match="no meta-parameter 'beta'"):
            sharded.meta_gradient({**PARAMS, "beta": np.ones(2)}, Deferred(WAVES, 0, 0, 9))
        with pytest.raises(ValueError, match="unknown split 'valid'"):
            nm.evaluate(sharded, PARAMS, WAVES, n_tasks=100, split="valid")
        out = sharded.meta_gradient(PARAMS, Deferred(WAVES, 0, 0, 9))
        assert digest(out) == digest(Sharded(MAML, 4).meta_gradient(PARAMS, Deferred(WAVES, 0, 0, 9)))


def test_the_first_of_several_errors_even_if_it_cannot_travel(pools):
    picky = Picky(MAML.model, inner_lr=0.05)
    message = r"Odd: six or more: 6(.|\n)*shards\.py"
    for options in ({"workers": 2}, pools["processes"]):
        with Sharded(picky, 2, **options) as sharded, pytest.raises(RuntimeError, match=message):
            sharded.meta_gradient(PARAMS["theta"], numbered(12))


def test_what_cannot_be_sent_is_named(pools):
    class Local(nm.tasks.Sinusoid):
        pass

    message = r"cannot be sent to a worker process: .*Local"
    for options in ({"workers": 2}, pools["processes"]):
        with Sharded(MAML, 2, **options) as sharded, pytest.raises(ValueError, match=message):
            sharded.meta_gradient(PARAMS, Deferred(Local(), 0, 0, 8))


def test_an_interrupted_call_leaves_no_worker_behind():
    batch = numbered(8, n_in=2)
    timer = threading.Timer(1.0, os.kill, [os.getpid(), signal.SIGINT])
    with Sharded(Slow(), 2, workers=2) as sharded:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            sharded.meta_gradient({"theta": np.ones(3)}, batch)
        assert sharded._runner._crew._members == []


#: Says who its workers are, and goes on until it is stopped; its shards take a minute each.
ENDLESS = """
import os, sys
import numpy as np
from multiprocessing import active_children
from threading import Thread
from npmeta.training.parallel import Sharded
from tests.shards import Means, Slow, numbered

def tell():
    while len(active_children()) < 2:
        pass
    print(*(child.pid for child in active_children()), flush=True)

if __name__ == "__main__":
    with Sharded({"fast": Means, "slow": Slow}[sys.argv[1]](), 2, workers=2) as sharded:
        Thread(target=tell, daemon=True).start()
        while True:
            sharded.meta_gradient({"theta": np.ones(3)}, numbered(8, n_in=2))
"""


def alive(pid):
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    ("number", "to", "kind"),
    [
        (signal.SIGINT, "group", "fast"),
        (signal.SIGINT, "parent", "slow"),
        (signal.SIGTERM, "group", "slow"),
        (signal.SIGTERM, "parent", "fast"),
        (signal.SIGKILL, "group", "fast"),
        (signal.SIGKILL, "parent", "slow"),
    ],
)
def test_nothing_is_left_of_a_process_that_is_stopped(tmp_path, number, to, kind):
    script = tmp_path / "script.py"
    script.write_text(ENDLESS)
    process = subprocess.Popen(
        [sys.executable, script, kind],
        env=script_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        workers = [int(word) for word in process.stdout.readline().split()]
        assert len(workers) == 2
        time.sleep(
            0.6
        )  # so that most are stopped amid their work; before it, nothing may be left either
        send = os.killpg if to == "group" else os.kill
        send(process.pid, number)
        _, err = process.communicate(timeout=30)  # also waits for whoever has its standard error
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode != 0
    deadline = time.monotonic() + 30  # who is killed closes its files a moment before it is gone
    while any(alive(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    if number == signal.SIGINT:
        assert err.count("Traceback") == 1  # the parent's own
        assert err.rstrip().endswith("KeyboardInterrupt")
    else:
        assert err == ""


def test_a_script_without_a_guard_is_told(tmp_path):
    script = tmp_path / "script.py"
    example = (ROOT / "docs" / "examples" / "waves_workers.py").read_text()
    script.write_text(example.replace('if __name__ == "__main__":', "if True:"))
    done = subprocess.run(
        [sys.executable, script],
        env=script_environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "must be under if __name__ == '__main__'" in done.stderr.splitlines()[-1]


# --- somebody else's executor -------------------------------------------------------------------------


class Unreliable(Executor):
    """Loses its first shards, some before and some after they are taken."""

    def __init__(self, n_lost):
        self.n_lost = n_lost

    def submit(self, f, /, *args, **options):
        self.n_lost -= 1
        if self.n_lost >= 0 and self.n_lost % 2:
            raise OSError("the network is down")
        future = Future()
        if self.n_lost >= 0:
            future.set_exception(OSError("the machine is gone"))
        else:
            future.set_result(f(*args, **options))
        return future


def test_lost_shards_are_tried_again():
    batch = WAVES.sample(0, 0, 10)
    expected = digest(Sharded(MAML, 4).meta_gradient(PARAMS, batch))
    with Sharded(MAML, 4, executor=Unreliable(4)) as sharded:
        assert digest(sharded.meta_gradient(PARAMS, batch)) == expected
    with Sharded(MAML, 4, executor=Unreliable(99)) as sharded:
        message = r"Unreliable lost 3 of 3 shards in 3 attempts: OSError: the (machine|network) is"
        with pytest.raises(RuntimeError, match=message):
            sharded.meta_gradient(PARAMS, batch)


def test_a_pool_of_processes_that_breaks_is_named(tmp_path):
    with (
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool,
        Sharded(deadly(tmp_path, 99), 3, executor=pool) as sharded,
        pytest.raises(RuntimeError, match=r"ProcessPoolExecutor lost .* BrokenProcessPool"),
    ):
        sharded.meta_gradient(PARAMS["theta"], numbered(16))


def test_an_algorithm_goes_to_each_process_once(monkeypatch):
    sent = []
    monkeypatch.setattr(runners, "pickled", lambda work: sent.append(work) or crew.pickled(work))
    with (
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool,
        Sharded(MAML, 4, executor=pool) as sharded,
    ):
        for iteration in range(3):
            sharded.meta_gradient(PARAMS, Deferred(WAVES, 0, iteration, 10))
        assert len(sent) == 1
    assert sharded._runner._key not in runners._KNOWN


def test_dask(tmp_path):
    distributed = pytest.importorskip("distributed")
    batch = numbered(16)
    maml = deadly(tmp_path, 1)
    expected = digest(Sharded(maml, 3).meta_gradient(PARAMS["theta"], batch))
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
        Sharded(MAML, 4, executor=client.get_executor()) as sharded,
    ):
        for tasks in (Deferred(WAVES, 0, 3, 23), WAVES.sample(0, 3, 23)):
            assert digest(sharded.meta_gradient(PARAMS, tasks)) == digest(
                Sharded(MAML, 4).meta_gradient(PARAMS, tasks)
            )
        # Its workers are killed too: the scheduler sends their shards to others.
        with Sharded(maml, 3, executor=client.get_executor()) as sharded:
            assert digest(sharded.meta_gradient(PARAMS["theta"], batch)) == expected


def test_mpi():
    pytest.importorskip("mpi4py")
    mpiexec = Path(sys.executable).with_name("mpiexec")
    if not mpiexec.exists():
        pytest.skip("no mpiexec beside this Python")
    command = [mpiexec, "-n", "3", sys.executable, "-m", "mpi4py.futures"]
    assert example("waves_mpi.py", *command) == example("waves_workers.py")[:1]


def example(name, *command):
    """What a script of the documentation prints."""
    done = subprocess.run(
        [*(command or [sys.executable]), ROOT / "docs" / "examples" / name],
        env=script_environment(),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_examples_agree():
    alone, shared = example("waves_workers.py")
    assert alone == shared
    try:
        import distributed  # noqa: F401
    except ImportError:
        return
    assert example("waves_dask.py") == [alone]


# --- the command line -------------------------------------------------------------------------------

TRAIN = ["train", "sinusoid", "--hidden", "8", "--meta-batch", "10", "--shard-size", "4"]
TRAIN += ["--eval-tasks", "120", "--validation-tasks", "60", "--validate-every", "20"]


def final_state(folder):
    run = Run(folder)
    return [path.read_bytes() for path in (run.checkpoints()[-1], folder / "metrics.csv")]


def test_a_run_is_the_same_with_any_number_of_workers(tmp_path, capsys):
    for workers in ("1", "2", "3"):
        folder = str(tmp_path / workers)
        assert main([*TRAIN, "--iterations", "30", "--workers", workers, "--out", folder]) == 0
    states = [final_state(tmp_path / workers) for workers in ("1", "2", "3")]
    assert states[0] == states[1] == states[2]
    said = capsys.readouterr()
    assert "3 workers; shards in an iteration: 3, of 4 tasks" in said.err
    tables = [part.split("\n\n")[0] for part in said.out.split("120 test tasks")[1:]]
    assert len(tables) == 3
    assert len(set(tables)) == 1
    assert main(["evaluate", folder, "--tasks", "120", "--workers", "2"]) == 0
    assert capsys.readouterr().out.split()[-1] == tables[0].split()[-1]


def test_another_number_of_workers_may_go_on_and_one_may_be_killed(tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert main([*TRAIN, "--iterations", "900", "--out", str(whole)]) == 0
    command = [sys.executable, "-m", "npmeta", *TRAIN, "--iterations", "800", "--out", str(folder)]
    process = subprocess.Popen(
        [*command, "--workers", "2", "--checkpoint-every", "10"],
        env=script_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while len(list(folder.glob("checkpoints/0*.npz"))) < 2 and process.poll() is None:
        time.sleep(0.001)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if children.exists():  # on Linux
        pids = children.read_text().split()
        (first, _) = (p for p in pids if "spawn_main" in Path(f"/proc/{p}/cmdline").read_text())
        os.kill(int(first), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert main(["train", "--resume", str(folder), "--iterations", "900", "--workers", "3"]) == 0
    params = [Run(path).load().params["theta"] for path in (whole, folder)]
    np.testing.assert_array_equal(*params)


def test_the_shard_size_is_the_runs(tmp_path, capsys):
    folder = tmp_path / "run"
    new = ["train", "sinusoid", "--hidden", "4", "--eval-tasks", "9", "--iterations", "3"]
    assert main([*new, "--meta-batch", "9", "--out", str(folder)]) == 0
    assert Run(folder).config["shard_size"] == 9
    resume = ["train", "--resume", str(folder), "--iterations", "6"]
    assert main([*resume, "--shard-size", "3"]) == 2
    assert "cannot go on with another shard_size (9, not 3)" in capsys.readouterr().err
    # A run of before there were shards goes on without them.
    config = folder / "config.toml"
    config.write_text(config.read_text().replace("shard_size = 9\n", ""))
    assert main([*resume, "--workers", "2"]) == 2
    assert "was begun without shards" in capsys.readouterr().err
    assert main(resume) == 0
    assert "shard_size" not in config.read_text()
    assert main([*new, "--workers", "0"]) == 2
    assert "argument --workers: must be at least 1, got 0" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_has_workers_of_its_own(tmp_path):
    """Parent and child ask at once, each with losses of its own: nobody reads the other's answers."""
    script = """
import os, warnings
import numpy as np
import npmeta as nm
from npmeta.training.parallel import Sharded
warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads, which BLAS has
waves = nm.tasks.Sinusoid(shots=4, queries=6)
maml = nm.MAML(nm.MLP([1, 12, 1]), inner_lr=0.05)
params = maml.init(np.random.default_rng(0))

def losses(algorithm, seed):
    return [algorithm.meta_gradient(params, waves.sample(seed, i, 8)).loss for i in range(60)]

if __name__ == "__main__":
    with Sharded(maml, 2, workers=2) as sharded:
        losses(sharded, 0)
        child = os.fork()
        own = 1 if child == 0 else 2
        right = losses(sharded, own) == losses(Sharded(maml, 2), own)
        if child == 0:
            sharded.close()
            os._exit(0 if right else 3)
        assert os.waitpid(child, 0)[1] == 0
        assert right
        assert losses(sharded, 4) == losses(Sharded(maml, 2), 4)  # the child has ended none of ours
"""
    (tmp_path / "forks.py").write_text(script)
    done = subprocess.run(
        [sys.executable, tmp_path / "forks.py"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs a list of mappings")
def test_a_data_file_is_no_library(tmp_path):
    data = np.lib.format.open_memmap(tmp_path / "openblas.npy", "w+", float, (1000,))
    data[:] = 1
    assert "openblas.npy" in Path("/proc/self/maps").read_text()
    assert not any("openblas.npy" in path for path in _blas._libraries())
    # Nor is a library loaded to look into it.
    assert list(_blas._control(str(tmp_path / "openblas.npy"))) == []
