"""Checkpoints: what is kept, what is refused, and that a broken one is never taken for whole."""

import errno
import gc
import json
import logging
import os
import re
import shutil
import subprocess

import flax.struct
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from beit_jax import checkpoint
from beit_jax.checkpoint import CheckpointOptions, Checkpoints
from beit_jax.convert import files


@flax.struct.dataclass
class State:
    """The shape of a run's state."""

    step: jax.Array
    params: dict
    model_state: dict
    opt_state: tuple
    ema_params: dict | None


def make_state(step, *, ema=False, width=4):
    params = {"blocks": {"kernel": jnp.full((width, 3), step, jnp.float32)}, "bias": jnp.ones(2)}
    return State(jnp.asarray(step), params, {"codebook": {"embed": jnp.full(3, step * 10.0)}},
                 (jnp.full(2, step),), jax.tree.map(lambda x: x + 0.5, params) if ema else None)


def save_steps(workdir, steps, *, metrics=None, ema=False, **options):
    saved = Checkpoints(workdir, CheckpointOptions(**{"keep_last": 10} | options))
    for step in steps:
        saved.save(step, make_state(step, ema=ema), metrics and {"top1": metrics[step], "x": 0.0})
    saved.close()
    return saved.all_steps()


def targets(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
                        state)


def test_a_restored_state_is_the_saved_one(tmp_path):
    save_steps(tmp_path, [1, 2], ema=True)
    saved = Checkpoints(tmp_path, CheckpointOptions())
    state = make_state(2, ema=True)
    back = saved.restore(saved.latest_step(), targets(state))
    assert isinstance(back, State) and int(back.step) == 2
    jax.tree.map(np.testing.assert_array_equal, state, back)


@pytest.mark.parametrize("options, kept", [
    (dict(keep_last=2), [5, 6]),
    (dict(keep_last=2, keep_best="top1"), [2, 5, 6]),
    (dict(keep_last=2, keep_best="-top1"), [4, 5, 6]),
    (dict(keep_last=1, keep_best="top1", keep_every_steps=3), [2, 3, 6]),
], ids=["last", "best", "smallest", "every_third"])
def test_kept_steps_across_a_restart(tmp_path, options, kept):
    metrics = {1: 0.3, 2: 0.9, 3: 0.5, 4: 0.1, 5: 0.6, 6: 0.7}
    save_steps(tmp_path, [1, 2, 3], metrics=metrics, **options)
    assert save_steps(tmp_path, [4, 5, 6], metrics=metrics, **options) == kept


def test_an_unknown_best_metric_is_an_error_at_the_save_and_the_state_is_kept(tmp_path):
    with pytest.raises(ValueError, match="keep_best='top5' is none of .*: top1, x"):
        save_steps(tmp_path, [1], metrics={1: 0.5}, keep_best="top5")
    assert Checkpoints(tmp_path, CheckpointOptions(), read_only=True).latest_step() == 1


def test_a_step_that_is_evaluated_after_its_save_can_be_the_best(tmp_path):
    options = CheckpointOptions(keep_last=1, keep_best="top1")
    saved = Checkpoints(tmp_path, options)
    saved.save(1, make_state(1))
    saved.close()
    saved = Checkpoints(tmp_path, options)  # another start, which evaluates
    saved.rate(1, {"top1": 0.9})
    assert not checkpoint.fault_of(checkpoint.absolute(tmp_path) / "checkpoints" / "1")
    for step in (2, 3):
        saved.save(step, make_state(step), {"top1": 0.5})
    saved.close()
    assert saved.all_steps() == [1, 3]


def test_a_save_leaves_nothing_in_memory(tmp_path):
    saved = Checkpoints(tmp_path, CheckpointOptions(keep_last=1))
    counts = []
    for step in range(1, 7):
        saved.save(step, make_state(step))
        saved.wait()
        gc.collect()
        counts.append(sum(type(each) is list for each in gc.get_objects()))
    saved.close()
    assert counts[-1] - counts[-3] < 10, counts  # 24 lists a save before


def test_saving_an_older_step_is_an_error_and_the_same_step_is_not(tmp_path):
    save_steps(tmp_path, [4, 4])
    with pytest.raises(RuntimeError, match="step 3 was not saved"):
        save_steps(tmp_path, [3])


def test_a_state_of_another_shape_is_one_clear_line(tmp_path):
    save_steps(tmp_path, [1])
    with pytest.raises(ValueError, match="does not fit this config's model") as caught:
        Checkpoints(tmp_path, CheckpointOptions()).restore(1, targets(make_state(1, width=5)))
    assert "\n" not in str(caught.value)


