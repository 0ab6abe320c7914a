"""The folder of a run: whole files, damaged files, unfinished lines."""

import io
import os
import stat
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

from npmeta._support import files as _files
from npmeta._support.files import write_atomically
from npmeta.cli.checkpoints import Checkpoint
from npmeta.cli.metrics import COLUMNS
from npmeta.cli.runs import Run, TakenError, is_free, locked, new_run
from npmeta.tasks import Encoding
from npmeta.training.config import Config


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
    """Cut the newest file at many lengths, and change every third byte: no wrong number, no crash."""
    run.save(checkpoint(1))
    path = run.save(checkpoint(2))
    whole = path.read_bytes()
    cut = [whole[:n] for n in range(0, len(whole), 23)]
    flipped = [
        whole[:n] + bytes([whole[n] ^ (0x01, 0x08, 0x55, 0x80, 0xFF)[n % 5]]) + whole[n + 1 :]
        for n in range(0, len(whole), 3)
    ]
    stepped_over = 0
    for damaged in cut + flipped:
        path.write_bytes(damaged)
        with pytest.warns() if _is_damaged(path) else _no_warning():
            found = run.load()
        stepped_over += found.iteration == 1
        # Bytes that say nothing about the content (a date, a zip version) may change freely.
        assert same(found, checkpoint(1)) or same(found, checkpoint(2))
    assert stepped_over >= len(cut) + 0.7 * len(flipped)
    path.write_bytes(whole[:100])
    with pytest.warns(UserWarning, match=r"00000002.npz is damaged .*; using the one before it"):
        run.load()


