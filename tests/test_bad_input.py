"""Wrong input ends in one line on stderr and exit code 1 or 2: what is wrong, and what to do."""

import functools
import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from PIL import Image
from processes import pretended

from beit_jax import checkpoint, options
from beit_jax.training import recipe, sharding

ROOT = Path(__file__).parents[1]
PRETRAIN = f"{ROOT}/configs/beit/pretrain_in1k.py:smoke"
FINETUNE = f"{ROOT}/configs/beit/finetune_in1k.py:base_pt1k_smoke"


NAN, INF = float("nan"), float("inf")
TASKS = {  # a recipe of each task, at toy size
    "pretrain": "configs.beit.pretrain_in1k", "finetune": "configs.beit.finetune_in1k",
    "probe": "configs.beit.linear_probe", "aggregate": "configs.beitv2.pretrain",
    "tokenizer": "configs.beitv2.vqkd", "subset": "configs.beitv2.robustness",
    "mae": "configs.mae.pretrain", "img2vec": "configs.img2vec.pretrain",
    "dvae": "configs.dvae.paper", "mixture": "configs.beit3.pretrain",
    "captions": "configs.beit3.captioning", "retrieval": "configs.beit3.retrieval",
    "backbone": "configs.digits.img2vec_teachers"}
NUMBER = ("1", None, NAN)  # what a number is not
WHOLE = (*NUMBER, 1.5, True)
WRONG = {  # recipe -> {key: values}
    "pretrain": {
        "seed": (-1, 2**31, *WHOLE), "task": (5, None, ["beit_pretrain"], "beit"),
        "total_epochs": (INF, -1.0, *NUMBER), "total_steps": (-2, 0, *WHOLE),
        "dtype": ("float8", 32), "matmul_precision": ("best", None),
        "model": (5, None, "base"), "optim": ([1], None), "data": ("cifar10", None),
        "mesh.data": (0, -2, *WHOLE), "mesh.tensor": (0, "all"),
        "model.image_px": (0, -32, 36, *WHOLE),
        "model.patch_size": (0, -8, 7, 8.0, *WHOLE),
        "model.width": (0, -32, 33, 10**12, *WHOLE), "model.depth": (0, -1, *WHOLE),
        "model.num_heads": (0, -2, 5, *WHOLE), "model.mlp_ratio": (-1, 0.0, 0.001, INF, *NUMBER),
        "model.layer_scale_init": (-0.1, INF, *NUMBER), "model.drop_path_rate": (1.5, 1.0, -0.1),
        "model.use_abs_pos": (1, "yes", None), "model.initializer": ("zeros", None),
        "model.epsilon": (0.0, -1e-6, NAN), "model.attention": ("flash", 1),
        "model.token_multiple": (0, -8), "model.unroll": (-1, 0.5), "model.remat": ("some", True),
        "mask.kind": ("stripes", 1, ["block"]), "mask.num_masked": (0, -1, 16, 6.0, None, NAN),
        "mask.min_block": (0, -4, 7, None), "mask.max_block": (0, 3, -1, NAN, "6"),
        "mask.min_aspect": (0.0, 1.5, -0.3, INF, *NUMBER), "mask.max_aspect": (0.2, 0.0, NAN),
        "mask.cell": (0, -1), "loss.positions": ("none", 1),
        "target.kind": ("sift", None, ["dvae"], 3), "target.checkpoint": (None, 5, ["x"]),
        "target.adapt": ("drop_head", ("drop_heat",), 1), "target.use_ema": (1, "no"),
        "target.vocab_size": (0, -1, 32.0, *WHOLE), "target.n_hid": (0, 3, -8),
        "target.n_init": (0, -1), "target.num_groups": (0, 11, 1.0), "target.dtype": ("float8",),
        "target.blocks_per_group": (0, -1)},
    "finetune": {
        "model.num_classes": (0, 1, -2, 10.0, *WHOLE), "model.pool": ("max", None),
        "model.head_init_scale": (-1.0, NAN), "model.kind": ("vit", ["beit"]),
        "loss.label_smoothing": (2, 1.0, -0.1, INF, *NUMBER),
        "augment.mixup": (-1, NAN, INF, "0.8"), "augment.cutmix": (-0.5, NAN),
        "augment.random_erasing": (1.5, -0.1, NAN), "augment.switch_probability": (1.1, -1, NAN),
        "augment.group_size": (0, -4, 3, 4.0),
        "optim.learning_rate": (-1e-3, INF, *NUMBER), "optim.min_learning_rate": (-1e-6, 1.0, NAN),
        "optim.name": ("sgd", None), "optim.schedule": ("zigzag",), "optim.decay_rule": ("none",),
        "optim.warmup_steps": (-1, 1.5, NAN), "optim.warmup_epochs": (-1, INF, *NUMBER),
        "optim.decay_steps": (-1, 2.5), "optim.b1": (1.0, -0.1, *NUMBER),
        "optim.b2": (1.5, -1, NAN),
        "optim.eps": (0.0, -1e-8, *NUMBER), "optim.weight_decay": (-0.05, INF, *NUMBER),
        "optim.weight_decay_end": (-2.0, -0.05, NAN), "optim.clip_norm": (-3.0, INF, *NUMBER),
        "optim.layer_decay": (0.0, -0.5, 1.5, *NUMBER), "optim.head_rate": (0, -1, NAN),
        "optim.accumulation_steps": (0, -1, 1.5), "optim.decay_rel_pos_bias": (0, None),
        "optim.ema_decay": (1.0, -0.1, NAN), "optim.mu_dtype": ("float7", None),
        "optim.momentum": (1.0, -0.9), "optim.trust_coefficient": (0.0, -1.0),
        "init.checkpoint": (None, 5), "init.use_ema": ("yes", None),
        "init.adapt": ("resize_pos_embed", ("resize_pos_embd",), (5,)),
        "init.allow_missing": ("^head/", ("(",), (5,)), "init.allow_unused": (("(",), ("a**",)),
        "init.collections": ("codebook", (1,)),
        "eval.every_steps": (-1, *WHOLE), "eval.every_epochs": (-1, NAN, INF),
        "eval.split": (None, 5), "eval.limit": (-1, 1.5, NAN), "eval.pictures": (-1, NAN),
        "eval.knn": ((0,), (5, -1), (1.5,), 5, "5"), "eval.knn_temperature": (0.0, -1, NAN),
        "eval.knn_split": (None,), "eval.knn_bank": (-1, 0.5),
        "checkpoint.every_steps": (-1, NAN), "checkpoint.keep_last": (0, -1, None),
        "checkpoint.keep_best": (None, 1), "checkpoint.keep_every_steps": (-5, 0.5),
        "log.every_steps": (0, -1, 0.5), "log.tensorboard": (1, None),
        "data.name": ("", None, 5), "data.path": (None, 5),
        "data.global_batch_size": (0, -8, 8.0, *WHOLE), "data.eval_batch_size": (-1, NAN),
        "data.image_px": (0, -32, *WHOLE), "data.target_px": (-1, 0.5),
        "data.train_split": (None,), "data.eval_split": (5,), "data.subset_seed": (-1, NAN),
        "data.holdout_per_class": (-1, 0.5), "data.examples_per_class": (-1,),
        "data.train_examples": (-1,), "data.target_filter": ("box",),
        "data.crop": ("center", None),
        "data.crop_scale": (0.5, (0.5,), (0.0, 1.0), (0.5, 0.1), (0.1, 1.5), (0.1, NAN)),
        "data.crop_ratio": ((1.0, 0.5), (-1, 1), "wide"), "data.interpolation": ("cubic",),
        "data.flip": (1.5, -0.1, *NUMBER), "data.color_jitter": (-0.4, NAN, "0.4"),
        "data.randaugment": ("auto", "rand-m9", "rand-m99-inc1", "vl-m7-p2", "rand-x9-inc1",
                             "rand-m9.9.9-inc1", None),
        "data.eval_resize": ("pad",), "data.eval_crop_ratio": (1.5, -1, 1e-9, NAN),
        "data.fast": (1, "no"), "data.threads": (-1, 1.5), "data.answers_min_count": (0,),
        "data.mean": ((0.5,), 0.5, (0.5, 0.5, 123.7), (0.5, 0.5, NAN), ("a", "b", "c")),
        "data.std": (0, (0.0, 0.5, 0.5), (58.4, 57.1, 57.4), (0.5, 0.5), (0.5, 0.5, -0.5)),
        "data.synthetic_examples": (0,), "data.synthetic_classes": (0, -1),
        "data.text_length": (2, -1, NAN), "data.captions": ("all",), "data.skip_defects": (0,),
        "data.holdout_images": (-1,), "data.streams": (5, {"a": {}})},
    "probe": {"probe.num_classes": (0, 1, -2, NAN), "probe.feature": ("max",),
              "probe.normalise": ("group", None)},
    "aggregate": {
        "model.early_layer": (0, 3, -1, None), "model.head_layers": (0, -1),
        "model.head_init": ("x",),
        "model.shared_head": (1,), "mask.kind": ("none",), "target.codebook_size": (0, -1, "16"),
        "target.code_dim": (0, None), "target.mean": ((0.5,), (2, 2, 2)),
        "target.std": ((0, 0, 0),),
        "target.num_heads": (0, 5), "target.depth": (0,), "target.mlp_ratio": (-1.0,)},
    "tokenizer": {
        "model.decoder_depth": (0, -1), "model.code_dim": (0,), "model.codebook_size": (0, 1.5),
        "model.num_heads": (0, 7), "model.patch_size": (0, -4), "loss.decay": (1.0, -0.1, NAN),
        "loss.commitment_weight": (-1.0, NAN), "loss.kmeans_iterations": (-1, 0.5),
        "loss.kmeans_images": (0,), "target.attention": ("flash",), "target.num_heads": (0, 5),
        "target.output_dim": (0,)},
    "subset": {"target.num_classes": (-2, 7, None), "target.classes": (5, None, "no_such_list"),
               "target.all_classes": (5, None, "no_such_list")},
    "mae": {
        "model.decoder_width": (0, 30, -32), "model.decoder_depth": (0,),
        "model.decoder_num_heads": (0, 5), "model.fusion": ("sum", None),
        "model.grid_match": ("nearest",), "loss.kind": ("huber", None), "loss.beta": (0.0, -1, NAN),
        "target.normalise": (1, "yes"), "target.patch_size": (0, -8), "mask.kind": ("stripes",)},
    "img2vec": {
        "model.fusion_blocks": (1, (0, 5), (-1,), (0, 0), "all"), "target.norm": ("batch", None),
        "target.statistics": (5, {"checkpoint": "x"}), "target.layers": ((1, 1), (0, 1, 1, 1), 4),
        "target.widths": ((8, 8, 8), (8, 8, 8, -8)), "target.stem_width": (0,),
        "target.image_px": (0, 33), "loss.global_weight": (-0.5, NAN),
        "loss.global_layers": (0, -1), "loss.global_hidden": (0, -1), "loss.global_target": ("x",),
        "loss.global_source": ("x",), "mask.cell": (0, 3)},
    "dvae": {
        "loss.likelihood": ("laplace",), "loss.kl_weight": (-1.0, NAN), "loss.kl_steps": (-1, 0.5),
        "loss.tau_start": (0.0, -1), "loss.tau_end": (0.0, NAN), "loss.tau_steps": (-1,),
        "loss.ln_b_min": (NAN, -INF), "model.num_groups": (0, 7), "model.n_hid": (0, 3),
        "model.vocab_size": (0,), "data.image_px": (33,)},
    "mixture": {
        "loss.text": (-1.0, NAN), "loss.sequential": (1,), "mask.image": (5, None),
        "mask.image.num_masked": (0, 16), "mask.text.rate": (0.0, 1.5, NAN),
        "mask.pair.corruption": ((1.0,), (0.5, 0.5, 0.5), (2, -1, 0), "bert"),
        "model.vl_layers": (-1, 2), "model.modalities": ("audio",), "model.init_std": (0.0, NAN),
        "model.vocab_size": (0, 5, -2), "model.text_positions": (0, 10), "model.width": (0, 33),
        "model.mlp_ratio": (-1, 0.001), "model.initializer": ("xavier",),
        "data.streams.images": (5, None), "data.streams.images.flip": (1.5, None),
        "data.streams.texts.share": (0, -1, True, 1.5), "data.streams.texts.text_length": (2, 2000),
        "data.streams.pairs.crop_scale": ((0.5, 0.1), (0.0, 1.0))},
    "captions": {
        "loss.drop_worst": (1.0, -0.1), "loss.drop_worst_after": (-1,), "mask.rate": (0.0, -1, NAN),
        "measure.beams": (0, 1.5), "measure.max_length": (2, 2000),
        "measure.length_penalty": (-1.0,),
        "model.text_positions": (0,)},
    "retrieval": {"measure.folds": (-1, 0.5, None), "model.pool": ("max",)},
    "backbone": {
        "target.model.patch_size": (0, 7), "target.model.num_heads": (0, 5, "3"),
        "target.model.depth": (0, None), "target.block": (9, -9, 0.5), "target.model": (5,),
        "target.mean": ((0,),)},
}
CASES = [(name, key, value) for name, keys in WRONG.items() for key, values in keys.items()
         for value in values]