def files_of(folder):
    return sorted(os.path.join(root, name).removeprefix(f"{folder}/")
                  for root, _, names in os.walk(folder) for name in names)


def test_truncating_any_file_of_the_newest_step_falls_back_to_the_one_before(tmp_path, caplog):
    save_steps(tmp_path / "whole", [1, 2])
    step = tmp_path / "whole" / "checkpoints" / "2"
    names = [name for name in files_of(step) if (step / name).stat().st_size]
    assert len(names) >= 6
    for i, name in enumerate(names):
        run = tmp_path / f"run{i}"
        shutil.copytree(tmp_path / "whole", run)
        path = run / "checkpoints" / "2" / name
        path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
        with caplog.at_level(logging.WARNING, logger="beit_jax"):
            caplog.clear()
            saved = Checkpoints(run, CheckpointOptions(keep_last=9))
            latest = saved.latest_step()
        if name.endswith(("_CHECKPOINT_METADATA", "commit_success.txt")):
            assert latest == 2  # dates only: nothing is lost with them
        else:
            assert latest == 1 and "is broken" in caplog.text, name
            assert (run / "checkpoints_broken" / "2").is_dir()
            saved.save(2, make_state(7))  # the step can be saved again
        back = saved.restore(latest, targets(make_state(0)))
        assert int(back.step) == latest
        saved.close()
        assert saved.all_steps() == [1, 2]


