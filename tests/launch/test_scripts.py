"""Shell scripts and manifests: syntax, and the demo's care about what is finished."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = [*sorted((ROOT / "launch").glob("*.sh")), ROOT / ".ci" / "run"]
STEPS = ["bundled", "data", "clap", "retriever", "enhanced"]
STEPS += ["autoencoder", "vocoder", "t2a", "trained", "report"]

# Stands in for python: notes what it was asked to do, and makes the files that would be made.
STUB = r"""#!{python}
import json, pathlib, sys
arguments = sys.argv[1:]
flags = dict(a[2:].split("=", 1) for a in arguments if a.startswith("--") and "=" in a)
workdir = pathlib.Path(__file__).parent.parent / "demo"
def note(what):
    with open(workdir / "calls", "a") as file:
        file.write(what + "\n")
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
        # Told to stop: train saves and exits with 0, like a finished one.
        step = 4 if fail == "stop " + folder.name else 7
        write(folder / "checkpoints" / str(step) / "state")
    elif what == "convert":
        write(pathlib.Path(flags["out"]) / "model_index.json")
elif arguments[0] == "-c" and "prepare" in arguments[1]:
    note("build")
    write(pathlib.Path(arguments[2]) / "sonic_sounds" / "1")
elif arguments[0] == "-c":
    exec(arguments[1].replace("sys.argv[1]", "arguments[2]"))
"""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shell_syntax(script):
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        run = subprocess.run(["shellcheck", "-x", script], capture_output=True, text=True, cwd=ROOT)
        assert run.returncode == 0, run.stdout


def test_jobset_agrees_with_what_sharding_reads():
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


@pytest.fixture
def demo(tmp_path):
    """Runs demo.sh of a copied checkout with a stand-in for python, and returns its calls."""
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    (tmp_path / "setup.py").touch()
    workdir = tmp_path / "demo"
    workdir.mkdir()
    binaries = tmp_path / "bin"
    binaries.mkdir()
    # The real one where the environment is checked, the stand-in for the demo's steps.
    environment = (
        "use_environment() { :; }\ninstall() { :; }\n"
        f'python() {{ "{binaries}/python" "$@"; }}\n'
    )
    (tmp_path / "launch" / "environment.sh").write_text(environment)
    stub = binaries / "python"
    stub.write_text(STUB.replace("{python}", sys.executable))
    stub.chmod(0o755)

    def run(fail=""):
        (workdir / "fail").write_text(fail)
        (workdir / "calls").write_text("")
        done = subprocess.run(
            ["bash", "launch/demo.sh"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={"PATH": os.environ["PATH"]},
        )
        return done, (workdir / "calls").read_text().split("\n")[:-1]

    run.workdir = workdir
    return run


def test_demo_takes_every_step_once(demo):
    first, calls = demo()
    assert first.returncode == 0, first.stderr
    trained = [s for s in STEPS[2:8] if s != "enhanced"]
    stages = [f"{verb} {s}" for s in trained for verb in ("train", "convert")]
    stages.insert(4, "enhance data")
    assert calls == ["sample bundled", "build", *stages, "sample trained", "report"]
    assert "10/10" in first.stdout and str(demo.workdir / "report.html") in first.stdout
    names = [line.split("\t")[0] for line in (demo.workdir / "times.tsv").read_text().splitlines()]
    assert names == STEPS
    second, calls = demo()
    assert second.returncode == 0
    assert calls == []


@pytest.mark.parametrize("fail", ["train vocoder", "convert vocoder", "stop vocoder"])
def test_demo_goes_on_where_it_was(demo, fail):
    first, calls = demo(fail)
    assert first.returncode != 0
    assert "train t2a" not in calls
    second, calls = demo()
    assert second.returncode == 0, second.stderr
    assert calls[0] == "train vocoder"
    # Both starts of the interrupted step are in the table of times.
    assert (demo.workdir / "times.tsv").read_text().count("vocoder\t") == 2


def test_demo_makes_again_what_is_gone_and_what_hangs_on_it(demo):
    demo()
    shutil.rmtree(demo.workdir / "models" / "t2a")
    _, calls = demo()
    assert calls == ["train t2a", "convert t2a", "sample trained", "report"]
