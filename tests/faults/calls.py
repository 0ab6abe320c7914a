"""Bad calls: whatever is given for an argument, an error of npmeta's own says what was expected."""

from __future__ import annotations

import datetime
import os
import random
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.faults.scenarios import ready
from tests.faults.sweep import LONGEST, HangsError, Sweep, timed

__all__ = ["SWEEP"]

#: Trials of two wrong values at once, after those of one.
PAIRS = 5_000


class State(NamedTuple):
    """Right calls, and every single trial: a call, one of its arguments, and the number of a value."""

    calls: list[Call]
    singles: list[tuple[Call, str, int]]


@dataclass(frozen=True)
class Call:
    """A right call: every argument by name."""

    name: str
    function: Callable[..., Any]
    arguments: dict[str, Any]


def _names(*args: Any, **options: Any) -> list[str]:
    return ["a", "b"]


class _Thing:
    def __repr__(self) -> str:
        return "a thing"


def _values() -> list[Any]:
    """What somebody may give, by mistake, for anything."""
    return [
        None,
        "",
        "abc",
        b"abc",
        "\x1b[31m",
        True,
        False,
        0,
        -1,
        3,
        2**70,
        10**400,
        0.5,
        -2.5,
        float("nan"),
        float("inf"),
        1j,
        [],
        [1, "a"],
        [[1, 2], [3]],
        [None],
        (),
        (1,),
        {},
        {"a": 1},
        {1: np.zeros(2)},
        {"theta": "x"},
        {"theta": np.zeros(2)},
        {3},
        range(3),
        iter(()),
        _Thing(),
        _Thing,
        _names,
        lambda *args, **options: None,
        np.float32(2),
        np.int64(-3),
        np.bool_(True),
        np.array("text"),
        np.zeros(0),
        np.zeros(3),
        np.zeros((2, 3)),
        np.zeros((2, 3, 4, 5)),
        np.full(5, np.nan),
        np.array([1, "a"]),
        np.array([None, 1]),
        np.zeros(3, dtype=complex),
        np.ma.masked_equal([1, 2], 2),
        np.zeros(2, dtype="datetime64[s]"),
        np.zeros(2, dtype=[("a", "f8")]),
        np.random.default_rng(0),
        np.dtype("float32"),
        "float16",
        "int32",
        datetime.date(2026, 11, 27),
        Path("nowhere"),
        1e300,
        -0.0,
        NotImplemented,
        ...,
        slice(3),
        np.zeros(3) > 0,
        [float("nan")] * 2,
        "mse",
        "maml",
        [0.1, -0.1],
    ]


