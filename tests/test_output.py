"""Output in any encoding, on streams that break; signals at any moment; pictures under any backend."""

import ast
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import npmeta
from npmeta._support import output as _output
from npmeta._support import signals as _signals
from npmeta._support.output import ASCII, LONGEST, READABLE, Lasting, one_line, printable
from npmeta.cli.main import main
from npmeta.cli.progress import Progress

ENCODINGS = ["ascii", "cp1252", "latin-1", "cp437", "utf-16", "shift_jis"]
SMALL = ["train", "sinusoid", "--hidden", "4", "--meta-batch", "2", "--eval-tasks", "4"]


def run(*words, **options):
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", **options.pop("env", {})}
    return subprocess.run(
        [sys.executable, "-m", "npmeta", *map(str, words)], env=environment, timeout=60, **options
    )


def test_every_sign_that_npmeta_writes_has_an_ascii_form():
    missing = set()
    for path in Path(npmeta.__file__).parent.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                printed = "" if id(node) in docstrings else node.value
                missing |= {one for one in printed if ord(one) > 127} - set(ASCII)
    assert missing - set(_output.JOINERS) == set()


def test_what_an_encoding_lacks_is_readable():
    assert "4.0 ± 1 − α² ✓ é".encode("ascii", READABLE) == rb"4.0 +/- 1 - alpha^2 ok \xe9"
    assert "a\udcff".encode("utf-8", READABLE) == rb"a\udcff"


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_commands_write_in_any_encoding(encoding):
    for words in ["list"], ["doctor", "--list"], ["train", "--help"]:
        done = run(*words, capture_output=True, env={"PYTHONIOENCODING": encoding})
        assert done.returncode == 0
        assert done.stderr == b""
        assert done.stdout.decode(encoding)


def test_control_characters_do_not_pass():
    assert printable("a\x1b[31m\u202eb\tc\nd é\u00a0f") == "a\\x1b[31m\\u202eb\\tc\nd é\u00a0f"
    assert one_line("a\n \x1b]0;t\x07 b") == r"a \x1b]0;t\x07 b"


def test_a_message_is_no_longer_than_a_screen():
    told = one_line("a" * 10**6 + "z")
    assert len(told) < LONGEST + 50
    assert told.startswith("aaa")
    assert told.endswith("z")
    assert f"({10**6 + 1 - LONGEST} characters left out)" in told


class Broken(io.StringIO):
    def write(self, text):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("stream", [Broken(), None, "closed"])
def test_progress_ends_nothing(stream):
    if stream == "closed":
        stream = io.StringIO()
        stream.close()
    with Progress(3, stream=stream) as progress:
        for i in range(3):
            progress.update(i + 1, 1.0)