@pytest.mark.parametrize("damage", ["removed", "flipped", "no_manifest", "unfinished"])
def test_other_damage_is_noticed_too(tmp_path, damage, caplog):
    save_steps(tmp_path, [1, 2])
    step = tmp_path / "checkpoints" / "2"
    data = max((step / name for name in files_of(step)), key=lambda path: path.stat().st_size)
    if damage == "removed":
        data.unlink()
    elif damage == "flipped":
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 1
        data.write_bytes(content)
    elif damage == "no_manifest":
        (step / checkpoint.MANIFEST).unlink()
    else:  # killed before Orbax gave the folder its name
        step.rename(tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp")
    saved = Checkpoints(tmp_path, CheckpointOptions(keep_last=9))
    assert saved.latest_step() == 1
    saved.save(2, make_state(2))
    saved.close()
    assert saved.all_steps() == [1, 2]
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["1", "2"]


def test_a_look_from_outside_changes_nothing(tmp_path):
    save_steps(tmp_path, [1, 2])
    (tmp_path / "checkpoints" / "2" / checkpoint.MANIFEST).unlink()
    (tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp").mkdir()
    before = files_of(tmp_path) + sorted(os.listdir(tmp_path / "checkpoints"))
    looked = Checkpoints(tmp_path, CheckpointOptions(), read_only=True)
    assert looked.latest_step() == 1
    assert int(looked.restore(1, targets(make_state(0))).step) == 1
    looked.close()
    assert files_of(tmp_path) + sorted(os.listdir(tmp_path / "checkpoints")) == before


def test_a_look_from_outside_tells_which_step_it_takes_for_a_broken_one(tmp_path, caplog):
    save_steps(tmp_path, [1, 2])
    (tmp_path / "checkpoints" / "2" / checkpoint.MANIFEST).unlink()
    assert Checkpoints(tmp_path, CheckpointOptions(), read_only=True).latest_step() == 1
    assert "checkpoints/2 is broken" in caplog.text and "taking step 1" in caplog.text


@pytest.mark.parametrize("read_only", [False, True], ids=["train", "evaluate"])
def test_where_no_step_is_whole_nothing_starts_anew_by_itself(tmp_path, read_only):
    save_steps(tmp_path, [1, 2])
    for step in "12":
        (tmp_path / "checkpoints" / step / checkpoint.MANIFEST).write_text("{}]")
    before = files_of(tmp_path)
    for _ in range(2):  # the first try must not have made the second one possible
        with pytest.raises(ValueError, match="no saved step .* is whole .2: .*; 1: .*away") as said:
            Checkpoints(tmp_path, CheckpointOptions(), read_only)
        assert "\n" not in str(said.value) and files_of(tmp_path) == before
    (tmp_path / "checkpoints").rename(tmp_path / checkpoint.BROKEN)
    with pytest.raises(ValueError, match="no saved step is left beside"):
        Checkpoints(tmp_path, CheckpointOptions(), read_only)


@pytest.mark.parametrize("text", [b"[1]", b'{"a": 5}', b'{"a": ["b", 1]}', b'{"a": [1, 2, 3]}',
                                  b"null", b'"\xff"', b"[" * 100_000, b"{"])
def test_an_odd_manifest_is_a_broken_step(tmp_path, text):
    (tmp_path / checkpoint.MANIFEST).write_bytes(text)
    fault = checkpoint.fault_of(checkpoint.absolute(tmp_path))
    assert fault.startswith(f"{checkpoint.MANIFEST} is")


@pytest.mark.parametrize("name", ["run lr[3e-4]", "a*b?c", "[!x]"])
def test_a_workdir_whose_name_looks_like_a_pattern(tmp_path, name):
    assert save_steps(tmp_path / name, [1, 2]) == [1, 2]
    assert save_steps(tmp_path / name, [3]) == [1, 2, 3]
    np.testing.assert_array_equal(checkpoint.load_variables(tmp_path / name)["blocks/kernel"],
                                  np.full((4, 3), 3.0))
    saved = Checkpoints(tmp_path / name, CheckpointOptions())
    assert int(saved.restore(3, targets(make_state(0))).step) == 3


def test_weights_of_a_run_prefer_the_averaged_ones_of_the_newest_whole_step(tmp_path):
    save_steps(tmp_path, [1, 2], ema=True)
    weights = checkpoint.load_variables(tmp_path)
    assert set(weights) == {"blocks/kernel", "bias"}
    assert isinstance(weights["bias"], np.ndarray)
    np.testing.assert_array_equal(weights["blocks/kernel"], np.full((4, 3), 2.5))
    raw = checkpoint.load_variables(tmp_path / "checkpoints" / "1", use_ema=False)
    np.testing.assert_array_equal(raw["blocks/kernel"], np.full((4, 3), 1.0))
    everything = checkpoint.load_variables(tmp_path, collections=True)
    np.testing.assert_array_equal(everything["codebook/embed"], np.full(3, 20.0))
    (tmp_path / "checkpoints" / "2" / checkpoint.MANIFEST).unlink()
    assert checkpoint.load_variables(tmp_path)["blocks/kernel"][0, 0] == 1.5


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_weights_of_a_file(tmp_path, suffix):
    arrays = {"a/b": np.arange(6.0).reshape(2, 3), "c": np.ones(1, np.float32)}
    path = str(tmp_path / f"weights{suffix}")
    np.savez(path, **arrays) if suffix == ".npz" else save_file(arrays, path)
    loaded = checkpoint.load_variables(path)
    assert set(loaded) == {"a/b", "c"}
    jax.tree.map(np.testing.assert_array_equal, dict(loaded), arrays)


@pytest.mark.parametrize("name, content, error, message", [
    ("missing.npz", None, FileNotFoundError, "does not exist"),
    ("nowhere", None, FileNotFoundError, "give a run's workdir"),
    ("torn.npz", b"PK\x03\x04 and no more", ValueError, "cannot be read"),
    ("torn.safetensors", b"\x99" * 30, ValueError, "cannot be read"),
])
def test_a_wrong_checkpoint_path_is_one_line(tmp_path, name, content, error, message):
    if content:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        checkpoint.load_variables(tmp_path / name)
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_a_file_of_another_program_must_be_converted_and_the_command_is_given(tmp_path):
    """Not "does not exist": the file is there."""
    command = "convert it first, python -m beit_jax.convert --source microsoft --input {}"
    for name in ("x.pth", "x.pt", "x.bin", "x.ckpt", "x.pkl"):
        (tmp_path / name).write_bytes(b"\x80\x02}.")
        with pytest.raises(ValueError, match=re.escape(command.format(tmp_path / name))):
            checkpoint.load_variables(str(tmp_path / name))
    save_file({"blocks.0.norm1.weight": np.ones(2, np.float32)}, str(tmp_path / "t.safetensors"))
    with pytest.raises(ValueError, match="blocks.0.norm1.weight and the like.*convert it first"):
        checkpoint.load_variables(str(tmp_path / "t.safetensors"))
    (tmp_path / "x.onnx").write_bytes(b"\x08\x07\x12\x07pytorch")
    with pytest.raises(ValueError, match="x.onnx cannot be read: this is an ONNX graph"):
        checkpoint.load_variables(str(tmp_path / "x.onnx"))
    folder = tmp_path / "downloaded"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match="downloaded is a folder without a run's"):
        checkpoint.load_variables(str(folder))
    save_file({"a.b": np.ones(2, np.float32)}, str(folder / "model.safetensors"))
    with pytest.raises(FileNotFoundError, match="convert the file in it, .*/model.safetensors"):
        checkpoint.load_variables(str(folder))


def test_bfloat16_of_a_file_is_widened(tmp_path):
    values = np.array([1.5, -2.0], ml_dtypes.bfloat16)
    save_file({"norm/scale": values}, str(tmp_path / "x.safetensors"))
    loaded = checkpoint.load_variables(str(tmp_path / "x.safetensors"))["norm/scale"]
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, [1.5, -2.0])


