"""Reads golden files: inputs, weights and results of the original programs.

The folder is BEIT_JAX_GOLDEN, by default tests/golden/data. What a file is a test OF, its kind,
follows from the arrays and the configuration it holds, so that other files of the same format are
picked up whatever they are called.
"""

import dataclasses
import json
import os
import pathlib
import re

import numpy as np

# What a file can be a test of. Some test_*.py beside this file must say load("<kind>"):
# test_golden_files.py looks.
KINDS = (
    "mim", "finetune", "train_trace", "dvae", "block_masking", "relpos_index", "posembed_interp",
    "init_stats", "param_groups", "cosine_schedule", "clip_visual", "dino_vit", "vit_other_size",
    "mim_aggregated", "quantizer", "kmeans", "vqkd", "masked_autoencoder", "plain_finetune",
    "sincos", "resnet", "resnet_from_seed",
    "multiway", "vqa", "nlvr2", "captioning", "caption_decode", "retrieval", "multiway_classes",
    "multiway_posembed", "multiway_param_groups", "retrieval_metrics",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Golden:
    """One file. Keys of params, inputs, outputs, grads come without their prefix; `arrays` holds
    everything under its full name."""

    path: pathlib.Path
    config: dict
    arrays: dict[str, np.ndarray]

    def _part(self, prefix: str) -> dict[str, np.ndarray]:
        return {k[len(prefix):]: v for k, v in self.arrays.items() if k.startswith(prefix)}

    @property
    def params(self) -> dict[str, np.ndarray]:
        return self._part("param/")

    @property
    def inputs(self) -> dict[str, np.ndarray]:
        return self._part("in/")

    @property
    def outputs(self) -> dict[str, np.ndarray]:
        return self._part("out/")

    @property
    def grads(self) -> dict[str, np.ndarray]:
        return self._part("grad/")


def folder() -> pathlib.Path:
    """Where the files are."""
    default = pathlib.Path(__file__).parent / "data"
    return pathlib.Path(os.environ.get("BEIT_JAX_GOLDEN") or default)


def files() -> list[pathlib.Path]:
    """Every golden file, sorted."""
    return sorted(folder().glob("*.npz"))


def read(path: pathlib.Path) -> Golden:
    """One golden file."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    config = json.loads(str(arrays.pop("config"))) if "config" in arrays else {}
    arrays.pop("f32_error", None)
    return Golden(path, config, arrays)


def kind(golden: Golden) -> str:
    """What the file is a test of, by its content; "" if nobody knows."""
    names, config = golden.arrays.keys(), golden.config
    if config.get("multiway"):
        return multiway_kind(names)
    if "in/image_row_of_caption" in names:
        return "retrieval_metrics"
    if any(name.endswith("/head_lr_weight_20") for name in names):
        return "multiway_param_groups"
    if any(re.fullmatch(r"in/\d+to\d+", name) for name in names):
        return "multiway_posembed"
    if "out/losses" in names and "steps" in config:
        return "train_trace"
    if "in/noise" in names and "out/latent" in names:
        return "masked_autoencoder"
    if "global_pool" in config:
        return "plain_finetune"
    if any(name.startswith("out/dim") for name in names):
        return "sincos"
    if "n_blk_per_group" in config:
        return "dvae"
    if "param/class_embedding" in names:
        return "clip_visual"
    if "out/last_selfattention" in names:
        return "dino_vit"
    if "out/pos_embed" in names and "input_size" in config:
        return "vit_other_size"
    if "bottleneck_widths" in config:
        return "resnet"
    if "out/layer1_first8" in names and "shapes" in names:
        return "resnet_from_seed"
    if "in/cotangent_zq" in names:
        return "quantizer"
    if "in/init_means" in names:
        return "kmeans"
    if "in/teacher_features" in names:
        return "vqkd"
    if "param/lm_head.weight" in names and "in/mask" in names:
        return "mim_aggregated" if "out/loss_2" in names else "mim"
    if "param/head.weight" in names and "out/logits" in names and "in/image" in names:
        return "finetune"
    if any(name.endswith("/count_hist") for name in names):
        return "block_masking"
    if any(name.startswith("out/index_") for name in names):
        return "relpos_index"
    if any(name.startswith("in/relpos_") for name in names):
        return "posembed_interp"
    if "stats" in names and "names" in names:
        return "init_stats"
    if any(name.endswith("/layer_id") for name in names):
        return "param_groups"
    if "cases" in config and any(name.startswith("out/case") for name in names):
        return "cosine_schedule"
    return ""


def multiway_kind(names) -> str:
    """The same for files of BEiT-3: the inputs tell the use."""
    if "in/image2" in names:
        return "nlvr2"
    if "in/forced_ids" in names:
        return "caption_decode"
    if "in/masked_ids" in names:
        return "captioning"
    if "param/logit_scale" in names:
        return "retrieval"
    if "in/labels" in names:
        return "vqa"
    if "in/label" in names:
        return "multiway_classes"
    return "multiway"


def load(wanted: str) -> list[Golden]:
    """All files of a kind; use as `@pytest.mark.parametrize("golden", load("mim"), ids=name)`."""
    if wanted not in KINDS:
        raise ValueError(f"kind {wanted!r} is none of {', '.join(KINDS)}")
    return [golden for golden in map(read, files()) if kind(golden) == wanted]


def name(golden: Golden) -> str:
    """A test id."""
    return golden.path.stem


def assert_close(ours, golden: np.ndarray, *, scale: float | None = None, relative: float = 2e-5):
    """|ours - golden| <= relative * scale, scale = largest |golden| unless given.

    2e-5 is ten times what the original program loses in float32 against float64.
    """
    scale = float(np.max(np.abs(golden), initial=0)) if scale is None else scale
    np.testing.assert_allclose(np.asarray(ours), golden, rtol=0, atol=relative * scale)


def largest_grad(golden: Golden) -> float:
    """The common scale of a file's gradients (see assert_close)."""
    return max(float(np.max(np.abs(grad))) for grad in golden.grads.values())
