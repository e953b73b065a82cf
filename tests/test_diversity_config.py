"""configs/img2vec/diversity.py: its teachers and numbers, and what a user with few files gets."""

import json

import pytest

from beit_jax import main, tasks
from beit_jax.targets.teachers import TEACHERS
from beit_jax.tasks import teacher_features
from beit_jax.training import recipe
from configs.img2vec import diversity

# (rows x columns of tokens, width) at 224 px, as published
TOKENS = {
    "dino_resnet50": (7, 2048), "dino_vits16": (14, 384), "dino_vitb16": (14, 768),
    "mae_vitb16": (14, 768), "mae_vitl16": (14, 1024), "clip_vitb16": (14, 512),
    "dinov2_vits14": (16, 384), "dinov2_vitb14": (16, 768), "dinov2_vitl14": (16, 1024),
    "hog": (14, 108), "pixels": (14, 768),
}


def stages_of(variant=""):
    return dict(diversity.get_config(variant).stages.items())


@pytest.mark.parametrize("name", diversity.LAYERS)
def test_each_teacher_gives_tokens_of_the_published_size_and_reads_every_key(name):
    stage = diversity.get_config().stages[name]
    recipe.read(stage)
    assert name in TEACHERS
    tasks.make(stage)
    teacher = teacher_features.make(stage)
    side, width = TOKENS[name]
    assert (teacher.grid, teacher.dim) == ((side, side), width)


def test_each_teacher_is_measured_on_the_same_50000_training_images():
    for stage in stages_of().values():
        data = stage.data
        assert (stage.eval.split, stage.eval.limit, data.train_split) == ("train", 50_000, "train")
        assert (data.image_px, data.eval_crop_ratio) == (224, 0.875)
        assert (data.crop, data.flip, data.color_jitter, data.randaugment) == ("none", 0.0, 0.0, "")
        assert 0 <= stage.total_steps * data.global_batch_size - 50_000 < data.global_batch_size


@pytest.mark.parametrize(("variant", "names"), [
    ("", list(TOKENS)), ("random", list(TOKENS)), ("smoke", list(TOKENS)),
    ("dino_vitb16,dino_resnet50", ["dino_resnet50", "dino_vitb16"]),
    ("clip_vitb16,random", ["clip_vitb16"]), ("clip_vitb16_smoke", ["clip_vitb16"]),
    ("./photos,clip_vitb16", ["clip_vitb16"]),
])
def test_the_variant_picks_teachers_weights_and_images(variant, names):
    config = diversity.get_config(variant)
    assert main.stage_order(config) == names
    assert list(json.loads(config.to_json())["report"]["rows"]) == names
    for stage in config.stages.values():
        wanted = "random" if "random" in variant or "smoke" in variant else ""
        free = stage.target.kind in diversity.FREE  # which have no weights to load
        assert stage.target.get("checkpoint") == (None if free else wanted)
        assert (stage.data.name, stage.data.path) == (
            ("folder", "./photos") if "photos" in variant
            else ("synthetic", "") if "smoke" in variant else ("imagenet2012", ""))


@pytest.mark.parametrize("variant", ["dino_vitb8", "dino_vitb16,all", "a/b,c/d"])
def test_an_unknown_variant_is_one_line_that_lists_the_known_ones(variant):
    with pytest.raises(ValueError, match="is unknown: .*; known: random, smoke, a folder") as error:
        diversity.get_config(variant)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_said_and_what_was_measured_is_ranked_without_it(tmp_path):
    config = diversity.get_config("dino_vits16,dino_vitb16,clip_vitb16_smoke")
    config.stages.dino_vitb16.target.checkpoint = ""
    with pytest.raises(ValueError, match="target.checkpoint is empty, but this task needs a tra"):
        main.run(config, str(tmp_path))
    before = (tmp_path / "dino_vits16" / "metrics.jsonl").stat().st_mtime_ns
    config = diversity.get_config("dino_vits16,clip_vitb16_smoke")
    results = main.run(config, str(tmp_path))
    assert (tmp_path / "dino_vits16" / "metrics.jsonl").stat().st_mtime_ns == before
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    found = [row["mean"] for row in rows]
    assert found == sorted(result["eval/train/similarity"] for result in results.values())
    assert found[0] < found[1]
    assert [row["columns"]["D"] for row in rows] == pytest.approx([1 - value for value in found])
    assert [row["columns"]["K"] for row in rows] == [16.0, 16.0]
    figures = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"token_diversity.png", "clip_vitb16_similarity_maps.png"} <= figures