@functools.cache
def recipe_of(name):
    """The toy recipe, of several stages the one with a teacher that was trained here."""
    config = importlib.import_module(TASKS[name]).get_config("smoke")
    stages = config.stages.values() or [config]
    return next((stage for stage in stages if stage.target.get("kind") == "backbone"),
                next(iter(stages)))


def put(config, path: str, value) -> None:
    """Sets a key as a config file may: without regard to the type that stands there."""
    *sections, key = path.split(".")
    for name in sections:
        config = config[name]
    with config.unlocked(), config.ignore_type():
        config[key] = value


def read(config) -> None:
    """All that is checked before data are read or anything compiles."""
    sharding.make_mesh(recipe.read(config).mesh)


@pytest.mark.parametrize("name", TASKS)
def test_the_recipes_are_right_as_they_stand(name):
    read(recipe_of(name))


@pytest.mark.parametrize("name, key, value", CASES, ids=lambda value: repr(value))
def test_a_wrong_value_is_one_line_that_names_key_and_value(name, key, value):
    config = recipe_of(name).copy_and_resolve_references()
    put(config, key, value)
    with pytest.raises((ValueError, OSError)) as error:
        read(config)
    line = str(error.value)
    assert key.split(".")[-1] in line and "\n" not in line
    shown = options.freeze(value)
    assert repr(shown) in line or str(shown) in line


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
    (["--config.model.num_heads=0"], 1, "config.model.num_heads=0 must be 1 or more"),
    (["--config.model.patch_size=-8"], 1, "config.model.patch_size=-8 must be 1 or more"),
    (["--config.total_steps=0", "--config.total_epochs=inf"], 1,
     "config.total_epochs=inf must be a finite number"),
    (["--config.target.vocab_size=0"], 1, "config.target.vocab_size=0 must be 1 or more"),
    (["--config.optim.mu_dtype=float7"], 1, "config.optim.mu_dtype='float7' is none of float32"),
    (["--config.init.allow_unused=('(',)"], 1, "'(' must be a regular expression"),
    (["--config.init.adapt=('resize_pos_embd',)"], 1, "'resize_pos_embd' is none of"),
    (["--config.optim.b2=nan"], 1, "config.optim.b2=nan must be a finite number"),
    (["--config.data.std=(0.0,0.5,0.5)"], 1, "config.data.std=(0.0, 0.5, 0.5): 0.0 must be above"),
    (["--config.mesh.fsdp=-1"], 1, "config.mesh data=-1, fsdp=-1"),
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


@pytest.mark.parametrize("flags, code", [
    (["--workdir", "gs://bucket/run"], 2),
    (["--config.init.checkpoint=gs://bucket/run"], 1),
    (["--config.target.checkpoint=gs://bucket/vqkd.npz"], 1),
], ids=["workdir", "weights", "target"])
def test_a_bucket_without_credentials(command, tmp_path, monkeypatch, flags, code):
    kind = type(epath.Path("gs://bucket"))  # of local paths too
    exists = kind.exists

    def fail(self):
        if not str(self).startswith("gs:"):
            return exists(self)
        raise RuntimeError("All attempts to get a bearer token failed.\n\t when reading metadata")

    monkeypatch.setattr(kind, "exists", fail)
    line = last_line(command("--config", PRETRAIN, "--workdir", tmp_path / "run", *flags),
                     code)
    assert "gs://bucket/" in line and "cannot be reached: All attempts to get" in line
