"""``npmeta train``: runs, begun and gone on with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from npmeta._support import signals as _signals
from npmeta._support.validation import Array
from npmeta.algorithms.base import MetaLearner
from npmeta.bilevel import optimizers
from npmeta.cli.checkpoints import Checkpoint
from npmeta.cli.commands.results import diverged, draw, pictures, score
from npmeta.cli.commands.words import say
from npmeta.cli.progress import Progress
from npmeta.cli.reports import score_json, score_table
from npmeta.cli.runs import Run, TakenError, is_free, locked, new_run
from npmeta.tasks.checks import existing
from npmeta.tasks.registry import TaskDistribution
from npmeta.training.config import Config
from npmeta.training.loop import Algorithm, NonFiniteError, evaluate, meta_train
from npmeta.training.parallel import Sharded, default_shard_size


def start_run(config: Config, folder: Path | None, workers: int = 1) -> int:
    """Train from the beginning in a new folder. Nothing is written before everything is checked."""
    tasks = config.tasks()
    settled: dict[str, Any] = {}
    if config.kind.has_data:
        settled = {"data": str(existing(config["data"]).resolve()), "checksum": tasks.checksum}
    if config["loss"] is None:
        settled["loss"] = "mse" if tasks.n_out == 1 else "cross_entropy"
    config = config.with_values(**settled)
    algorithm = config.algorithm(tasks.n_in, tasks.n_out)
    params = algorithm.init(np.random.default_rng(config["seed"]), config["dtype"])
    if config["shard_size"] is None:
        n_params = sum(array.size for array in params.values())
        config = config.with_values(shard_size=default_shard_size(config["meta_batch"], n_params))
    for split in ("train", "validation", "test"):
        one = tasks.sample(config["seed"], 0, 1, split=split)
        try:
            algorithm.evaluate(params, one, 0)
        except ValueError as error:
            named = f"{config['algorithm']} with the loss {config['loss']}"
            raise ValueError(f"{named} does not fit {config.task}: {error}") from None
    config.schedule()
    start = Checkpoint(0, params, optimizers.get(config["optimizer"]).init(params), np.zeros(3))

    encoding = tasks.encoding.to_dict() if config.kind.encodes else None
    with ExitStack() as stack:
        run = _begin(stack, folder, config, encoding, start)
        return _train(run, tasks, algorithm, start, workers)


def _begin(
    stack: ExitStack,
    folder: Path | None,
    config: Config,
    encoding: Mapping[str, Any] | None,
    start: Checkpoint,
) -> Run:
    """A new run in a folder, or in the first of runs/TASK-1, runs/TASK-2, ... that is free."""
    if folder is not None:
        return stack.enter_context(new_run(folder, config, encoding, start))
    n = 1
    while True:
        place = Path("runs", f"{config.task}-{n}")
        if is_free(place):
            with suppress(TakenError):  # by a process that has come first
                return stack.enter_context(new_run(place, config, encoding, start))
        n += 1


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
    checkpoint.check_fit(config, algorithm)
    run.check_metrics(checkpoint)  # nothing has been written yet
    if (folder / "checkpoints").is_symlink():
        raise ValueError(f"{folder / 'checkpoints'} is a link; a run writes to a folder of its own")
    missing = find_spec("matplotlib") and not all((folder / name).exists() for name in pictures(config))
    whole = made == iterations and (folder / "evaluation.json").exists() and not missing
    if not whole:
        run.go_on(checkpoint)  # the first to be written: where that cannot be, nothing has changed
    if changed:
        run.config = config
        run.write("config.toml", config.to_toml())
    if whole:
        say(f"{folder} has made its {iterations} iterations; --iterations N goes on to more")
        return 0
    # Scores and pictures of fewer iterations; without them, an interrupt before the new ones can be
    # made good.
    for name in ("evaluation.json", *pictures(config)):
        (folder / name).unlink(missing_ok=True)
    say(f"going on from iteration {made} of {iterations}")
    return _train(run, tasks, algorithm, checkpoint, workers)


def _train(
    run: Run, tasks: TaskDistribution, algorithm: MetaLearner, start: Checkpoint, workers: int
) -> int:
    """Train, and report; or say why not, and how to go on."""
    config = run.config
    n_params = sum(array.size for array in start.params.values())
    counted = f"{n_params} meta-parameter{'s' * (n_params != 1)}"
    say(f"{config.task}: {config['algorithm']}, {counted}, in {run.folder}")
    with _sharded(config, algorithm, workers) as sharded:
        try:
            with _signals.noted() as interrupted:
                checkpoint = _iterate(run, tasks, sharded, start, interrupted)
        except NonFiniteError as error:
            say(f"npmeta: training stopped: {error}; the newest checkpoint is {run.checkpoints()[-1]}")
            return 1
        if interrupted:
            say(
                f"stopped after iteration {checkpoint.iteration} of {config['iterations']}; "
                f"to go on: npmeta train --resume {run.folder}"
            )
            return 128 + interrupted[0]
        return _report(run, tasks, algorithm, sharded, checkpoint.params)


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
        start.params,
        tasks,
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
        params,
        tasks,
        n_tasks=config["validation_tasks"],
        split="validation",
        seed=config["seed"],
    )
    row = {"validation_loss": float(scored.mean()[-1])}
    if scored.accuracy is not None:
        row["validation_accuracy"] = float(scored.mean("accuracy")[-1])
    return row


def _report(
    run: Run,
    tasks: TaskDistribution,
    algorithm: MetaLearner,
    sharded: Algorithm,
    params: Mapping[str, Array],
) -> int:
    """What follows training: evaluation.json, the table of test scores and the pictures.

    1 if a task of the test has diverged, else 0.
    """
    scored = score(run, tasks, sharded, params)
    # The file first: a closed pipe must not cost it. The pictures last: they must not cost the table.
    run.write("evaluation.json", score_json(scored, run, "test") + "\n")
    config = run.config
    table = score_table(
        scored, config.loss_name, "test", shown=(0, 1, 5, 10), inner_steps=config.inner_steps
    )
    print(table, flush=True)
    try:
        paths = draw(run, tasks, algorithm, params, scored, run.folder)
    except ImportError as error:
        say(f"no picture: {error}")
    else:
        print("\n" + "\n".join(str(path) for path in paths))
    return diverged(scored, "test")
