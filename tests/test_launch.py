"""Launch scripts, with programs in place of gcloud, srun and GPUs that note what they are given."""

import os
import re
import shlex
import subprocess

import documented
import pytest
from documented import ROOT

SCRIPTS = sorted(path.name for path in (ROOT / "launch").iterdir() if path.suffix != ".md")
FLAGS = ["--config", "configs/beit/pretrain_in1k.py:smoke", "--workdir", "runs/a b",
         "--config.data.path='x'"]


# nvidia-smi lists two GPUs; srun ends as it is told; python notes which GPUs it sees
DOES = """[[ ${0##*/} == nvidia-smi ]] && printf "0\\n1\\n"
[[ ${0##*/} == python ]] && printf "gpus\\037%s\\037\\036" "$CUDA_VISIBLE_DEVICES" >> "$RECORD"
[[ ${0##*/} == srun ]] && exit "${SRUN_STATUS:-0}"
exit 0"""


@pytest.fixture
def launch(tmp_path):
    """launch(script, *arguments, **variables) -> (exit code, [[program, argument, ...]], text)."""
    programs = ("gcloud", "srun", "scontrol", "nvidia-smi", "python")

    def run(script, *arguments, **variables):
        found = documented.stand_ins(tmp_path, programs, DOES)
        found |= {"PATH": f"{found['PATH']}:{os.environ['PATH']}",
                  "PYTHON": str(tmp_path / "bin" / "python")}
        done = subprocess.run(["bash", str(ROOT / "launch" / script), *arguments], text=True,
                              capture_output=True, timeout=60, env=found | variables)
        return done.returncode, documented.noted(tmp_path), done.stdout + done.stderr
    return run


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_arguments_a_script_says_how_to_use_it(launch, script):
    code, started, text = launch(script)
    assert (code, started) == (2, [])
    assert text.startswith("usage: ")


def test_one_process_has_all_gpus_of_this_machine(launch):
    code, started, _ = launch("gpu_local.sh", *FLAGS)
    assert code == 0
    assert started == [["python", "-m", "beit_jax.main", *FLAGS], ["gpus", ""]]


@pytest.mark.parametrize(("given", "gpus"), [({}, "01"), ({"CUDA_VISIBLE_DEVICES": "3,5"}, "35")])
def test_each_gpu_has_a_process_of_its_own(launch, given, gpus):
    code, started, _ = launch("gpu_local.sh", "--one-process-per-gpu", *FLAGS, PORT="999", **given)
    assert code == 0
    assert sorted(command for command in started if command[0] == "python") == [
        ["python", "-m", "beit_jax.main", *FLAGS, "--coordinator=localhost:999",
         "--num_processes=2", f"--process_id={i}"] for i in range(2)]
    assert sorted(command for command in started if command[0] == "gpus") == [
        ["gpus", gpu] for gpu in gpus]


@pytest.mark.parametrize(("status", "requeued"), [(0, []), (143, [["scontrol", "requeue", "7"]]),
                                                  (1, [])])
def test_slurm_starts_all_tasks_and_requeues_a_run_that_saved_its_state(launch, status, requeued):
    code, started, _ = launch("slurm.sbatch", *FLAGS, SLURM_JOB_ID="7",
                              SLURM_SUBMIT_DIR=str(ROOT), SRUN_STATUS=str(status))
    assert code == status
    assert started[0][:2] == ["srun", "--kill-on-bad-exit=1"]
    assert started[0][3:] == ["-m", "beit_jax.main", "--distributed", *FLAGS]
    assert started[1:] == requeued


@pytest.mark.parametrize(("kind", "runtime"), [
    ("v4-32", "tpu-ubuntu2204-base"), ("v5litepod-16", "v2-alpha-tpuv5-lite"),
    ("v5p-32", "v2-alpha-tpuv5"), ("v6e-16", "v2-alpha-tpuv6e")])
def test_a_slice_is_created_filled_and_installed(launch, kind, runtime):
    code, started, text = launch("tpu_create.sh", "pod", "us-central2-b", kind, SPOT="1")
    assert code == 0
    create, copy, install = (command[1:] for command in started)
    assert create == ["compute", "tpus", "tpu-vm", "create", "pod", "--zone", "us-central2-b",
                      "--accelerator-type", kind, "--version", runtime, "--spot"]
    assert copy[3] == "scp" and copy[5:] == ["pod:beit_jax.tar.gz", "--zone", "us-central2-b",
                                             "--worker=all"]
    assert subprocess.run(["bash", "-n", "-c", install[-1].removeprefix("--command=")]
                          ).returncode == 0
    assert "launch/tpu_run.sh pod us-central2-b" in text


def test_every_worker_of_a_slice_gets_the_flags_as_they_were_given(launch):
    code, started, _ = launch("tpu_run.sh", "pod", "us-central2-b", *FLAGS)
    assert code == 0 and len(started) == 1
    line = started[0][-1].removeprefix("--command=")
    found = re.search(r"nohup \.venv/bin/python -m beit_jax\.main --distributed(.*) > run\.log",
                      line)
    assert shlex.split(found[1]) == FLAGS
    assert subprocess.run(["bash", "-n", "-c", line]).returncode == 0


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_example_of_a_script_names_a_recipe_that_exists(script):
    text = (ROOT / "launch" / script).read_text()
    recipes = re.findall(r"--config (configs/\S+?\.py)", text)
    assert recipes or script == "tpu_create.sh"
    assert all((ROOT / recipe).is_file() for recipe in recipes)