def _calls(folder: Path) -> Iterator[Call]:
    import npmeta as nm
    from npmeta import algorithms, interop, tasks, verification
    from npmeta.algorithms import IMAML, MAML, MAMLPlusPlus
    from npmeta.bilevel import optimizers
    from npmeta.bilevel.vector_objectives import Quadratic
    from npmeta.estimators import MetaEstimator
    from npmeta.network import losses
    from npmeta.training.parallel import Sharded
    from npmeta.verification import golden
    from npmeta.verification.doctor import faults

    rng = np.random.default_rng(0)
    model = nm.MLP([2, 3, 1], "tanh")
    theta = model.init(0)
    x, y = rng.normal(size=(2, 4, 2)), rng.normal(size=(2, 4, 1))
    labels = np.tile([0, 1, 0, 1], (2, 1))
    sets = {"support_x": x, "support_y": y, "query_x": x + 1, "query_y": y}
    of_classes = {"support_x": x, "support_y": labels, "query_x": x + 1, "query_y": labels}
    batch, class_batch = nm.TaskBatch(**sets), nm.TaskBatch(**of_classes)
    maml = MAML(model, "mse", 0.1, 2)
    risk = nm.Risk(model, "mse")
    prediction = {"support_x": x, "support_y": y, "query_x": x}

    yield Call(
        "MLP",
        nm.MLP,
        {
            "widths": [2, 3, 1],
            "activation": "tanh",
            "norm": None,
            "adapt_norm": True,
            "norm_sets": 1,
            "structure": None,
        },
    )
    yield Call("MLP.init", model.init, {"rng": 0, "dtype": "float32"})
    yield Call("MLP.apply", model.apply, {"theta": theta, "x": x})
    yield Call("MLP.jvp", model.jvp, {"theta": theta, "x": x, "v": theta})
    yield Call("MLP.vjp", model.vjp, {"theta": theta, "x": x, "cotangent": y})
    yield Call("MLP.pack", model.pack, {"layers": model.unpack(theta)})
    yield Call("MLP.unpack", model.unpack, {"theta": theta})
    yield Call("Structure", nm.Structure, {"candidates": ["relu", "sin"], "gates": True, "adapt": True})
    yield Call("Risk", nm.Risk, {"model": model, "loss": "mse"})
    yield Call("Risk.linearize", risk.linearize, {"phi": theta, "x": x, "y": y})
    yield Call(
        "FunctionObjective",
        nm.FunctionObjective,
        {"n_params": 3, "value_and_grad": lambda t, x, y: (0.0, t), "hvp": None},
    )
    yield Call("Quadratic", Quadratic, {"n_params": 3})
    yield Call("TaskBatch", nm.TaskBatch, sets)
    yield Call("TaskBatch[]", batch.__getitem__, {"key": 0})
    yield Call("losses.get", losses.get, {"loss": "mse"})
    common = {"model": model, "loss": "mse", "inner_lr": 0.1, "inner_steps": 2}
    trained = {"model": model, "loss": "mse", "inner_steps": 2, "weights": "auto"}
    steps = {**common, "inner_weight_decay": 0.0, "weights": "auto"}
    orders = {**steps, "first_order": True, "learn_inner_lr": False}
    annealed = {"multi_step_iterations": 3, "first_order_iterations": 2, "step_weights": (0.5, 0.5)}
    yield Call("MAML", MAML, orders)
    yield Call("Warp", algorithms.Warp, orders)
    yield Call("MAMLPlusPlus", MAMLPlusPlus, {**orders, **annealed})
    yield Call("Joint", algorithms.Joint, steps)
    yield Call("Scratch", algorithms.Scratch, steps)
    yield Call("Reptile", algorithms.Reptile, {**trained, "inner_lr": 0.1, "batch_rows": 2})
    sgd = {"first_order": True, "inner_weight_decay": 0.0, "inner_lr_range": (0.01, 0.1)}
    yield Call("MetaSGD", algorithms.MetaSGD, {**trained, **sgd})
    for function in (algorithms.anil, algorithms.boil, algorithms.fomaml, algorithms.lslr):
        yield Call(function.__name__, function, common)
    yield Call(
        "IMAML",
        IMAML,
        {
            "model": model,
            "loss": "mse",
            "strength": 1.0,
            "tolerance": 1e-8,
            "inner_steps": 5,
            "solve_steps": 5,
        },
    )
    yield Call(
        "CAVIA",
        algorithms.CAVIA,
        {
            "model": nm.MLP([4, 3, 1]),
            "loss": "mse",
            "n_context": 2,
            "inner_lr": 0.1,
            "inner_steps": 1,
            "first_order": False,
        },
    )
    yield Call("MetaLSTM", algorithms.MetaLSTM, common)
    yield Call(
        "MANN",
        algorithms.MANN,
        {
            "model": nm.MLP([2, 3, 2]),
            "loss": "cross_entropy",
            "ways": 2,
            "units": 4,
            "slots": 3,
            "width": 3,
            "scale": 1.0,
        },
    )
    yield Call(
        "SNAIL",
        algorithms.SNAIL,
        {
            "model": nm.MLP([2, 3, 2]),
            "loss": "cross_entropy",
            "ways": 2,
            "blocks": 1,
            "convolutions": 2,
            "filters": 3,
            "key_width": 3,
            "value_width": 2,
            "shuffle": True,
        },
    )
    yield Call(
        "MatchingNetwork",
        algorithms.MatchingNetwork,
        {"model": model, "distance": "cosine", "scale": 1.0, "ways": 2},
    )
    yield Call(
        "PrototypicalNetwork",
        algorithms.PrototypicalNetwork,
        {"model": model, "distance": "squared_euclidean", "scale": 1.0, "ways": 2},
    )
    yield Call(
        "SiameseNetwork",
        algorithms.SiameseNetwork,
        {"model": model, "pair_loss": "weighted_l1", "margin": 1.0, "ways": 2},
    )
    yield Call(
        "RelationNetwork", algorithms.RelationNetwork, {"model": model, "relation": None, "ways": 2}
    )
    yield Call(
        "RidgeHead",
        algorithms.RidgeHead,
        {"model": model, "loss": "mse", "ridge": 1.0, "scale": 1.0, "ways": 2},
    )
    yield Call("SineOracle", algorithms.SineOracle, {"frequency": 1.0, "loss": "mse"})

    step, of_classes = {"steps": 1}, {"support_y": labels}
    for learner, sets_of, more, answers in (
        (maml, batch, step, {}),
        (IMAML(model, "mse", inner_steps=3, solve_steps=5), batch, step, {}),
        (algorithms.Reptile(model, "mse"), batch, step, {}),
        (MAMLPlusPlus(model, "mse", inner_steps=2), batch, step, {}),
        (algorithms.MetaLSTM(model, "mse", inner_steps=2), batch, step, {}),
        (algorithms.RidgeHead(model, "mse"), batch, step, {}),
        (algorithms.PrototypicalNetwork(model), class_batch, {}, of_classes),
        (algorithms.MatchingNetwork(model), class_batch, {}, of_classes),
        (algorithms.SiameseNetwork(model), class_batch, {}, of_classes),
        (algorithms.RelationNetwork(model), class_batch, {}, of_classes),
    ):
        name, params = type(learner).__name__, learner.init(0)
        given = {"params": params, "tasks": sets_of}
        yield Call(f"{name}.init", learner.init, {"rng": 0, "dtype": "float64"})
        yield Call(f"{name}.meta_gradient", learner.meta_gradient, given)
        yield Call(f"{name}.evaluate", learner.evaluate, {**given, **more})
        yield Call(
            f"{name}.predict", learner.predict, {"params": params, **prediction, **answers, **more}
        )
    params = maml.init(0)
    given = {"params": params, "tasks": batch}
    yield Call("Sharded.meta_gradient", Sharded(maml, 1).meta_gradient, given)
    yield Call("Sharded.evaluate", Sharded(maml, 1).evaluate, {**given, **step})
    yield Call("MAML.adapt", maml.adapt, {"params": params, "support_x": x, "support_y": y, "steps": 1})
    yield Call("MAML.plan", maml.plan, {"tasks": batch})
    yield Call("Sharded", Sharded, {"algorithm": maml, "shard_size": 2, "workers": 1})

    sinusoid = tasks.Sinusoid(shots=2, queries=2)
    yield Call(
        "Sinusoid",
        tasks.Sinusoid,
        {
            "shots": 2,
            "queries": 2,
            "amplitude": (0.1, 1),
            "phase": (0, 1),
            "frequency": (1, 1),
            "x": (-1, 1),
            "noise": 0.1,
        },
    )
    place = {"seed": 0, "iteration": 0, "n_tasks": 2, "start": 0, "split": "train"}
    yield Call("Sinusoid.sample", sinusoid.sample, place)
    (folder / "t.csv").write_text(
        "task,x,target\n" + "".join(f"{t},{i},{i}\n" for t in range(9) for i in range(5))
    )
    table = tasks.Table(folder / "t.csv", shots=2, queries=2)
    yield Call(
        "Table",
        tasks.Table,
        {
            "path": folder / "t.csv",
            "shots": 2,
            "queries": 2,
            "task": "task",
            "target": "target",
            "features": ["x"],
            "kind": "auto",
            "standardise": True,
            "split_seed": 0,
            "fractions": (0.7, 0.15, 0.15),
            "encoding": None,
        },
    )
    yield Call("Table.sample", table.sample, place)
    yield Call("Table.names", table.names, place)
    yield Call("Table.task_names", table.task_names, {"split": "test"})
    yield Call(
        "Encoding",
        tasks.Encoding,
        {
            "features": ("a",),
            "target": "y",
            "mean": (0.0,),
            "std": (1.0,),
            "target_mean": 0.0,
            "target_std": 1.0,
            "classes": ("a", "b"),
        },
    )
    encoding = tasks.Encoding(("a",), "y", (0.0,), (1.0,))
    yield Call("Encoding.encode", encoding.encode, {"x": [[1.0]]})
    yield Call("Encoding.encode_targets", encoding.encode_targets, {"y": [1.0]})
    yield Call("Encoding.decode", encoding.decode, {"outputs": [[1.0]]})
    yield Call("Encoding.from_dict", tasks.Encoding.from_dict, {"values": encoding.to_dict()})
    yield Call(
        "read_rows",
        tasks.read_rows,
        {"path": folder / "t.csv", "encoding": table.encoding, "with_target": True},
    )
    yield Call("read_image", tasks.read_image, {"path": folder / "no.png", "align": False})
    yield Call(
        "Omniglot", tasks.Omniglot, {"path": folder / "no.zip", "ways": 2, "shots": 1, "queries": 1}
    )

    yield Call(
        "evaluate",
        nm.evaluate,
        {
            "algorithm": maml,
            "tasks": sinusoid_of(2),
            "params": params,
            "n_tasks": 2,
            "steps": 1,
            "split": "test",
            "seed": 0,
        },
    )
    adam = optimizers.Adam()
    yield Call(
        "meta_train",
        nm.meta_train,
        {
            "algorithm": maml,
            "tasks": sinusoid_of(2),
            "params": params,
            "iterations": 1,
            "meta_batch": 2,
            "outer_lr": 0.1,
            "optimizer": adam,
            "schedule": optimizers.constant(),
            "clip": 1.0,
            "seed": 0,
            "state": adam.init(params),
            "start": 0,
        },
    )
    for kind, options in (
        (optimizers.Adam, {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8}),
        (optimizers.Momentum, {"beta": 0.9}),
    ):
        yield Call(kind.__name__, kind, options)
    yield Call("Adam.init", adam.init, {"params": params})
    yield Call(
        "Adam.update",
        adam.update,
        {"params": params, "grads": params, "state": adam.init(params), "lr": 0.1},
    )
    yield Call("optimizers.get", optimizers.get, {"name": "adam"})
    yield Call("cosine", optimizers.cosine, {"iterations": 10})
    yield Call("step", optimizers.step, {"every": 10, "factor": 0.5})
    yield Call(
        "clip_by_global_norm", optimizers.clip_by_global_norm, {"grads": params, "max_norm": 1.0}
    )

    def quadratic(t: Any) -> Any:
        return 0.5 * (t**2).sum(), t

    point = rng.normal(size=3)
    yield Call(
        "check_gradient",
        verification.check_gradient,
        {"function": quadratic, "x": point, "precision": None, "seed": 0},
    )
    yield Call(
        "check_hvp",
        verification.check_hvp,
        {"function": quadratic, "hvp": lambda t, v: v, "x": point, "seed": 0},
    )
    yield Call(
        "check_taylor", verification.check_taylor, {"function": quadratic, "x": point, "seed": 0}
    )
    yield Call(
        "check_deterministic",
        verification.check_deterministic,
        {"function": quadratic, "x": point, "times": 2},
    )
    yield Call(
        "check_batched",
        verification.check_batched,
        {"function": lambda t, i: ((t**2).sum(), 2 * t), "x": point, "tasks": np.arange(2)},
    )
    gradient = maml.meta_gradient(params, batch).grads["theta"]
    yield Call(
        "check_meta_gradient",
        verification.check_meta_gradient,
        {"maml": maml, "params": params, "tasks": batch, "gradient": gradient},
    )
    yield Call(
        "verification.meta_gradient",
        verification.meta_gradient,
        {"maml": maml, "params": params, "tasks": batch},
    )
    yield Call(
        "complex_step", verification.complex_step, {"maml": maml, "params": params, "tasks": batch}
    )
    yield Call("Problem", nm.Problem, {"maml": maml, "theta": theta, "tasks": batch})
    problem = nm.Problem(maml, theta, batch)
    yield Call(
        "diagnose", nm.diagnose, {"problem": problem, "gradient": gradient, "phi": None, "losses": None}
    )
    yield Call("golden.write", golden.write, {"folder": folder / "suite", "only": ["base"]})
    assert faults

    weights = {
        "l1.weight": np.zeros((3, 2)),
        "l1.bias": np.zeros(3),
        "l2.weight": np.zeros((1, 3)),
        "l2.bias": np.zeros(1),
    }
    yield Call(
        "to_theta", interop.to_theta, {"params": weights, "model": model, "layout": None, "order": None}
    )
    yield Call(
        "from_theta",
        interop.from_theta,
        {"theta": theta, "like": weights, "layout": None, "order": None},
    )
    yield Call("model_of", interop.model_of, {"params": weights, "activation": "tanh"})

    estimator = {
        "hidden": [3],
        "inner_steps": 1,
        "iterations": 1,
        "shots": 2,
        "queries": 2,
        "random_state": 0,
    }
    X, Y, groups = rng.normal(size=(60, 2)), rng.normal(size=60), np.repeat(np.arange(6), 10)

    def fit(X: Any, y: Any, groups: Any, **options: Any) -> Any:
        if options["iterations"] is None:  # the default, which takes long
            options["iterations"] = 1
        return MetaEstimator("maml", **options).fit(X, y, groups=groups)

    yield Call("MetaEstimator.fit", fit, {"X": X, "y": Y, "groups": groups, **estimator})
    fitted = fit(X, Y, groups, **estimator)
    yield Call("MetaEstimator.adapt", fitted.adapt, {"X": X[:4], "y": Y[:4]})
    adapted = fitted.adapt(X[:4], Y[:4])
    yield Call("AdaptedEstimator.predict", adapted.predict, {"X": X[:3]})
    yield Call("AdaptedEstimator.score", adapted.score, {"X": X[:3], "y": Y[:3]})


