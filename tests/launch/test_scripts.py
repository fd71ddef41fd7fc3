"""Shell scripts and manifests: their syntax, their flags, and how the demo resumes."""

import collections
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import yaml

from tests.launch.documents import check_flags

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = [*sorted((ROOT / "launch").glob("*.sh")), ROOT / ".ci" / "run"]
STEPS = ["bundled", "data", "clap", "retriever", "enhanced"]
STEPS += ["autoencoder", "vocoder", "t2a", "trained", "report"]

# Stands in for Python: records its arguments, and makes the files that the program would make.
STUB = r"""#!{python}
import json, pathlib, sys
arguments = sys.argv[1:]
flags = dict(a[2:].split("=", 1) for a in arguments if a.startswith("--") and "=" in a)
workdir = pathlib.Path(__file__).parent.parent / "{folder}"
def note(what):
    with open(workdir / "calls", "a") as file:
        file.write(json.dumps([what, arguments]) + "\n")
def write(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
fail = (workdir / "fail").read_text().strip() if (workdir / "fail").exists() else ""
if arguments[:1] == ["-m"]:
    what = arguments[1].split(".")[-1]
    folder = pathlib.Path(flags.get("workdir") or flags["out"])
    note(what if what == "report" else what + " " + folder.name)
    if fail == what + " " + folder.name:
        sys.exit(3)
    if what == "report":
        write(folder / "report.html")
    elif what == "enhance":
        write(folder / "enhanced" / flags["name"] / "dataset_info.json")
    elif what == "sample":
        write(folder / "samples.jsonl")
    elif what == "train":
        write(folder / "config.json", json.dumps(dict(total_steps=7)))
        # A run that is told to stop saves a checkpoint and exits with 143.
        stopped = fail == "stop " + folder.name
        write(folder / "checkpoints" / ("4" if stopped else "7") / "state")
        if stopped:
            sys.exit(143)
    elif what == "convert":
        write(pathlib.Path(flags["out"]) / "model_index.json")
    elif what == "embed":
        write(folder / "latents" / "index.json")
    elif what == "evaluate":
        write(folder / "scores.json")
elif arguments[0] == "-c" and "prepare" in arguments[1]:
    note("build")
    for name in arguments[4:] or ["sonic_sounds"]:
        write(pathlib.Path(arguments[2]) / name / "1")
"""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_valid_shell(script):
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        run = subprocess.run(["shellcheck", "-x", script], capture_output=True, text=True, cwd=ROOT)
        assert run.returncode == 0, run.stdout


def test_the_jobset_sets_the_variables_by_which_processes_connect():
    from maa_jax.devices import _COORDINATOR

    manifest = yaml.safe_load((ROOT / "launch" / "k8s_jobset.yaml").read_text())
    name = manifest["metadata"]["name"]
    (job,) = manifest["spec"]["replicatedJobs"]
    pods = job["template"]["spec"]
    (container,) = pods["template"]["spec"]["containers"]
    given = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert set(given) == set(_COORDINATOR)
    assert int(given["JAX_NUM_PROCESSES"]) == pods["completions"] == pods["parallelism"]
    # JobSet's host names: set-job-replica-pod, in the domain of the set.
    host = f"{name}-{job['name']}-0-0.{name}"
    port = container["ports"][0]["containerPort"]
    assert given["JAX_COORDINATOR_ADDRESS"] == f"{host}:{port}"