def rewritten(data, change):
    """A zip file with other members."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        members = {name: file.read(name) for name in file.namelist()}
    change(members)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def test_a_member_too_few_or_too_many_is_damage(run):
    path = run.save(checkpoint(1))
    whole = path.read_bytes()
    path.write_bytes(rewritten(whole, lambda members: None))
    assert same(Checkpoint.read(path), checkpoint(1))
    changes = [
        lambda members, name=name: members.pop(name) for name in zipfile.ZipFile(path).namelist()
    ]
    for name in ("params/phi.npy", "buffers/theta.npy", "theta.npy"):
        changes.append(lambda members, name=name: members.update({name: members["window.npy"]}))
    assert len(changes) == 11
    for change in changes:
        path.write_bytes(rewritten(whole, change))
        with pytest.raises(ValueError, match="is damaged"):
            Checkpoint.read(path)


def test_an_encrypted_member_is_damage(run):
    path = run.save(checkpoint(1))
    whole = bytearray(path.read_bytes())
    whole[whole.index(b"PK\x01\x02") + 8] |= 1  # the bit that says so, which zipfile has an error of
    path.write_bytes(whole)  # its own for
    with pytest.raises(ValueError, match="is damaged"):
        Checkpoint.read(path)


def test_checkpoints_are_in_order_of_their_numbers(run):
    for i in (99_999_999, 100_000_000, 5):
        (run.folder / "checkpoints" / f"{i:08d}.npz").write_bytes(checkpoint(i).to_bytes())
    (run.folder / "checkpoints" / "5 (copy).npz").write_bytes(b"")
    assert [int(path.stem) for path in run.checkpoints()] == [5, 99_999_999, 100_000_000]
    assert run.load().iteration == 100_000_000


def test_damaged_files_of_later_iterations_take_no_place(run):
    for i in (10, 20, 30, 40, 50):
        run.save(checkpoint(i))
    for path in run.checkpoints()[1:]:
        path.write_bytes(b"")
    with pytest.warns(UserWarning, match="damaged"):
        assert run.load().iteration == 30
    for i, kept in ((31, [30, 31]), (32, [30, 31, 32]), (33, [31, 32, 33])):
        run.save(checkpoint(i))
        assert [int(path.stem) for path in run.checkpoints()] == kept


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


def test_a_new_name_reaches_the_disk_with_its_folder(tmp_path, monkeypatch):
    synced = []

    def fsync(handle):
        synced.append(stat.S_ISDIR(os.fstat(handle).st_mode))

    monkeypatch.setattr(_files.os, "fsync", fsync)
    write_atomically(tmp_path / "file", "new")
    assert synced == [False, True]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("there", "not yet there"):
        target, link = tmp_path / "folder" / name, tmp_path / f"link to {name}"
        if name == "there":
            target.write_text("old")
        link.symlink_to(target)
        write_atomically(link, "new")
        assert link.is_symlink()
        assert target.read_text() == "new"
    assert len(list(tmp_path.rglob("*"))) == 5


def test_a_file_keeps_its_mode_and_a_new_one_gets_that_of_any_other(tmp_path):
    old, new, plain = tmp_path / "old", tmp_path / "new", tmp_path / "plain"
    old.touch()
    old.chmod(0o640)
    plain.touch()
    for path in (old, new):
        write_atomically(path, "text")
    assert stat.S_IMODE(old.stat().st_mode) == 0o640
    assert new.stat().st_mode == plain.stat().st_mode


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_what_is_no_file_is_written_to(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    came = []
    reader = threading.Thread(target=lambda: came.append(pipe.read_text()), daemon=True)
    reader.start()
    write_atomically(pipe, "through")
    reader.join(10)
    assert came == ["through"]
    assert pipe.is_fifo()
    write_atomically(Path("/dev/null"), "away")
    assert not Path("/dev/null").is_file()


def test_one_process_at_a_time_trains_a_run(run):
    pytest.importorskip("fcntl")
    with (
        locked(run.folder),
        pytest.raises(ValueError, match="is being trained by another process"),
        locked(run.folder),
    ):
        pass
    with locked(run.folder):  # free again
        pass


def test_of_two_that_find_a_folder_empty_one_gets_it(tmp_path, monkeypatch):
    """The lock decides, and after it what the first has made."""
    folder, config = tmp_path / "run", Config("sinusoid")
    with (
        new_run(folder, config, None, checkpoint(0)),
        pytest.raises(TakenError, match="exists and is not empty"),
        new_run(folder, config, None, checkpoint(0)),
    ):
        pass
    from npmeta.cli import runs

    monkeypatch.setattr(runs, "_check_free", lambda folder: None)
    with (
        new_run(folder, config, None, checkpoint(0)),
        pytest.raises(TakenError, match="is being trained by another process"),
        new_run(folder, config, None, checkpoint(0)),
    ):
        pass


BIRTH = ["checkpoints/", "metrics.csv", "encoding.json", "checkpoints/00000000.npz"]


@pytest.mark.parametrize("n_made", range(len(BIRTH) + 1))
def test_what_a_run_killed_at_its_birth_has_left_is_free(tmp_path, n_made):
    for name in BIRTH[:n_made]:
        path = tmp_path / "run" / name
        if name.endswith("/"):
            path.mkdir(parents=True)
        else:
            path.write_text("iteration,loss,grad_norm,outer_lr,validation_loss,validation_accuracy\n")
    if n_made:
        (tmp_path / "run" / ".config.toml.0123456789ab").write_text("half")
        with pytest.raises(ValueError, match="began it was stopped; train anew with --out"):
            Run(tmp_path / "run")
    assert is_free(tmp_path / "run")
    run = Run.create(tmp_path / "run", Config("sinusoid"), None, checkpoint(0))
    assert same(run.load(), checkpoint(0))
    found = {path.relative_to(run.folder).as_posix() for path in run.folder.rglob("*")}
    assert found == {"checkpoints", "checkpoints/00000000.npz", "metrics.csv", "config.toml"}


@pytest.mark.parametrize(
    "names",
    [
        ["metrics.csv"],
        ["checkpoints/00000001.npz"],
        ["checkpoints/00000000.npz", "notes.txt"],
        ["checkpoints/mine.npz"],
    ],
)
def test_what_somebody_else_has_made_is_not_free(tmp_path, names):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("theirs")
    with pytest.raises(TakenError, match="exists and is not empty"):
        Run.create(tmp_path, Config("sinusoid"), None, checkpoint(0))
    assert all((tmp_path / name).read_text() == "theirs" for name in names)
    (tmp_path / "file").write_text("theirs")
    assert not is_free(tmp_path / "file")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert not is_free(tmp_path / "link")


def test_what_makes_a_folder_a_run_is_written_last(tmp_path, monkeypatch):
    """Whenever the process ends, a folder with a config.toml can be gone on with."""
    from npmeta.cli import runs

    written = []

    def write(path, content, **options):
        written.append(path.name)
        write_atomically(path, content, **options)

    monkeypatch.setattr(runs, "write_atomically", write)
    run = Run.create(tmp_path / "run", Config("sinusoid"), {}, checkpoint(0))
    assert set(written[:-1]) == {"encoding.json", "metrics.csv", "00000000.npz"}
    assert written[-1] == "config.toml"
    assert same(run.load(), checkpoint(0))


def test_metrics_read_back_exactly_and_lose_what_comes_after_a_checkpoint(run):
    rows = [{"iteration": i, "loss": 0.1 * i, "grad_norm": 1 / 3, "outer_lr": 1e-3} for i in (1, 2, 3)]
    rows[1]["validation_loss"] = 2 / 3
    for row in rows:
        run.append(row)
    assert run.metrics() == rows
    whole = (run.folder / "metrics.csv").read_bytes()
    cut = b"3,0.3,0.3,0.001,0.5,0.8"  # of a line that went on: it has no end
    nothing = bytes(100)  # what a power failure may leave
    for unfinished in (
        b"4",
        b"4,0.4",
        b"4,0.4,0.3333,0.0",
        cut,
        nothing,
        nothing + b"\n",
        b"\xff\n",
        b",,,,,\n",
    ):
        (run.folder / "metrics.csv").write_bytes(whole + unfinished)
        assert run.metrics() == rows
        run.go_on(checkpoint(3))
        assert (run.folder / "metrics.csv").read_bytes() == whole
    run.go_on(checkpoint(2))
    assert run.metrics() == rows[:2]


def test_metrics_take_further_columns(run):
    """What an algorithm reports; rows before it have empty cells, and those without it too."""
    rows = [{"iteration": i, "loss": 0.1 * i, "grad_norm": 1 / 3, "outer_lr": 1e-3} for i in (1, 2, 3)]
    rows[1] |= {"inner_steps": 7, "inner_residual": 1 / 3}
    for row in rows:
        run.append(row)
    assert run.metrics() == rows
    lines = (run.folder / "metrics.csv").read_text().splitlines()
    assert lines[0] == ",".join([*COLUMNS, "inner_steps", "inner_residual"])
    assert {line.count(",") for line in lines} == {7}
    run.go_on(checkpoint(1))
    run.append(rows[1])
    assert run.metrics() == rows[:2]


def test_folders_that_are_no_runs(tmp_path, run):
    with pytest.raises(ValueError, match="no such run"):
        Run(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"is not a run: it has no config\.toml"):
        Run(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"exists and is not empty.*--resume"):
        Run.create(run.folder, run.config, None)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is not a folder"):
        Run.create(tmp_path / "file", run.config, None)
    (run.folder / "metrics.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match=r"metrics.csv cannot be read"):
        run.metrics()
    with pytest.raises(ValueError, match=r"encoding.json cannot be read"):
        run.encoding()


def test_a_folder_that_is_there_and_empty_can_be_used(tmp_path):
    encoding = Encoding(("x",), "y", (0.0,), (1.0,))
    Run.create(tmp_path, Config("sinusoid"), encoding.to_dict())
    assert Run(tmp_path).config.values == Config("sinusoid").values
    assert Run(tmp_path).encoding() == encoding


def rows_of(iterations):
    return [
        {"iteration": i, "loss": 0.1 * i, "grad_norm": 1 / 3, "outer_lr": 1e-3, "validation_loss": None}
        for i in iterations
    ]


def test_rows_that_a_checkpoint_has_counted_are_missed(run):
    for row in rows_of((1, 2, 3)):
        run.append(row)
    run.save(checkpoint(3))
    run.append(rows_of([4])[0] | {"inner_steps": 2})  # a further column changes every line
    path = run.folder / "metrics.csv"
    whole = path.read_bytes()
    kept = Run(run.folder).load()
    assert kept.rows.tolist()[0] == 3
    Run(run.folder).check_metrics(kept)
    lines = whole.splitlines(keepends=True)
    for damaged, said in (
        (b"".join(lines[:3]), "now it has 2"),
        (lines[0], "now it has 0"),
        (whole.replace(b"0.30000000000000004", b"0.30000000000000005"), "now they are others"),
        (b"".join([*lines[:3], lines[3].replace(b"3,0.3", b"7,0.3"), lines[4]]), "now it has 2"),
        (b"".join([*lines[:3], lines[4]]), "now it has 2"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"it had 3 rows, and {said}; restore it"):
            Run(run.folder).check_metrics(kept)
    path.write_bytes(whole)
    again = Run(run.folder)
    again.go_on(kept)
    assert path.read_bytes().splitlines(keepends=True) == lines[:4]
    again.append(rows_of([4])[0])
    again.save(checkpoint(4))
    Run(run.folder).check_metrics(again.load())


def test_without_metrics_a_run_goes_on_with_new_ones(run):
    for row in rows_of((1, 2)):
        run.append(row)
    run.save(checkpoint(2))
    (run.folder / "metrics.csv").unlink()
    for n in range(2):  # the second time as if it had been killed before its next checkpoint
        again = Run(run.folder)
        assert again.metrics() == ([] if n == 0 else [{"iteration": 3.0, "loss": 0.5}])
        kept = again.load()
        again.check_metrics(kept)
        if n == 0:
            with pytest.warns(UserWarning, match="metrics.csv is missing; a new one begins"):
                again.go_on(kept)
        else:
            again.go_on(kept)
        assert again.metrics() == []
        again.append({"iteration": 3, "loss": 0.5})


def test_a_checkpoint_of_before_rows_were_counted_is_read(run):
    path = run.folder / "checkpoints" / "00000005.npz"
    path.write_bytes(checkpoint(5).to_bytes())
    kept = run.load()
    assert same(kept, checkpoint(5))
    assert kept.rows is None
    run.check_metrics(kept)


def test_links_and_pipes_in_a_run_are_replaced_and_not_followed(run, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("evaluation.json", "config.toml", "checkpoints/00000001.npz", "metrics.csv"):
        theirs = outside / name.replace("/", "-")
        theirs.write_text((run.folder / name).read_text() if name == "metrics.csv" else "theirs")
        (run.folder / name).unlink(missing_ok=True)
        (run.folder / name).symlink_to(theirs)
    before = {path.name: path.read_bytes() for path in outside.iterdir()}
    with pytest.raises(OSError, match=r"metrics\.csv"):  # O_NOFOLLOW
        run.append({"iteration": 1})
    run.go_on(checkpoint(0))
    run.append({"iteration": 1})
    run.write("evaluation.json", "{}")
    run.write("config.toml", run.config.to_toml())
    run.save(checkpoint(1))
    assert {path.name: path.read_bytes() for path in outside.iterdir()} == before
    assert not any(path.is_symlink() for path in run.folder.rglob("*"))
    (run.folder / "evaluation.json").unlink()
    os.mkfifo(run.folder / "evaluation.json")
    run.write("evaluation.json", "{}")
    assert (run.folder / "evaluation.json").is_file()
    assert Run(run.folder).load().iteration == 1


def test_what_a_killed_process_was_making_goes_and_what_a_living_one_makes_stays(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    names = [
        ".file.0123456789ab",
        ".other.0123456789ab",
        ".file.0123456789xy",
        ".file",
        "file.0123456789ab",
    ]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / ".file.aaaaaaaaaaaa").mkdir()
    (tmp_path / ".file.aaaaaaaaaaaa" / "half").touch()
    (tmp_path / ".file.bbbbbbbbbbbb").symlink_to(tmp_path / ".file")
    with open(tmp_path / ".file.cccccccccccc", "x") as living:
        fcntl.flock(living, fcntl.LOCK_EX)
        write_atomically(tmp_path / "file", "new")
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {*names[1:], "file", ".file.bbbbbbbbbbbb", living.name.rsplit("/")[-1]}
    _files.sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*names[2:], "file", ".file.bbbbbbbbbbbb"}


def test_what_has_been_put_aside_stays_as_long_as_nothing_is_in_its_place(tmp_path):
    aside = tmp_path / ".suite.0123456789ab.old"
    aside.mkdir()
    _files.sweep(tmp_path, "suite")
    assert aside.is_dir()
    (tmp_path / "suite").mkdir()
    _files.sweep(tmp_path, "suite")
    assert not aside.exists()


def test_a_file_that_is_swept_before_its_lock_is_made_again(tmp_path, monkeypatch):
    real, n = _files.lock, 0

    def late(handle, **options):
        nonlocal n
        n += 1
        if n == 1:
            _files.lock = real
            _files.sweep(tmp_path)
            _files.lock = late
        return real(handle, **options)

    monkeypatch.setattr(_files, "lock", late)
    write_atomically(tmp_path / "file", "new")
    with _files.folder_in_the_making(tmp_path / "folder") as making:
        os.replace(making, tmp_path / "folder")
    assert n == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_failed_write_names_its_file_once(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomically(tmp_path / "file", "new")
    assert str(caught.value) == f"[Errno 28] No space left on device: '{tmp_path / 'file'}'"
