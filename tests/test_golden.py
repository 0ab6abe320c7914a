"""Golden vectors: what is in the files, that they are right, and that answers are judged."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import zipfile
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

import npmeta as nm
from npmeta.algorithms.registry import ALGORITHMS as REGISTRY
from npmeta.cli.main import main
from npmeta.network.activations import ACTIVATIONS
from npmeta.network.losses import LOSSES
from npmeta.network.normalisation import NORMS
from npmeta.verification import FAULTS, golden
from npmeta.verification.doctor.files import load_problem, read_case
from npmeta.verification.doctor.tensors import load_arrays, npz_bytes, safetensors_bytes
from npmeta.verification.golden.algorithms import ALGORITHMS, golden_case
from npmeta.verification.golden.families import SETTINGS
from npmeta.verification.golden.suite import inputs_digest
from npmeta.verification.golden.words import ACTIVATION_FORMULAS, LOSS_FORMULAS
from tests.workers import made_once

ROOT = Path(__file__).parent.parent
IDS = [setting.id for setting in SETTINGS]
FEW = ["base", "steps-1", "first-order-tanh", "edge-relu-at-0", "loss-cross_entropy"]
#: The last of each family, every third case, and what is asked for by name;
#: tests/peers/test_golden_suite.py has all of them.
QUICK = {setting.family: setting.id for setting in SETTINGS}.values()
QUICK = {*QUICK, *IDS[::3], *FEW, "steps-0", "steps-2", "activation-relu", "relation-sum"}

#: Version of the suite, and SHA-256 of the inputs of all of its cases. Where the second changes, but by
#: another case alone, the first has to.
INPUTS = (1, "ad90de402c71cdc39a61d939ccdfc9051e0bbdcca83ed0c6a05db3f2dd88098e")


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Path:
    only = [id for id in IDS if id in QUICK]
    return made_once(tmp_path_factory, "golden", lambda path: golden.write(path, only))


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    return golden.write(tmp_path_factory.mktemp("golden") / "few", only=FEW)


@cache
def ids_of(suite: Path, algorithm: str = "") -> list[str]:
    """The cases that have been written, in the order of the suite; of one algorithm, or of the others
    where it begins with a minus."""
    ids = [entry["id"] for entry in golden.read_index(suite)["cases"]]
    wanted, other = algorithm.removeprefix("-"), algorithm.startswith("-")
    return [
        id for id in ids if not algorithm or (document(suite, id)["algorithm"] == wanted) is not other
    ]


@cache
def document(suite: Path, id: str) -> dict:
    return json.loads((suite / "cases" / id / "case.json").read_text("utf-8"))


@cache
def tensors(suite: Path, id: str) -> dict[str, np.ndarray]:
    return load_arrays(suite / "cases" / id / "tensors.safetensors")


def answers(suite: Path, prefix: str, ids=None, dtype=np.float64) -> dict[str, np.ndarray]:
    """Tensors of cases that begin with a prefix, as answers."""
    return {
        f"{id}/{name.removeprefix(prefix)}": array.astype(dtype)
        for id in (ids_of(suite) if ids is None else ids)
        for name, array in tensors(suite, id).items()
        if name.startswith(prefix)
    }


def flat(arrays: dict[str, np.ndarray], prefix: str, names: list[str]) -> np.ndarray:
    return np.concatenate([arrays[f"{prefix}.{name}"].reshape(-1) for name in names])


# --- the files --------------------------------------------------------------------------------------


def test_the_index_has_every_file_and_its_sum(suite):
    index = golden.read_index(suite)
    present = {path.relative_to(suite).as_posix() for path in suite.rglob("*") if path.is_file()}
    assert present == {"index.json", *index["files"]}
    for name, expected in index["files"].items():
        assert hashlib.sha256((suite / name).read_bytes()).hexdigest() == expected
    assert [entry["id"] for entry in index["cases"]] == [id for id in IDS if id in ids_of(suite)]
    assert sum(path.stat().st_size for path in suite.rglob("*") if path.is_file()) < 36e6


def test_files_follow_their_schemas(suite):
    jsonschema = pytest.importorskip("jsonschema")

    def validator(name):
        schema = json.loads((suite / "schema" / f"{name}.schema.json").read_text("utf-8"))
        jsonschema.Draft202012Validator.check_schema(schema)
        return jsonschema.Draft202012Validator(schema)

    validator("index").validate(golden.read_index(suite))
    of_case = validator("case")
    for id in ids_of(suite):
        of_case.validate(document(suite, id))
    broken = {name: entry for name, entry in document(suite, "base").items() if name != "layout"}
    assert not of_case.is_valid(broken)


def test_both_containers_have_the_same_tensors(suite):
    for id in ids_of(suite)[::3]:
        folder = suite / "cases" / id
        with np.load(folder / "tensors.npz", allow_pickle=False) as npz:
            one = {name: npz[name] for name in npz.files}
        other = tensors(suite, id)
        assert one.keys() == other.keys()
        for name, array in one.items():
            assert (array.dtype, array.shape) == (other[name].dtype, other[name].shape)
            assert array.dtype in (np.float64, np.int64)
            assert array.tobytes() == other[name].tobytes()


def test_safetensors_are_those_of_the_package(few):
    package = pytest.importorskip("safetensors.numpy")
    path = few / "cases" / "loss-cross_entropy" / "tensors.safetensors"
    own, theirs = load_arrays(path), package.load_file(path)
    assert own.keys() == theirs.keys()
    for name, array in own.items():
        np.testing.assert_array_equal(array, theirs[name], strict=True)
    arrays = {
        "b": np.arange(6.0).reshape(2, 3).T,  # not in C order
        "a": np.ones(3, np.float32),
        "none": np.zeros((0, 2)),
        "scalar": np.array(7),
        "flag": np.array([True, False, True]),
    }
    theirs = package.load(safetensors_bytes(arrays))
    for name, array in arrays.items():
        np.testing.assert_array_equal(theirs[name], array, strict=True)
    path = few.parent / "theirs.safetensors"
    package.save_file({name: a.copy("C") for name, a in arrays.items()}, path, {"by": "me"})
    for name, array in load_arrays(path).items():
        np.testing.assert_array_equal(array, arrays[name], strict=True)


def test_npz_has_no_times(few):
    with zipfile.ZipFile(few / "cases" / "base" / "tensors.npz") as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert archive.namelist() == sorted(archive.namelist())
    one, other = np.zeros(2), np.ones(2)
    assert npz_bytes({"b": one, "a": other}) == npz_bytes({"a": other, "b": one})


def test_two_processes_write_the_same_bytes(few, tmp_path):
    """With one BLAS thread and with four, and dictionaries in another order."""
    only = ["base", "loss-cross_entropy"]
    script = f"from npmeta.verification import golden; golden.write('suite', only={sorted(only)})"
    for threads in ("1", "4"):
        folder = tmp_path / threads
        folder.mkdir()
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "PYTHONHASHSEED": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "OMP_NUM_THREADS": threads,
        }
        subprocess.run([sys.executable, "-c", script], cwd=folder, env=environment, check=True)
        written = sorted((folder / "suite").rglob("cases/*/*"))
        assert len(written) == 3 * len(only)
        for path in written:
            assert path.read_bytes() == (few / path.relative_to(folder / "suite")).read_bytes(), path


def test_inputs_are_those_of_this_version():
    digests = "".join(inputs_digest(golden_case(setting)) for setting in SETTINGS)
    assert (golden.SUITE_VERSION, hashlib.sha256(digests.encode()).hexdigest()) == INPUTS


# --- what is in them --------------------------------------------------------------------------------


def test_every_kind_has_a_case():
    maml = [setting for setting in SETTINGS if setting.algorithm == "maml"]
    plain = [setting.model for setting in maml if setting.structure is None]
    assert {f.name for model in plain for f in model.activations} == set(ACTIVATIONS)
    assert {s.loss for s in maml} == set(LOSSES)
    assert {s.step_sizes for s in maml if isinstance(s.step_sizes, str)} == {
        "layer",
        "step",
        "step_and_layer",
        "parameter",
        "step_and_parameter",
        "head",
        "body",
        "every other layer",
        "weights",
        "every other parameter",
    }
    assert {s.S for s in maml} >= {0, 1, 2, 3, 5, 10}
    assert {s.model.n_layers for s in maml} >= {1, 2, 3, 4, 5}
    assert {s.first_order for s in maml} == {False, True}
    assert any(s.weight_decay for s in maml)
    assert {(s.norm, s.adapt_norm) for s in maml if s.norm} == {
        (norm, adapted) for norm in NORMS for adapted in (False, True)
    }
    assert any(s.norm_sets > 1 for s in SETTINGS)


def test_every_algorithm_that_learns_has_a_case():
    """These have nothing to learn: they begin at random, know the answer, or compare what they are
    given. An algorithm that the registry gets needs a case, or a word here."""
    without = {"scratch", "oracle", "pixels"}
    present = {setting.published_as or setting.algorithm for setting in SETTINGS}
    assert present | {"maml"} == set(REGISTRY) - without
    assert without < set(REGISTRY)
    assert {setting.algorithm for setting in SETTINGS} == set(ALGORITHMS)
    schema = json.loads(
        (resources.files("npmeta.verification.golden") / "case.schema.json").read_text("utf-8")
    )["properties"]
    assert set(schema["algorithm"]["enum"]) == set(ALGORITHMS)
    assert set(schema["published_as"]["enum"]) == {s.published_as for s in SETTINGS} - {""}


def test_the_design(suite):
    base, arrays = document(suite, "base"), tensors(suite, "base")
    sizes = base["sizes"]
    assert [sizes[letter] for letter in ("T", "K", "Q", "n_out", "S")] == [3, 5, 7, 11, 3]
    assert base["inner_lr"] == arrays["inner_lr"] == 0.1
    assert any(a == b for a, b in zip(base["widths"], base["widths"][1:], strict=False))
    assert not base["not_distinguishable"]["float64"]
    assert not any(wrong["same_as"] for wrong in base["wrong"].values())
    assert set(base["wrong"]) | set(base["not_applicable"]) == set(FAULTS)
    # The nearest two of all predictions differ by far more than float32 rounds.
    names = base["parameter_order"]
    predictions = {
        id: flat(arrays, f"wrong.{id}.meta_grad", names)
        for id in base["wrong"]
        if id not in ("float32", "zeros")
    }
    P = np.array([*predictions.values(), flat(arrays, "expected.meta_grad", names)])
    distance = np.linalg.norm(P[:, None] - P, axis=-1) / np.linalg.norm(P, axis=-1)
    assert distance[~np.eye(len(P), dtype=bool)].min() > 1e-4


@pytest.mark.parametrize("method", ["r_operator", "complex_step"])
def test_oracles_agree(suite, method):
    """To a few roundings; the gradient by α is a sum over parameters that may cancel in part."""
    for id in ids_of(suite, "maml"):
        agreement = document(suite, id)["oracle"]["agreement"]
        if method in agreement["meta_grad"] or not id.startswith("first-order"):
            assert agreement["meta_grad"][method] < 1e-14, id
            assert agreement["inner_lr_grad"][method] < 1e-13, id


def test_definitions_agree(suite):
    """npmeta's own gradients with those by definition: to some roundings, and for iMAML, whose residual
    is 1e-13 here, to that times the condition number."""
    for id in ids_of(suite, "-maml"):
        case = document(suite, id)
        agreement = case["oracle"]["agreement"]
        assert set(agreement) == {"meta_loss", *case["meta_parameters"].values()}, id
        allowed = 1e-13 * case["solves"]["condition"] if case["algorithm"] == "imaml" else 1e-13
        assert max(methods["r_operator"] for methods in agreement.values()) < allowed, id


def test_differences_agree(suite):
    for id in ids_of(suite):
        agreement = document(suite, id)["oracle"]["agreement"]["meta_grad"]
        if "differences" in agreement:
            rounding = 1e-14
            assert agreement["differences"] < 10 * agreement["differences_error"] + rounding, id
            assert agreement["differences_error"] < 1e-9, id
        else:
            case = document(suite, id)
            assert case["order"] == 1 or case["acceptable"] or agreement["complex_step"] < 1e-14, id


def test_expected_values_are_npmetas_own(suite):
    """Recomputed from the files alone, by the R-operator."""
    for id in ids_of(suite, "maml"):
        case, arrays = document(suite, id), tensors(suite, id)
        names, T, S = case["parameter_order"], case["sizes"]["T"], case["inner_steps"]
        norm = {name: case[name] for name in ("norm", "adapt_norm") if name in case}
        model = (
            nm.MLP(case["widths"], structure=nm.Structure(**case["structure"]))
            if "structure" in case
            else nm.MLP(case["widths"], case["activation"], **norm)
        )
        maml = nm.MAML(
            model,
            case["inner_loss"],
            arrays["inner_lr"],
            S,
            first_order=case["order"] == 1,
            inner_weight_decay=case["inner_weight_decay"],
        )
        tasks = nm.TaskBatch(
            *(
                np.stack([arrays[f"task.{t:03}.{part}"] for t in range(T)])
                for part in ("support.x", "support.y", "query.x", "query.y")
            )
        )
        theta = flat(arrays, "theta", names)
        out = maml.meta_gradient({"theta": theta, "inner_lr": arrays["inner_lr"]}, tasks)
        expected = flat(arrays, "expected.meta_grad", names)
        np.testing.assert_allclose(out.grad, expected, atol=1e-13 * np.abs(expected).max())
        by_alpha = arrays["expected.inner_lr_grad"]
        np.testing.assert_allclose(
            out.grads["inner_lr"], by_alpha, atol=1e-12 * np.abs(by_alpha).max(), strict=True
        )
        np.testing.assert_allclose(out.loss, arrays["expected.meta_loss"], rtol=1e-13)
        np.testing.assert_allclose(out.task_loss, arrays["expected.query_loss"], rtol=1e-13)
        phi = maml.adapt(theta, tasks.support_x, tasks.support_y)
        for t in range(T):
            last = flat(arrays, f"expected.task.{t:03}.phi.{S:03}", names)
            np.testing.assert_allclose(phi[t], last, atol=1e-13 * np.abs(last).max())
            first = flat(arrays, f"expected.task.{t:03}.phi.000", names)
            np.testing.assert_array_equal(first, theta)
        at_start = nm.Risk(model, case["inner_loss"]).linearize(theta, tasks.support_x, tasks.support_y)
        np.testing.assert_allclose(arrays["expected.support_loss"][:, 0], at_start.value, rtol=1e-13)
        assert arrays["expected.support_loss"].shape == (T, S + 1)


def test_step_sizes_are_written_out(suite):
    for id in ids_of(suite, "maml"):
        case, arrays = document(suite, id), tensors(suite, id)
        layers = [int(name.split(".")[0]) for name in case["parameter_order"]]
        for s in range(case["inner_steps"]):
            for layer, name in zip(layers, case["parameter_order"], strict=True):
                sizes = arrays[f"step_size.{s:03}.{name}"]
                assert sizes.shape == arrays[f"theta.{name}"].shape
                assert (sizes.any()) == (name in case["adapted"])
                given = arrays["inner_lr"]
                if name not in case["adapted"]:
                    continue
                if given.ndim == 0:
                    assert (sizes == given).all()
                elif given.shape[1] == layers[-1] + 1:
                    assert (sizes == given[min(s, len(given) - 1), layer]).all()


def test_no_case_is_near_a_kink(suite):
    """Float32 moves z by 1e-7; edge cases are at a kink exactly."""
    for id in ids_of(suite):
        case = document(suite, id)
        kinked = any(details["kinks"] for details in case["activation_details"])
        if case["result"] == "acceptable":
            assert case["acceptable"], id
            assert not kinked or case["min_abs_z"] == 0, id
        elif kinked:
            assert case["min_abs_z"] > 1e-3, id
        if case["min_distance_to_loss_kink"] is not None:
            assert case["min_distance_to_loss_kink"] > 1e-3, id


def test_inputs_fit_into_float32(suite):
    for id in ids_of(suite):
        for name, array in tensors(suite, id).items():
            if name.startswith(("theta", "task")):
                assert (array == array.astype(np.float32)).all(), f"{id} {name}"


def test_formulas_are_those_of_the_code():
    z = np.array([-2.5, -0.3, 0.4, 1.7])
    assert set(ACTIVATION_FORMULAS) == set(ACTIVATIONS)
    for name, formula in ACTIVATION_FORMULAS.items():
        values = [eval(formula, vars(math).copy(), {"z": value}) for value in z.tolist()]
        np.testing.assert_allclose(ACTIVATIONS[name].f(z), values, rtol=1e-12)

    assert set(LOSS_FORMULAS) == set(LOSSES)
    o = np.array([[[0.3, -1.2, 2.0], [-0.4, 0.9, 0.1]]])
    y = np.array([[[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]])
    for name, formula in LOSS_FORMULAS.items():
        words = {**vars(math), "exp": np.exp, "log": np.log, "sum": np.sum, "abs": abs, "max": max}
        rows = []
        for row, target in zip(o[0], y[0], strict=True):
            if formula.outputs == "mean":
                pairs = zip(row, target, strict=True)
                rows.append(np.mean([eval(formula.formula, words, {"o": a, "y": b}) for a, b in pairs]))
                continue
            label = int(target.argmax())
            classes = [c for c in range(3) if formula.outputs == "sum over c" or c != label]
            at = {"o": row, "y": target, "label": label}
            rows.append(np.sum([eval(formula.formula, words, {**at, "c": c}) for c in classes]))
        np.testing.assert_allclose(LOSSES[name](o, y).value, np.mean(rows), rtol=1e-12, err_msg=name)


# --- answers ----------------------------------------------------------------------------------------


def test_right_answers_pass(suite, few):
    found = golden.check(suite, answers(suite, "expected."))
    assert found.passed, str(found)
    assert [case.id for case in found.cases] == ids_of(suite)
    assert not found.not_answered
    found = golden.check(few, answers(few, "expected.", dtype=np.float32))
    assert found.passed, str(found)
    assert [case.id for case in found.cases] == ids_of(few)


def test_wrong_answers_fail(suite):
    """Every wrong vector of a case, by the tolerance that the case gives."""
    for id in ids_of(suite)[::6]:
        case, arrays = document(suite, id), tensors(suite, id)
        expected = flat(arrays, "expected.meta_grad", case["parameter_order"])
        for fault, said in case["wrong"].items():
            wrong = flat(arrays, f"wrong.{fault}.meta_grad", case["parameter_order"])
            misfit = np.linalg.norm(wrong - expected) / np.linalg.norm(expected)
            assert misfit > case["tolerance"]["float64"]
            assert math.isclose(misfit, said["misfit"], rel_tol=1e-6)
    few = ["base", "first-order-tanh", "steps-1"]
    for fault in ("one_step_more", "summed_over_tasks"):
        found = golden.check(suite, answers(suite, f"wrong.{fault}.", few))
        assert [case.fault for case in found.cases] == [fault] * 3, str(found)
        assert len(found.not_answered) == len(ids_of(suite)) - 3


def test_first_order_is_asked_for(few):
    exact = answers(few, "wrong.second_order_kept.", ["first-order-tanh"])
    found = golden.check(few, exact)["first-order-tanh"]
    assert (found.passed, found.fault, found.examined) == (False, "second_order_kept", False)
    with pytest.raises(ValueError, match="asks for the first-order gradient"):
        load_problem(few / "cases" / "first-order-tanh")


def test_mistakes_of_other_algorithms_are_named(suite):
    """Those that a case has; a tie by the first of them, and its others behind it."""
    for id in ids_of(suite, "-maml"):
        case = document(suite, id)
        assert len(case["wrong"]) >= 4, id
        for fault in list(case["wrong"])[-3:]:
            found = golden.check(suite, answers(suite, f"wrong.{fault}.", [id]))[id]
            ties = case["wrong"][fault]["same_as"]
            assert found.fault == fault or (found.fault in ties and fault in found.note), str(found)
    g = flat(tensors(suite, "relation-sum"), "expected.meta_grad", ["0.weight", "0.bias"])
    size = document(suite, "relation-sum")["sizes"]["P"]
    found = golden.check(suite, {"relation-sum/meta_grad": np.resize(g, size)})["relation-sum"]
    assert (found.fault, found.note) == (None, "none of the wrong answers of the case")


def test_other_meta_parameters_are_judged(suite):
    """By layer, or in one vector; and beside a meta-gradient that is right."""
    arrays, order = tensors(suite, "relation-sum"), document(suite, "relation-sum")["networks"]
    names = order["relation"]["parameter_order"]
    by_relation = flat(arrays, "expected.relation_grad", names)
    right = answers(suite, "expected.meta_grad", ["relation-sum"])
    right = {name.replace("/", "/meta_grad"): array for name, array in right.items()}
    assert golden.check(suite, right | {"relation-sum/relation_grad": by_relation}).passed
    found = golden.check(suite, right | {"relation-sum/relation_grad": 2 * by_relation})
    assert found["relation-sum"].wrong == ("relation_grad",)


@pytest.mark.parametrize("algorithm", sorted(set(ALGORITHMS) - {"maml"}))
def test_the_doctor_refuses_other_algorithms(suite, algorithm, capsys):
    folder = suite / "cases" / ids_of(suite, algorithm)[0]
    assert main(["doctor", str(folder), "answers.npz"]) == 2
    said = capsys.readouterr().err
    assert f"is a case of {algorithm}, and the doctor knows the mistakes of maml alone" in said
    assert "npmeta golden check judges it" in said


def test_acceptable_answers_pass(few):
    for word in ("slope_at_0_is_1", "slope_at_0_is_half"):
        found = golden.check(few, answers(few, f"acceptable.{word}.", ["edge-relu-at-0"]))
        assert found.passed, str(found)
        assert found["edge-relu-at-0"].note == f"acceptable: {word}"


def test_flat_answers_and_single_quantities(few):
    names = document(few, "base")["parameter_order"]
    g = flat(tensors(few, "base"), "expected.meta_grad", names)
    assert golden.check(few, {"base/meta_grad": g}).passed
    found = golden.check(few, {"base/meta_grad": g, "base/meta_loss": np.array(3.0)})["base"]
    assert (found.passed, found.wrong) == (False, ("meta_loss",))
    # A float32 loss makes no float32 gradient: this one would pass as that.
    nearly = {"base/meta_grad": g * (1 + 1e-6), "base/meta_loss": np.float32(0)}
    assert golden.check(few, nearly)["base"].wrong == ("meta_grad", "meta_loss")
    assert golden.check(few, {"base/meta_grad": np.full_like(g, np.nan)})["base"].fault == "not_finite"


def test_causes_are_looked_for_only_so_often(suite, monkeypatch):
    monkeypatch.setattr("npmeta.verification.golden.judge.MOST_UNKNOWN", 1)
    rng = np.random.default_rng(0)
    noise = {
        f"{id}/meta_grad": rng.normal(size=document(suite, id)["sizes"]["P"])
        for id in ("steps-0", "steps-1", "steps-2")
    }
    found = golden.check(suite, noise)
    assert [case.note for case in found.cases] == [
        "no known mistake explains it",
        "not looked into",
        "not looked into",
    ]
    assert not any(case.passed or case.fault for case in found.cases)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"meta_grad": np.ones(149)}, "names like base/meta_grad.0.weight"),
        ({"bas/meta_grad": np.ones(149)}, "unknown case 'bas' .did you mean 'base'"),
        ({"base/meta_grad": np.ones(148)}, r"base/meta_grad must have shape \(149,\), got \(148,\)"),
        ({"base/meta_grad.0.weight": np.ones((4, 6))}, "base lacks meta_grad.0.bias"),
        ({"base/meta_grat": np.ones(149)}, "base/meta_grat is no quantity of the suite"),
        ({"base/meta_loss": np.ones(2)}, r"base/meta_loss must have shape \(\), got \(2,\)"),
        ({"base/meta_loss": np.array(1j)}, "must be float64 or float32, got complex128"),
        ({"base/meta_loss": np.array(1, np.float16)}, "must be float64 or float32, got float16"),
        ({"base/phi": np.ones(149)}, r"base lacks task.000.phi.000.0.weight"),
        ({}, "there are no answers"),
    ],
)
def test_answers_that_are_refused(few, given, message):
    with pytest.raises(ValueError, match=message):
        golden.check(few, given)


def test_the_commands(few, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["golden", "list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == IDS
    assert all(len(line) <= 110 for line in listed)

    np.savez("right.npz", **answers(few, "expected."))
    assert main(["golden", "check", str(few), "right.npz"]) == 0
    assert capsys.readouterr().out.endswith("\n5 of 5 answers are right.\n")

    wrong = answers(few, "wrong.first_order.", dtype=np.float32)
    Path("wrong.safetensors").write_bytes(safetensors_bytes(wrong))
    assert main(["golden", "check", str(few), "wrong.safetensors"]) == 1
    shown = capsys.readouterr().out
    assert re.search(r"^FAIL  base +meta_grad 1.7e-01; first_order$", shown, re.MULTILINE)
    assert "0 of 4 answers are right; 1 case is not answered." in shown
    # The command that it ends with works as it stands.
    command = shown.splitlines()[-1].removeprefix("What to change: npmeta ").split()
    assert main(command) == 1
    assert capsys.readouterr().out.startswith("FAIL  first_order\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["write"], "the command is: npmeta golden write DIR"),
        (["list", "x"], "the command is: npmeta golden list"),
        (["check", "x"], "the command is: npmeta golden check DIR ANSWERS"),
        (["chek", "x"], "did you mean 'check'"),
        (["check", "nowhere", "a.npz"], "no such file or folder: nowhere"),
        (["check", ".", "a.npz"], "has no suite of golden vectors"),
        (["write", "."], "is not empty and has no suite"),
        (["write", "file"], "file is a file; the suite needs a folder"),
    ],
)
def test_what_the_commands_refuse(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    assert main(["golden", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def header(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot read"),
        (b"\xff" * 40, "cannot read"),
        (b"\x02\0\0\0\0\0\0\0[]", "cannot read"),
        (header(b'{"a":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}'), "dtype 'BF16'"),
        (
            header(b'{"a":{"dtype":"F64","shape":[2],"data_offsets":[0,16]}}'),
            "needs 16 bytes, from 0 to 16 of 0",
        ),
    ],
)
def test_safetensors_that_are_none(tmp_path, content, message):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_arrays(tmp_path / "a.safetensors")


# --- the folder -------------------------------------------------------------------------------------


def test_a_suite_is_replaced_and_nothing_else(tmp_path):
    folder = tmp_path / "deep" / "suite"
    golden.write(folder, only=["steps-1", "depth-0"])
    golden.write(folder, only=["depth-0"])
    assert [path.name for path in (folder / "cases").iterdir()] == ["depth-0"]
    assert [path.name for path in folder.parent.iterdir()] == ["suite"]
    (folder / "answers.npz").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"files that are not the suite's, answers.npz for one"):
        golden.write(folder, only=["depth-0"])
    assert (folder / "answers.npz").read_bytes() == b"mine"


def test_half_a_suite_is_never_there(tmp_path, monkeypatch):
    golden.write(tmp_path / "suite", only=["depth-0"])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}

    def broken(arrays):
        raise KeyboardInterrupt

    monkeypatch.setattr("npmeta.verification.golden.suite.safetensors_bytes", broken)
    for name in ("suite", "new"):
        with pytest.raises(KeyboardInterrupt):
            golden.write(tmp_path / name, only=["depth-0"])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["suite"]


def test_a_case_that_is_unknown(tmp_path):
    with pytest.raises(ValueError, match="unknown case 'bass'"):
        golden.write(tmp_path / "suite", only=["bass"])
    assert not list(tmp_path.iterdir())


def test_changed_files_are_refused(few, tmp_path):
    copy = tmp_path / "suite"
    shutil.copytree(few, copy)
    path = copy / "cases" / "base" / "case.json"
    path.write_text(path.read_text("utf-8").replace("0.1", "0.2"), "utf-8")
    with pytest.raises(ValueError, match=r"case.json has been changed"):
        golden.check(copy, answers(few, "expected.", ["base"]))
    assert golden.check(copy, answers(few, "expected.", ["steps-1"])).passed
    index = copy / "index.json"
    own = f'"suite_version": {golden.SUITE_VERSION}'
    index.write_text(index.read_text("utf-8").replace(own, '"suite_version": 0'), "utf-8")
    with pytest.raises(ValueError, match="has version 0 of the suite"):
        golden.check(copy, answers(few, "expected.", ["steps-1"]))


def change(path, old, new):
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new), "utf-8")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"id": "base"', '"id": "../base"', r"index.json: '\.\./base' is not the id of a case"),
        (
            '"cases/base/case.json": "',
            '"cases/base/other.json": "',
            r"index.json has no checksum of cases/base/case.json",
        ),
    ],
)
def test_an_index_that_names_other_files_is_refused(few, tmp_path, old, new, message):
    copy = tmp_path / "suite"
    shutil.copytree(few, copy)
    change(copy / "index.json", old, new)
    with pytest.raises(ValueError, match=message):
        golden.check(copy, answers(few, "expected.", ["base"]))


def test_a_case_that_would_take_for_ever_is_refused(few, tmp_path):
    copy = tmp_path / "base"
    shutil.copytree(few / "cases" / "base", copy)
    case = json.loads((copy / "case.json").read_text("utf-8"))
    (copy / "case.json").write_text(json.dumps(case | {"inner_steps": 10_001}), "utf-8")
    with pytest.raises(ValueError, match="has 10001 inner steps; at most 10000 are expected"):
        read_case(copy)


# --- the example in C -------------------------------------------------------------------------------


def test_the_example_in_c(suite, tmp_path, capsys):
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("there is no C compiler (cc, gcc or clang)")
    program, source = tmp_path / "golden", ROOT / "docs" / "examples" / "golden.c"
    strict = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-O2"]
    subprocess.run([compiler, *strict, "-o", program, source, "-lm"], check=True)
    can = [
        s.id
        for s in SETTINGS
        if {f.name for f in s.model.activations} <= {"tanh"}
        and (s.algorithm, s.loss, s.first_order, s.norm) == ("maml", "mse", False, None)
    ]
    ids = [id for id in can if id in ids_of(suite)]
    folders = [suite / "cases" / id for id in ids]
    written = tmp_path / "answers.safetensors"
    done = subprocess.run([program, written, *folders], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [["PASS", id] for id in ids]
    page = (ROOT / "docs" / "golden.rst").read_text("utf-8")
    assert f"all {len(can)} cases" in page
    found = golden.check(suite, written)
    assert found.passed, str(found)
    assert max(case.misfits["meta_grad"] for case in found.cases) < 1e-14
    # It can fail: a network that it computes with the wrong activation.
    done = subprocess.run([program, written, suite / "cases" / "activation-relu"], capture_output=True)
    assert done.returncode == 1
    assert main(["golden", "check", str(suite), str(written)]) == 1
    assert "other_activation" in capsys.readouterr().out


def test_a_suite_put_aside_by_a_killed_writer_comes_back(tmp_path, monkeypatch):
    """Killed between the two renames: the old suite is where it was, for whoever asks next."""
    from npmeta.verification.golden import suite as golden_suite

    place = golden.write(tmp_path / "suite", only=["base"])
    old = (place / "index.json").read_bytes()

    def killed(new, where):
        os.replace(where, new.with_name(f"{new.name}.old"))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(golden_suite, "put_folder", killed)
        with pytest.raises(KeyboardInterrupt):
            golden.write(place, only=["base"])
    assert not place.exists()
    assert golden_suite.read_index(place)["cases"][0]["id"] == "base"
    assert (place / "index.json").read_bytes() == old
    assert [path.name for path in tmp_path.iterdir()] == ["suite"]
