"""The folder of a run: whole files, damaged files, unfinished lines."""

import numpy as np
import pytest

from npmeta import _files
from npmeta._files import write_atomically
from npmeta.config import Config
from npmeta.runs import Checkpoint, Run


def checkpoint(iteration, dtype=np.float32):
    rng = np.random.default_rng(iteration)
    params = {"theta": rng.normal(size=50).astype(dtype), "inner_lr": np.asarray(0.1, dtype=dtype)}
    state = {"m/theta": rng.normal(size=50).astype(dtype), "count": np.asarray(iteration)}
    return Checkpoint(iteration, params, state, np.array([3.0, 0.1, 0.2]))


def same(a, b):
    return a.iteration == b.iteration and all(
        set(x) == set(y) and all((x[k] == y[k]).all() and x[k].dtype == y[k].dtype for k in x)
        for x, y in ((a.params, b.params), (a.state, b.state), ({"w": a.window}, {"w": b.window}))
    )


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path / "run", Config("sinusoid"), None)


def test_a_checkpoint_reads_back_bit_for_bit(run):
    path = run.save(checkpoint(7))
    assert path.name == "00000007.npz"
    assert same(run.load(), checkpoint(7))
    assert checkpoint(7).to_bytes() == checkpoint(7).to_bytes()  # and its file is reproducible


def test_the_newest_three_are_kept(run):
    for i in (1, 20, 300, 4000, 50000):
        run.save(checkpoint(i))
    assert [path.stem for path in run.checkpoints()] == ["00000300", "00004000", "00050000"]
    assert run.load().iteration == 50000


def test_any_damage_is_noticed_named_and_stepped_over(run):
    """Cut the newest file at every length, and flip every third byte: no wrong number, no crash."""
    run.save(checkpoint(1))
    path = run.save(checkpoint(2))
    whole = path.read_bytes()
    cut = [whole[:n] for n in range(0, len(whole), 7)]
    flipped = [whole[:n] + bytes([whole[n] ^ 0x55]) + whole[n + 1 :] for n in range(0, len(whole), 3)]
    stepped_over = 0
    for damaged in cut + flipped:
        path.write_bytes(damaged)
        with pytest.warns() if _is_damaged(path) else _no_warning():
            found = run.load()
        stepped_over += found.iteration == 1
        # Bytes that say nothing about the content (a date, a zip version) may change freely.
        assert same(found, checkpoint(1)) or same(found, checkpoint(2))
    assert stepped_over >= len(cut) + 0.75 * len(flipped)
    path.write_bytes(whole[:100])
    with pytest.warns(UserWarning, match=r"00000002.npz is damaged .*; using the one before it"):
        run.load()


def _is_damaged(path):
    try:
        Checkpoint.read(path)
    except ValueError:
        return True
    return False


class _no_warning:
    def __enter__(self):
        pass

    def __exit__(self, *error):
        pass


def test_without_a_whole_checkpoint_there_is_an_error(run):
    with pytest.raises(ValueError, match="has no checkpoint that can be read"):
        run.load()
    run.save(checkpoint(1)).write_bytes(b"")
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(ValueError, match="no checkpoint"):
        run.load()


def test_a_pickle_is_never_read(run):
    path = run.folder / "checkpoints" / "00000009.npz"
    np.savez(
        path, **{"params/theta": np.array([{}], dtype=object), "iteration": 9, "window": np.zeros(3)}
    )
    with pytest.raises(ValueError, match="is damaged"):
        Checkpoint.read(path)


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, "old")

    def fail(*args):
        raise OSError("no space left")

    monkeypatch.setattr(_files.os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]  # and nothing is left lying about
    with pytest.raises(ValueError, match="is not a folder"):
        write_atomically(tmp_path / "absent" / "file", "new")


def test_metrics_read_back_exactly_and_lose_what_comes_after_a_checkpoint(run):
    rows = [{"iteration": i, "loss": 0.1 * i, "grad_norm": 1 / 3, "outer_lr": 1e-3} for i in (1, 2, 3)]
    rows[1]["validation_loss"] = 2 / 3
    for row in rows:
        run.append(row)
    assert run.metrics() == rows
    whole = (run.folder / "metrics.csv").read_bytes()
    for unfinished in (b"4", b"4,0.4", b"4,0.4,0.3333,0.0"):
        (run.folder / "metrics.csv").write_bytes(whole + unfinished)
        run.truncate_metrics(3)
        assert (run.folder / "metrics.csv").read_bytes() == whole
    run.truncate_metrics(2)
    assert run.metrics() == rows[:2]


def test_folders_that_are_no_runs(tmp_path, run):
    with pytest.raises(ValueError, match="no such run"):
        Run(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"is not a run: it has no config\.toml"):
        Run(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"exists and is not empty.*--resume"):
        Run.create(run.folder, run.config, None)
    (run.folder / "metrics.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match=r"metrics.csv cannot be read"):
        run.metrics()
    with pytest.raises(ValueError, match=r"encoding.json cannot be read"):
        run.encoding()


def test_a_folder_that_is_there_and_empty_can_be_used(tmp_path):
    Run.create(tmp_path, Config("sinusoid"), {"features": ["x"]})
    assert Run(tmp_path).config.values == Config("sinusoid").values
    assert Run(tmp_path).encoding() == {"features": ["x"]}
