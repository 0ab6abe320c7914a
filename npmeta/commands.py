"""What the commands do, from train to golden. :mod:`npmeta.cli` reads them."""

from __future__ import annotations

import signal
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from npmeta import __version__, optimizers
from npmeta._files import write_atomically
from npmeta._validation import Array
from npmeta.activations import ACTIVATIONS
from npmeta.algorithms import Scores, StructuredMAML
from npmeta.algorithms.base import MetaLearner
from npmeta.config import Config, TaskDistribution
from npmeta.found_structure import structure_report
from npmeta.losses import LOSSES
from npmeta.options import PRESETS, TASKS
from npmeta.parallel import Sharded, default_shard_size
from npmeta.progress import Progress
from npmeta.registry import ALGORITHMS, options_of
from npmeta.reports import score_json, score_table
from npmeta.runs import Checkpoint, Run, locked
from npmeta.tasks import Encoding, Omniglot, Sinusoid, Table
from npmeta.tasks.checks import existing
from npmeta.training import Algorithm, NonFiniteError, evaluate, meta_train

__all__ = [
    "adapt_run",
    "check",
    "describe",
    "evaluate_run",
    "examine",
    "golden_check",
    "golden_list",
    "golden_write",
    "list_all",
    "list_faults",
    "plot_run",
    "resume_run",
    "show_structure",
    "start_run",
]


def say(message: str) -> None:
    """A sentence beside the output proper."""
    print(message, file=sys.stderr, flush=True)


# --- train ------------------------------------------------------------------------------------------


def start_run(config: Config, folder: Path | None, workers: int = 1) -> int:
    """Train from the beginning in a new folder. Nothing is written before everything is checked."""
    tasks = config.tasks()
    settled: dict[str, Any] = {}
    if not isinstance(tasks, Sinusoid):
        settled = {"data": str(existing(config["data"]).resolve()), "checksum": tasks.checksum}
    if isinstance(tasks, Table) and config["loss"] is None:
        settled["loss"] = "mse" if tasks.encoding.kind == "number" else "cross_entropy"
    config = config.with_values(**settled)
    algorithm = config.algorithm(tasks.n_in, tasks.n_out)
    params = algorithm.init(np.random.default_rng(config["seed"]), config["dtype"])
    if config["shard_size"] is None:
        n_params = sum(array.size for array in params.values())
        config = config.with_values(shard_size=default_shard_size(config["meta_batch"], n_params))
    for split in ("train", "validation", "test"):
        algorithm.evaluate(params, tasks.sample(config["seed"], 0, 1, split=split), 0)
    config.schedule()
    start = Checkpoint(0, params, optimizers.get(config["optimizer"]).init(params), np.zeros(3))

    encoding = tasks.encoding.to_dict() if isinstance(tasks, Table) else None
    run = Run.create(folder or _new_folder(config.task), config, encoding, start)
    with locked(run.folder):
        return _train(run, tasks, algorithm, start, workers)


def resume_run(folder: Path, task: str | None, changes: Mapping[str, Any], workers: int = 1) -> int:
    """Go on with a run, bit for bit as if it had not been interrupted.

    ``changes`` may be what the run has already; only ``iterations`` may be something else, and the
    path of the same data.
    """
    with locked(folder):
        return _resume(Run(folder), task, changes, workers)


def _resume(run: Run, task: str | None, changes: Mapping[str, Any], workers: int) -> int:
    folder = run.folder
    for came, own in (task, run.config.task), (changes.get("algorithm"), run.config["algorithm"]):
        if came not in (None, own):
            raise ValueError(f"{folder} is of {own}, not of {came}")
    config = run.config.with_values(**changes)
    if "data" in changes:
        config = config.with_values(data=str(existing(changes["data"]).resolve()))
    changed = {name for name, value in config.values.items() if run.config[name] != value}
    for name in sorted(changed - {"iterations", "data"}):
        raise ValueError(
            f"a run cannot go on with another {name} ({run.config[name]!r}, not {config[name]!r}); "
            f"only iterations may change"
        )
    if "iterations" in changed and config["schedule"] == "cosine":
        raise ValueError("the cosine schedule depends on iterations, so they cannot change midway")
    if workers > 1 and config["shard_size"] is None:
        raise ValueError(f"{folder} was begun without shards, so workers cannot share its iterations")
    tasks = config.tasks()  # data of another checksum is refused
    algorithm = config.algorithm(tasks.n_in, tasks.n_out)
    checkpoint = run.load()
    made, iterations = checkpoint.iteration, config["iterations"]
    if made > iterations:
        raise ValueError(f"{folder} has made {made} iterations, and cannot go back to {iterations}")
    _check_fit(checkpoint, config, algorithm)
    run.metrics()  # a damaged row is an error, and nothing has been written yet
    if changed:
        run.config = config
        write_atomically(folder / "config.toml", config.to_toml())
    if made == iterations and (folder / "evaluation.json").exists():
        say(f"{folder} has made its {iterations} iterations; --iterations N goes on to more")
        return 0
    # Scores of fewer iterations; without them, an interrupt before the new ones can be made good.
    (folder / "evaluation.json").unlink(missing_ok=True)
    run.truncate_metrics(made)
    say(f"going on from iteration {made} of {iterations}")
    return _train(run, tasks, algorithm, checkpoint, workers)