def runner(script, folder, tmp_path):
    """Returns a function that runs a script of a copied checkout with a stand-in for Python.

    Calling it returns the finished process and the calls, [(name, arguments)].
    """
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    (tmp_path / "setup.py").touch()
    (tmp_path / "font.sf2").touch()
    workdir = tmp_path / folder
    workdir.mkdir()
    binaries = tmp_path / "bin"
    binaries.mkdir()
    environment = (
        "use_environment() { :; }\ninstall() { :; }\n"
        f'python() {{ "{binaries}/python" "$@"; }}\n'
    )
    (tmp_path / "launch" / "environment.sh").write_text(environment)
    stub = binaries / "python"
    stub.write_text(STUB.replace("{python}", sys.executable).replace("{folder}", folder))
    stub.chmod(0o755)

    def run(fail="", **environment):
        (workdir / "fail").write_text(fail)
        (workdir / "calls").write_text("")
        done = subprocess.run(
            ["bash", f"launch/{script}"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={"PATH": os.environ["PATH"], "SOUNDFONT": "font.sf2", **environment},
        )
        return done, [json.loads(line) for line in (workdir / "calls").read_text().splitlines()]

    run.workdir = workdir
    return run


@pytest.fixture
def demo(tmp_path):
    """Runs the demo; see `runner`."""
    return runner("demo.sh", "demo", tmp_path)


@pytest.fixture
def bundled(tmp_path):
    """Runs the training of the bundled model; see `runner`."""
    return runner("train_bundled.sh", "bundled", tmp_path)


def names(calls):
    return [what for what, _ in calls]


def test_the_demo_takes_every_step_once(demo):
    first, calls = demo()
    assert first.returncode == 0, first.stderr
    trained = [s for s in STEPS[2:8] if s != "enhanced"]
    stages = [f"{verb} {s}" for s in trained for verb in ("train", "convert")]
    stages.insert(4, "enhance data")
    assert names(calls) == ["sample bundled", "build", *stages, "sample trained", "report"]
    assert "10/10" in first.stdout and str(demo.workdir / "report.html") in first.stdout
    times = (demo.workdir / "times.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in times] == STEPS
    second, calls = demo()
    assert second.returncode == 0
    assert calls == []


def check_calls(calls):
    lines = collections.defaultdict(list)
    for _, arguments in calls:
        if arguments[0] == "-m":
            lines[arguments[1]].append(arguments[2:])
    for program, flags in lines.items():
        check_flags(program, flags)
    return sorted(name.removeprefix("maa_jax.") for name in lines)


def test_the_demo_gives_flags_that_its_programs_have(demo):
    assert check_calls(demo()[1]) == ["convert", "enhance", "report", "sample", "train"]


def test_the_bundled_model_is_trained_once_and_scored(bundled):
    first, calls = bundled(fail="train vocoder")
    assert first.returncode == 3 and "start this command again" in first.stderr
    done, rest = bundled()
    assert done.returncode == 0, done.stderr
    assert names(calls)[:3] == ["build", "train autoencoder", "convert autoencoder"]
    assert names(rest) == [
        *("train vocoder", "convert vocoder", "embed stored"),
        *("train t2a", "convert t2a", "convert t2a"),
        *(f"{verb} {name}" for name in ("event_classifier", "captioner", "retriever")
          for verb in ("train", "convert")),
        *(f"evaluate {name}" for name in ("vocoder", "model", "recordings")),
    ]  # fmt: skip
    assert check_calls(rest) == ["convert", "embed", "evaluate", "train"]
    assert "vocoder_scores" in done.stdout and "13/13" in done.stdout
    assert bundled()[1] == []
    missing, calls = bundled(SOUNDFONT="none.sf2")
    assert missing.returncode == 2 and not calls
    assert "none.sf2 is not there: install fluidr3mono-gm-soundfont" in missing.stderr


@pytest.mark.parametrize("fail", ["train vocoder", "convert vocoder", "stop vocoder"])
def test_the_demo_resumes_where_it_was_interrupted(demo, fail):
    first, calls = demo(fail)
    assert first.returncode != 0
    assert "train t2a" not in names(calls)
    second, calls = demo()
    assert second.returncode == 0, second.stderr
    assert names(calls)[0] == "train vocoder"
    # The table of times has both attempts of the interrupted step.
    assert (demo.workdir / "times.tsv").read_text().count("vocoder\t") == 2


def test_the_demo_repeats_a_step_whose_result_is_gone_and_the_steps_after_it(demo):
    demo()
    shutil.rmtree(demo.workdir / "models" / "t2a")
    _, calls = demo()
    assert names(calls) == ["train t2a", "convert t2a", "sample trained", "report"]