def sinusoid_of(n_in: int) -> Any:
    """Tasks of random numbers with so many features."""
    import npmeta as nm

    class Tasks:
        def sample(self, seed: int, iteration: int, n_tasks: int, **options: Any) -> Any:
            x = np.random.default_rng(0).normal(size=(n_tasks, 3, n_in))
            return nm.TaskBatch(x, x[..., :1], x, x[..., :1])

    return Tasks()


def prepare(folder: Path) -> State:
    ready()
    warnings.simplefilter("ignore")
    calls = [Call(c.name, c.function, c.arguments) for c in _calls(folder)]
    for call in calls:
        if call.name not in ("read_image", "Omniglot"):
            _made(call, call.arguments)  # is right
    n_values = len(_values())
    return State(calls, [(c, name, i) for c in calls for name in c.arguments for i in range(n_values)])


def _made(call: Call, arguments: dict[str, Any]) -> None:
    if call.name == "TaskBatch[]":
        result = call.function(*arguments.values())
    else:
        result = call.function(**arguments)
    if call.name == "meta_train":
        next(result)


def trial(state: State, number: int, folder: Path) -> str | None:
    calls, singles = state
    values = _values()  # anew: a call may change what it is given
    if number < len(singles):
        call, name, i = singles[number]
        changed = {name: values[i]}
    else:  # two at once
        rng = random.Random(number)
        call = rng.choice([c for c in calls if len(c.arguments) > 1])
        changed = {n: rng.choice(values) for n in rng.sample(list(call.arguments), 2)}
    os.chdir(folder)  # a path may be one of the values
    given = ", ".join(f"{n}={_short(v)}" for n, v in changed.items())
    wrong = _wrong(call, {**call.arguments, **changed})
    return wrong and f"{call.name}({given}): {wrong}"


def _short(value: Any) -> str:
    return repr(value)[:60].replace("\n", " ")


def _wrong(call: Call, arguments: dict[str, Any]) -> str | None:
    try:
        with timed():
            _made(call, arguments)
    except (ValueError, ArithmeticError, ImportError, OSError, IndexError) as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        own = (
            "/npmeta/" in where.filename.replace("\\", "/")
            and type(error).__name__ != "ZeroDivisionError"
        )
        said = str(error)
        if not own or isinstance(error, OverflowError) or not said:
            return f"{type(error).__name__} of {where.filename}:{where.lineno}: {said[:150]}"
        if len(said) > 1500:
            return f"it said {len(said)} characters"
    except HangsError:
        return f"it took more than {LONGEST} s"
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        if where.filename == __file__:  # of a function that was given
            return None
        return f"{type(error).__name__} of {where.filename}:{where.lineno}: {str(error)[:150]}"
    return None


SWEEP = Sweep(
    "calls",
    "Every argument of the public functions replaced by each of some sixty wrong values, and two at "
    "once: taken, or refused by an error of npmeta's own.",
    1500,
    prepare,
    lambda state: len(state.singles) + PAIRS,
    trial,
)