def _check_fit(checkpoint: Checkpoint, config: Config, algorithm: MetaLearner) -> None:
    """Raise ValueError unless a checkpoint has what the configuration's network and optimizer need."""
    params = algorithm.init(np.random.default_rng(0), config["dtype"])
    state = optimizers.get(config["optimizer"]).init(params)
    for part, expected, found in (
        ("parameters", params, checkpoint.params),
        ("optimizer state", state, checkpoint.state),
    ):
        wanted, came = (
            {name: (array.shape, str(array.dtype)) for name, array in arrays.items()}
            for arrays in (expected, found)
        )
        if wanted != came:
            raise ValueError(
                f"the checkpoint does not fit config.toml: its {part} are {came}, expected {wanted}"
            )


def _new_folder(task: str) -> Path:
    """The first of runs/TASK-1, runs/TASK-2, ... that is free, made: no other process will get it."""
    n = 1
    while True:
        folder = Path("runs", f"{task}-{n}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            n += 1
        else:
            return folder


def _train(
    run: Run, tasks: TaskDistribution, algorithm: MetaLearner, start: Checkpoint, workers: int
) -> int:
    """Train, and report; or say why not, and how to go on."""
    config = run.config
    n_params = sum(array.size for array in start.params.values())
    say(f"{config.task}: {config['algorithm']}, {n_params} meta-parameters, in {run.folder}")
    with (
        _handling(signal.default_int_handler, signal.SIGTERM),
        _sharded(config, algorithm, workers) as sharded,
    ):
        try:
            with _interrupts() as interrupted:
                checkpoint = _iterate(run, tasks, sharded, start, interrupted)
        except NonFiniteError as error:
            say(f"npmeta: training stopped: {error}; the newest checkpoint is {run.checkpoints()[-1]}")
            return 1
        if interrupted:
            say(
                f"stopped after iteration {checkpoint.iteration} of {config['iterations']}; "
                f"to go on: npmeta train --resume {run.folder}"
            )
            return 130
        _report(run, tasks, algorithm, sharded, checkpoint.params)
    return 0


def _sharded(config: Config, algorithm: MetaLearner, workers: int) -> AbstractContextManager[Algorithm]:
    """The algorithm in the run's shards; as it is, for a run of before there were any."""
    size = config["shard_size"]
    if size is None:
        return nullcontext(algorithm)
    if workers > 1:
        n_shards = -(-config["meta_batch"] // size)
        say(f"{workers} workers; shards in an iteration: {n_shards}, of {size} tasks")
    return Sharded(algorithm, size, workers=workers)


def _iterate(
    run: Run,
    tasks: TaskDistribution,
    algorithm: Algorithm,
    start: Checkpoint,
    interrupted: Sequence[int],
) -> Checkpoint:
    """All iterations, or those up to an interrupt; what came of them is in the run's folder."""
    config, checkpoint, window = run.config, start, start.window
    iterations = config["iterations"]
    steps = meta_train(
        algorithm,
        tasks,
        start.params,
        iterations=iterations,
        meta_batch=config["meta_batch"],
        outer_lr=config["outer_lr"],
        optimizer=optimizers.get(config["optimizer"]),
        schedule=config.schedule(),
        clip=config["clip"],
        seed=config["seed"],
        state=start.state,
        start=start.iteration,
    )
    with Progress(iterations, start.iteration) as progress:
        for step in steps:
            progress.update(step.iteration, step.loss)
            window = window + np.array([1.0, step.loss, step.grad_norm])
            last = step.iteration == iterations
            validates = last or step.iteration % config["validate_every"] == 0
            if validates or step.iteration % config["log_every"] == 0:
                count, loss, norm = window.tolist()
                row = {
                    "iteration": step.iteration,
                    "loss": loss / count,
                    "grad_norm": norm / count,
                    "outer_lr": step.lr,
                    **step.report,
                }
                if validates:
                    row |= _validate(config, tasks, algorithm, step.params)
                run.append(row)
                window = np.zeros(3)
            stops = bool(interrupted)  # asked once: what stops here is in a checkpoint
            if last or stops or step.iteration % config["checkpoint_every"] == 0:
                checkpoint = Checkpoint(step.iteration, step.params, step.state, window)
                run.save(checkpoint)
            if stops:
                break
    return checkpoint


def _validate(
    config: Config, tasks: TaskDistribution, algorithm: Algorithm, params: Mapping[str, Array]
) -> dict[str, float]:
    scored = evaluate(
        algorithm,
        tasks,
        params,
        n_tasks=config["validation_tasks"],
        split="validation",
        seed=config["seed"],
    )
    row = {"validation_loss": float(scored.mean()[-1])}
    if scored.accuracy is not None:
        row["validation_accuracy"] = float(scored.mean("accuracy")[-1])
    return row


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """A list that is no longer empty once Ctrl-C or a request to terminate has come.

    The iteration under way ends first. A second Ctrl-C interrupts at once.
    """
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)

    with _handling(note, signal.SIGINT, signal.SIGTERM):
        yield came


@contextmanager
def _handling(
    handler: Callable[[int, FrameType | None], Any], *numbers: signal.Signals
) -> Iterator[None]:
    """Signals of these numbers go to a handler."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)


def _report(
    run: Run,
    tasks: TaskDistribution,
    algorithm: MetaLearner,
    sharded: Algorithm,
    params: Mapping[str, Array],
) -> None:
    """What follows training: the table of test scores, evaluation.json and the pictures."""
    scored = _score(run, tasks, sharded, params)
    # Files first: a closed pipe must not cost the report.
    write_atomically(run.folder / "evaluation.json", score_json(scored, run, "test") + "\n")
    paths: list[Path] = []
    try:
        paths = _draw(run, tasks, algorithm, params, scored, run.folder)
    except ImportError as error:
        say(f"no picture: {error}")
    config = run.config
    print(
        score_table(
            scored, config.loss_name, "test", shown=(0, 1, 5, 10), inner_steps=config.inner_steps
        )
    )
    if paths:
        print("\n" + "\n".join(str(path) for path in paths))


# --- evaluate ---------------------------------------------------------------------------------------


def evaluate_run(
    folder: Path,
    *,
    n_tasks: int | None,
    steps: int | None,
    split: str | None,
    seed: int | None,
    json_file: str | None,
    data: str | None,
    sizes: Mapping[str, int],
    workers: int = 1,
) -> int:
    """Score the newest checkpoint of a run, on tasks of the ``sizes`` given, by name."""
    if data is not None and split is not None:
        raise ValueError("--data is scored on all that is in it; leave out --split")
    if json_file not in (None, "-") and not Path(json_file).resolve().parent.is_dir():
        raise ValueError(f"cannot write {json_file}: its folder does not exist")
    run = Run(folder)
    config = run.config = run.config.with_values(**sizes)
    _check_steps(config, steps)
    tasks = config.tasks() if data is None else _tasks_on(run, data)
    split = split or "test"
    algorithm = config.algorithm(tasks.n_in, tasks.n_out)
    params = run.load().params
    expected = algorithm.init(np.random.default_rng(0), config["dtype"])
    if "ways" in sizes and any(expected[name].shape != params[name].shape for name in expected):
        raise ValueError(
            f"{config['algorithm']} has an output for each class, and cannot be tested with "
            f"{sizes['ways']} ways where it has learned others; leave out --ways"
        )
    with Sharded(algorithm, workers=workers) as sharded:
        scored = _score(
            run, tasks, sharded, params, n_tasks=n_tasks, steps=steps, split=split, seed=seed
        )
    text = score_json(scored, run, split, data)
    if json_file == "-":
        print(text)
        return 0
    # Flushed, so that it comes first if the other file is standard output too.
    where = split if data is None else Path(data).name
    table = score_table(scored, config.loss_name, where, inner_steps=config.inner_steps)
    print(table, flush=True)
    if json_file:
        write_atomically(Path(json_file), text + "\n")
    return 0


def _check_steps(config: Config, steps: int | None) -> None:
    """Raise ValueError if steps are asked for where there are none."""
    if steps is not None and not config.inner_steps:
        raise ValueError(f"{config['algorithm']} takes no inner steps; leave out --steps")


def _tasks_on(run: Run, data: str) -> TaskDistribution:
    """The run's tasks on other data, all of it in the test split."""
    config = run.config
    if config.task == "sinusoid":
        raise ValueError("a sinusoid run has no data to be replaced by --data")
    encoding = Encoding.from_dict(run.encoding()) if config.task == "table" else None
    return config.with_values(data=data, checksum=None, fractions=[0.0, 0.0, 1.0]).tasks(encoding)


def _score(
    run: Run,
    tasks: TaskDistribution,
    algorithm: Algorithm,
    params: Mapping[str, Array],
    *,
    n_tasks: int | None = None,
    steps: int | None = None,
    split: str = "test",
    seed: int | None = None,
) -> Scores:
    """Scores on a split; what is not given is as the run's configuration has it."""
    config = run.config
    return evaluate(
        algorithm,
        tasks,
        params,
        n_tasks=config["eval_tasks"] if n_tasks is None else n_tasks,
        steps=config["eval_steps"] if steps is None else steps,
        split=split,
        seed=config["seed"] if seed is None else seed,
    )


# --- adapt ------------------------------------------------------------------------------------------


def adapt_run(folder: Path, *, support: Path, query: Path, steps: int | None, out: Path | None) -> int:
    """Predict the rows of one CSV file after adapting to those of another."""
    from npmeta.predictions import predict

    run = Run(folder)
    _check_steps(run.config, steps)
    text = predict(run, support, query, steps)
    if run.config["norm"] == "batch":
        say(f"batch normalisation: each prediction depends on all rows of {query}")
    if out is None:
        print(text, end="")
    else:
        write_atomically(out, text)
    return 0


# --- plot -------------------------------------------------------------------------------------------


def plot_run(folder: Path, out: Path | None) -> int:
    """Draw a run's pictures again, from its newest checkpoint."""
    run = Run(folder)
    tasks = run.config.tasks()
    algorithm = run.config.algorithm(tasks.n_in, tasks.n_out)
    params = run.load().params
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    for path in _draw(
        run, tasks, algorithm, params, _score(run, tasks, algorithm, params), out or folder
    ):
        print(path)
    return 0


def _draw(
    run: Run,
    tasks: TaskDistribution,
    algorithm: MetaLearner,
    params: Mapping[str, Array],
    scored: Scores,
    folder: Path,
) -> list[Path]:
    """What was learned, how the scores change with inner steps, and how it came about."""
    from npmeta import plots

    config = run.config
    figures = {}
    if config.inner_steps:
        figures["scores"] = plots.scores(scored, config.loss_name)
    if isinstance(tasks, Sinusoid):
        steps = (0, 1, 10) if config.inner_steps else (None,)
        figures["waves"] = plots.waves(algorithm, params, tasks, steps=steps, seed=config["seed"])
    if isinstance(tasks, Omniglot):
        figures["drawings"] = plots.drawings(
            algorithm, params, tasks, steps=config["eval_steps"], seed=config["seed"]
        )
    rows = run.metrics()
    if rows:
        figures["curves"] = plots.curves(rows, config.loss_name)
    return [plots.save(figure, folder / f"{name}.png") for name, figure in figures.items()]


# --- structure --------------------------------------------------------------------------------------


def _check_picture(picture: Path | None) -> None:
    """Raise ValueError if a picture is asked for where none can be written."""
    if picture is not None and not picture.resolve().parent.is_dir():
        raise ValueError(f"cannot write {picture}: its folder does not exist")
    if picture is not None and picture.suffix.lower() != ".png":
        raise ValueError(f"cannot write {picture}: pictures are PNG; name one that ends in .png")


def show_structure(
    folder: Path, *, n_tasks: int | None, steps: int | None, picture: Path | None
) -> int:
    """The structure that a run has learned, and what becomes of test scores if it is hardened."""
    _check_picture(picture)
    run = Run(folder)
    tasks = run.config.tasks()
    algorithm = run.config.algorithm(tasks.n_in, tasks.n_out)
    if not isinstance(algorithm, StructuredMAML):
        raise ValueError(f"{folder} is of {run.config['algorithm']}, which learns no structure")
    n_tasks = run.config["eval_tasks"] if n_tasks is None else n_tasks
    batch = tasks.sample(run.config["seed"], 0, n_tasks, split="test")
    steps = run.config["eval_steps"] if steps is None else steps
    report = structure_report(algorithm, run.load().params, batch, steps)
    print(report)
    if picture is not None:
        from npmeta import plots

        print(f"\n{plots.save(plots.structure(report), picture)}")
    return 0


# --- list -------------------------------------------------------------------------------------------


def list_all() -> int:
    """What can be named: algorithms with their papers, tasks, presets, activations and losses."""
    rows = [(entry.name, entry.summary, entry.paper) for entry in ALGORITHMS.values()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print("algorithms")
    for name, summary, paper in rows:
        print(f"  {name:<{widths[0]}}  {summary:<{widths[1]}}  {paper}")
    for title, names in (
        ("tasks", TASKS),
        ("presets", [f"{name} ({', '.join(tasks)})" for name, tasks in PRESETS.items()]),
        ("activations", ACTIVATIONS),
        ("losses", LOSSES),
    ):
        print(f"\n{title}\n  {', '.join(names)}")
    return 0


def describe(name: str) -> int:
    """An algorithm, and its options with their defaults."""
    entry = ALGORITHMS[name]
    print(f"{name}: {entry.summary} ({entry.paper})\ntasks: {', '.join(entry.tasks)}")
    own = [
        option
        for option in options_of(name)
        if option.name in entry.defaults or option in entry.options or option.name == "loss"
    ]
    width = max(len(option.name) for option in own)
    for option in own:
        flag = option.name.replace("_", "-")
        print(f"  --{flag:<{width}}  {option.help} {option.shown_default()}".rstrip())
    return 0


# --- check ------------------------------------------------------------------------------------------


def check(picture: Path | None) -> int:
    """Verify npmeta's derivatives on this machine, and draw Taylor's remainders."""
    from npmeta.verification import Verdict, selfcheck

    if picture is not None:
        from npmeta import plots

        plots.save(plots.remainders(selfcheck.slopes()), picture)
    print(textwrap.fill(f"npmeta {__version__}, {selfcheck.machine()}", 79))
    print(f"\n{selfcheck.HEAD}")
    verdicts = []
    for line in selfcheck.run():
        print(line, flush=True)
        verdicts.append(line.verdict)
    failed = verdicts.count(Verdict.FAIL)
    print(f"\n{failed or 'None'} of {len(verdicts)} checks failed.")
    if picture is not None:
        print(picture)
    return int(failed > 0)


# --- doctor -----------------------------------------------------------------------------------------


def examine(case: Path, answers: Path, phi: Path | None, picture: Path | None) -> int:
    """Judge the answers to a case: 0 if the gradient is right, else 1."""
    from npmeta.verification import diagnose
    from npmeta.verification.golden_files import load_answers, load_problem

    _check_picture(picture)
    problem = load_problem(case)
    found = diagnose(problem, *load_answers(answers, problem, phi, case.resolve().name))
    print(found)
    if picture is not None:
        print(f"\n{found.save_picture(picture)}")
    return 0 if found.verdict == "pass" else 1


def list_faults() -> int:
    """Every mistake the doctor knows, with what is computed in place of the gradient."""
    from npmeta.verification import FAULTS

    width = max(map(len, FAULTS))
    print("g = (I − αH_0) ⋯ (I − αH_{S−1}) q,  q = ∇L^Q(φ_S),  H_s = ∇²L^S(φ_s)")
    stage = ""
    for fault in FAULTS.values():
        if fault.stage != stage:
            stage = fault.stage
            print(f"\n{stage}")
        print(f"  {fault.id:<{width}}  {fault.formula}")
    return 0


# --- golden -----------------------------------------------------------------------------------------


def golden_write(folder: Path) -> int:
    """Write the suite of golden vectors."""
    from npmeta.verification import golden

    folder = golden.write(folder)
    size = sum(path.stat().st_size for path in folder.rglob("*.*"))
    print(f"{len(golden.cases())} cases, {size / 1e6:.0f} MB, version {golden.SUITE_VERSION}: {folder}")
    return 0


def golden_list() -> int:
    """Every case of the suite, with what it is there for."""
    from npmeta.verification import golden

    settings = golden.cases()
    width = max(map(len, settings))
    for setting in settings.values():
        print(f"{setting.id:<{width}}  {setting.about}")
    return 0


def golden_check(folder: Path, answers: Path) -> int:
    """Judge answers to the suite: 0 if every one is right, else 1."""
    from npmeta.verification import golden

    found = []
    for result in golden.iter_check(folder, answers):
        if isinstance(result, golden.CaseResult):
            print(result, flush=True)
        found.append(result)
    results = golden.Results.of(found)
    print(f"\n{results.summary}")
    wrong = [case.id for case in results.cases if case.examined]
    if wrong:
        print(f"What to change: npmeta doctor {folder / 'cases' / wrong[0]} {answers}")
    return 0 if results.passed else 1
