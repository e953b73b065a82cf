"""Wrong input ends in one line on stderr and exit code 1 or 2: what is wrong, and what to do."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from compiling import pretended
from PIL import Image

from beit_jax import checkpoint

ROOT = Path(__file__).parents[1]
PRETRAIN = f"{ROOT}/configs/beit/pretrain_in1k.py:smoke"
FINETUNE = f"{ROOT}/configs/beit/finetune_in1k.py:base_pt1k_smoke"


def last_line(result, code=1):
    """The one line of an error; warnings and the line on devices may stand before it."""
    found, err, _ = result
    assert found == code, err
    assert not any("Traceback" in line for line in err)
    assert [line.startswith("error: ") for line in err].count(True) == 1, err
    assert err[-1].startswith("error: ")
    return err[-1]


@pytest.mark.parametrize("overrides, code, message", [
    (["--config.data.crop_scael=0.5"], 1, "crop_scael"),
    (["--config.optim.learning_rate=fast"], 2, "fast"),
    (["--config.data.global_batch_size=0"], 1, "global_batch_size=0"),
    (["--config.model.patch_size=7"], 1, "patch"),
    (["--config.mask.num_masked=17"], 1, "num_masked=17"),
    (["--config.target.checkpoint="], 1, "target.checkpoint is empty"),
    (["--config.target.checkpoint=/no/such.npz"], 1, "/no/such.npz does not exist"),
    (["--config.init.checkpoint=/no/such/run"], 1, "/no/such/run does not exist"),
    (["--config.data.name=no_such_data"], 1, "no_such_data"),
    (["--config.data.name=folder", "--config.data.path=/no/folder"], 1, "/no/folder"),
    (["--config.mesh.data=3"], 1, "config.mesh data=3"),
    (["--config.total_epochs=3."], 1, "exactly one of them must be above 0"),
    (["--config.dtype=float8"], 1, "float8"),
    (["--config.task=beit_pretrian"], 1, "beit_pretrian"),
    (["--config.optim.accumulation_steps=3"], 1, "accumulation_steps=3"),
    (["--config.matmul_precision=best"], 1, "matmul_precision='best'"),
    (["--config.optim.schedule=zigzag"], 1, "zigzag"),
    (["--config.optim.schedule=constant"], 1, "optim.min_learning_rate=1e-05 has no effect here"),
    (["--config.mask.kind=random"], 1, "mask.min_block=4 has no effect here"),
    (["--config.data.target_px=0", "--config.data.target_filter=bicubic"], 1,
     "target_filter='bicubic' is wrong: it has no effect"),
    (["--config.model.num_heads=5"], 1, "num_heads=5"),
], ids=lambda value: value[-1].removeprefix("--config.") if isinstance(value, list) else None)
def test_a_wrong_value_of_a_pretraining(command, tmp_path, overrides, code, message):
    result = command("--config", PRETRAIN, "--workdir", tmp_path / "run", *overrides)
    assert message in last_line(result, code)
    assert not list(tmp_path.glob("run/checkpoints/*"))


def test_a_batch_that_the_devices_cannot_share():
    """In a process of its own: eight pretended devices."""
    env = pretended(8)
    done = subprocess.run(
        [sys.executable, "-m", "beit_jax.main", "--config", PRETRAIN, "--workdir", "/dev/null/w",
         "--config.data.global_batch_size=20"], env=env, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert "global_batch_size=20 is no multiple of 8 devices; nearest: 16" in last_line(
        (1, done.stderr.splitlines(), ""))


@pytest.fixture
def photographs(tmp_path):
    """Two classes of four PNG files."""
    folder = tmp_path / "images"
    for label in ("cat", "dog"):
        for i in range(8):
            path = folder / "train" / label / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((40, 40, 3), 20 * i, np.uint8)).save(path)
    return folder


def folder_flags(photographs):
    return ["--config.data.name=folder", f"--config.data.path={photographs}",
            "--config.data.holdout_per_class=0", "--config.data.global_batch_size=4"]


@pytest.mark.slow
def test_corrupt_and_16_bit_images_are_skipped_or_read_and_the_run_goes_on(
        command, tmp_path, photographs):
    broken = photographs / "train" / "cat" / "broken.png"
    broken.write_bytes((photographs / "train" / "cat" / "3.png").read_bytes()[:60])
    (photographs / "train" / "dog" / "text.jpg").write_text("not an image")
    deep = (np.arange(1600, dtype=np.uint32).reshape(40, 40) * 40).astype(np.uint16)
    Image.fromarray(deep).save(photographs / "train" / "dog" / "deep.png")
    code, err, _ = command("--config", PRETRAIN, "--workdir", tmp_path / "run",
                           *folder_flags(photographs))
    assert code == 0, err
    told = " ".join(err)
    assert "broken.png" in told and "text.jpg" in told


def test_only_corrupt_images(command, tmp_path, photographs):
    for path in photographs.rglob("*.png"):
        path.write_bytes(b"\x89PNG\r\n\x1a\n torn")
    line = last_line(command("--config", PRETRAIN, "--workdir", tmp_path / "run",
                             *folder_flags(photographs)))
    assert "images" in line


def test_an_empty_folder(command, tmp_path):
    (tmp_path / "empty").mkdir()
    line = last_line(command("--config", PRETRAIN, "--workdir", tmp_path / "run",
                             *folder_flags(tmp_path / "empty")))
    assert "empty" in line


@pytest.mark.slow
def test_a_checkpoint_of_another_width(command, tmp_path):
    first = command("--config", PRETRAIN, "--workdir", tmp_path / "pre",
                    "--config.model.width=64")
    assert first[0] == 0, first[1]
    line = last_line(command("--config", FINETUNE, "--workdir", tmp_path / "tuned",
                             f"--config.init.checkpoint={tmp_path / 'pre'}",
                             "--config.model.width=32"))
    assert "another size" in line and "64" in line and "32" in line
    line = last_line(command("--config", PRETRAIN, "--workdir", tmp_path / "pre",
                             "--config.model.width=32", "--config.total_steps=3"))
    assert "another model" in line and "width was 64, is 32" in line
    assert checkpoint.load_variables(tmp_path / "pre")["cls_token"].shape[-1] == 64


def test_a_workdir_that_cannot_be_written(toy, command, tmp_path):
    (tmp_path / "file").write_text("in the way")  # root may write everywhere else
    line = last_line(command("--config", toy.__file__, "--workdir", tmp_path / "file" / "run"))
    assert "cannot be written" in line and "--workdir" in line


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk(toy, command, tmp_path, monkeypatch):
    """A file system of 1 MB, or Orbax's own error where we may not mount one."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path],
                             capture_output=True).returncode == 0
    if not mounted:
        real = checkpoint.ocp.CheckpointManager.save

        def fail(self, step, **kwargs):
            if step > 2:
                raise ValueError("RESOURCE_EXHAUSTED: Error writing")
            return real(self, step, **kwargs)
        monkeypatch.setattr(checkpoint.ocp.CheckpointManager, "save", fail)
    try:
        line = last_line(command(
            "--config", toy.__file__, "--workdir", tmp_path / "run", "--config.total_steps=400",
            "--config.model.width=300", "--config.checkpoint.keep_last=100",
            "--config.checkpoint.every_steps=1"))
        assert "No space left on device" in line or "disk" in line.lower(), line
        assert checkpoint.load_variables(tmp_path / "run")  # the earlier steps are whole
    finally:
        if mounted:
            subprocess.run(["umount", "-l", tmp_path], check=True)