def test_a_broken_step_that_is_named_is_refused(tmp_path):
    save_steps(tmp_path, [1])
    (tmp_path / "checkpoints" / "1" / checkpoint.MANIFEST).write_text(json.dumps({"x": [1, 2]}))
    with pytest.raises(ValueError, match="is broken: x is missing"):
        checkpoint.load_variables(tmp_path / "checkpoints" / "1")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path):
    """On a real file system of 1 MB where we may mount one, else with Orbax's error pretended."""
    big = {"w": jax.random.normal(jax.random.key(0), (300, 300))}  # 360 kB that do not compress

    def state(step):
        return make_state(step).replace(params=big)

    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path],
                             capture_output=True).returncode == 0
    try:
        saved = Checkpoints(tmp_path, CheckpointOptions(keep_last=9))
        saved.save(1, state(1))
        saved.wait()
        if not mounted:
            def fail(*_, **__):
                raise ValueError('RESOURCE_EXHAUSTED: Error writing "params" in OCDBT database')
            saved._manager.save = fail
        with pytest.raises(OSError, match="cannot save step .*; step .* is kept") as caught:
            for step in (2, 3, 4):
                saved.save(step, state(step))
                saved.wait()
        assert caught.value.errno == errno.ENOSPC and "\n" not in str(caught.value)
        if mounted:
            again = Checkpoints(tmp_path, CheckpointOptions(keep_last=9))
            latest = again.latest_step()
            assert latest >= 1
            back = again.restore(latest, targets(state(0)))
            np.testing.assert_array_equal(back.params["w"], big["w"])
    finally:
        if mounted:
            subprocess.run(["umount", "-l", tmp_path], check=True)


def test_flatten_and_unflatten_are_inverse():
    tree = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    flat = checkpoint.flatten(tree)
    assert flat == {"a/b": 1, "a/c/d": 2, "e": 3}
    assert checkpoint.unflatten(flat) == tree


STATISTICS = {"data": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}}


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_what_is_recorded_in_a_file_is_no_array_of_it(tmp_path, suffix):
    path, plain = str(tmp_path / f"a.{suffix}"), str(tmp_path / f"b.{suffix}")
    arrays = {"a/kernel": np.ones((2, 3), np.float32)}
    files.write(path, arrays, record=STATISTICS)
    files.write(plain, arrays)
    assert checkpoint.recorded(path) == STATISTICS
    for file in (path, plain):
        assert checkpoint.load_variables(file).keys() == files.read(file).keys() == {"a/kernel"}
    assert checkpoint.recorded(plain) == {}  # as all older files, and other people's


@pytest.mark.parametrize("damage", [b"", b"PK", b"\xff" * 8, b"[" * 100_000])
@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_no_such_file_has_no_record(tmp_path, suffix, damage):
    path = tmp_path / f"a.{suffix}"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        checkpoint.recorded(str(path))
    path.write_bytes(damage)
    assert checkpoint.recorded(str(path)) == {}


def test_a_run_records_its_config_and_damage_to_it_names_the_file(tmp_path):
    step = tmp_path / "checkpoints" / "7"
    step.mkdir(parents=True)
    assert checkpoint.recorded(str(step)) == {}
    (tmp_path / "config.json").write_text(json.dumps(STATISTICS))
    assert checkpoint.recorded(str(step)) == checkpoint.recorded(str(tmp_path)) == STATISTICS
    for other in ("a/b", "a/b.pth", "checkpoints/none"):  # no runs, and none of theirs above them
        with pytest.raises(FileNotFoundError, match="does not exist"):
            checkpoint.recorded(str(tmp_path / other))
    for text in ('{"data": ', "[1]"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match="config.json is damaged") as caught:
            checkpoint.recorded(str(tmp_path))
        assert "\n" not in str(caught.value)