def test_what_was_lost_is_kept_but_a_reader_may_leave():
    lasting = Lasting(Broken())
    lasting.write("x")
    assert lasting.lost.errno == 28
    lasting.error = BrokenPipeError(32, "Broken pipe")
    assert lasting.lost is None


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_run_goes_on_whatever_becomes_of_its_streams(tmp_path):
    made = {"evaluation.json", "scores.png", "waves.png", "curves.png", "checkpoints"}
    with open("/dev/full", "w") as full:
        for i, (status, streams) in enumerate(
            [
                (0, {"stderr": full, "stdout": subprocess.DEVNULL}),
                (2, {"stdout": full, "stderr": subprocess.PIPE}),
                (0, {"preexec_fn": lambda: (os.close(1), os.close(2))}),
            ]
        ):
            folder = tmp_path / str(i)
            done = run(*SMALL, "--iterations", 20, "--out", folder, **streams)
            assert done.returncode == status
            assert {path.name for path in folder.iterdir()} >= made
            assert (folder / "checkpoints/00000020.npz").exists()
    # A reader of the progress that leaves after a line.
    process = subprocess.Popen(
        [sys.executable, "-m", "npmeta", *SMALL, "--iterations", "400", "--out", str(tmp_path / "p")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    process.stderr.readline()
    process.stderr.close()
    assert process.wait(60) == 0
    assert (tmp_path / "p/evaluation.json").exists()


def test_main_leaves_streams_and_signals_as_they_were(capsys):
    before = (sys.stdout, sys.stderr, sys.unraisablehook, *map(signal.getsignal, _signals.ENDING))
    errors = sys.stdout.errors
    assert main(["list"]) == main(["--version"]) == 0
    after = (sys.stdout, sys.stderr, sys.unraisablehook, *map(signal.getsignal, _signals.ENDING))
    assert after == before
    assert sys.stdout.errors == errors


def test_what_is_ignored_stays_ignored():
    hup = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with _signals.raised() as came, _signals.noted() as noted:
            signal.raise_signal(signal.SIGHUP)
        assert came == noted == []
    finally:
        signal.signal(signal.SIGHUP, hup)


def test_a_terminal_that_is_closed_hangs_up_twice():
    with _signals.noted() as came:
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
    assert came == [signal.SIGHUP] * 2


def test_an_interrupt_in_a_destructor_is_not_lost():
    class Dies:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    def die_and_wait():
        Dies()
        time.sleep(5)

    with _signals.raised(), pytest.raises(KeyboardInterrupt) as caught:
        die_and_wait()
    assert _signals.number_of(caught.value) == signal.SIGTERM


#: A signal at the n-th import or opening of a file after main has begun.
AT_AN_EVENT = """
import os, sys
from npmeta.cli import main as cli
from npmeta.__main__ import command
number, left = int(sys.argv.pop(1)), [int(sys.argv.pop(1))]
def hook(event, args):
    if event in ("import", "open"):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), number)
sys.addaudithook(hook)
command()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("event", [2, 30, 200, 400, 600])
def test_a_signal_at_any_moment_is_one_line(tmp_path, number, event):
    words = [*SMALL, "--iterations", "5", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-c", AT_AN_EVENT, str(int(number)), str(event), *words],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 128 + number, done.stderr
    assert "Traceback" not in done.stderr
    assert "interrupted" in done.stderr.splitlines()[-1] or "to go on:" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("backend", ["nonsense", "module://nowhere.backend"])
def test_pictures_do_not_depend_on_the_backend(tmp_path, backend):
    pytest.importorskip("matplotlib")
    out = tmp_path / "run"
    done = run(
        *SMALL, "--iterations", 2, "--out", out, capture_output=True, env={"MPLBACKEND": backend}
    )
    assert done.returncode == 0, done.stderr
    assert (out / "waves.png").exists()


def test_a_script_on_standard_input_and_a_daemon_are_told_what_to_do():
    script = """
import npmeta as nm, numpy as np, multiprocessing as mp
from npmeta.training.parallel import Sharded
model = nm.MLP([1, 4, 1]); maml = nm.MAML(model, inner_lr=0.1)
params = maml.init(np.random.default_rng(0))
tasks = nm.tasks.Sinusoid().sample(0, 1, 8)
mp.current_process()._config["daemon"] = DAEMON
try:
    Sharded(maml, 2, workers=2).meta_gradient(params, tasks)
except RuntimeError as error:
    print(error)
"""
    for daemon, told in ("False", "save the script"), ("True", "leave out workers"):
        done = subprocess.run(
            [sys.executable, "-"],
            input=script.replace("DAEMON", daemon),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stderr == ""
        assert told in done.stdout


#: An interrupt when NumPy begins to be imported, before main.
AT_AN_IMPORT = """
import os, signal, sys
from npmeta.__main__ import command
def hook(event, args):
    if event == "import" and args[0] == "numpy":
        os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(hook)
command()
"""


def test_an_interrupt_before_anything_has_begun_is_no_traceback():
    done = subprocess.run([sys.executable, "-c", AT_AN_IMPORT, "list"], capture_output=True, text=True)
    assert done.returncode == -signal.SIGINT
    assert done.stderr == ""
    assert done.stdout == ""
