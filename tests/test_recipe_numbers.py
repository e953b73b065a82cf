"""Every number of every recipe of the papers: recipe_numbers/ has them, each with its source.

The tables there were read from the papers and the original commands. A number that changes in a
recipe, a key that comes or goes, and a variant that nobody read fail here.
"""

import importlib
import math
import pathlib

import pytest
from recipe_numbers import beit, beit3, beitv2, dvae, img2vec, mae
from recipe_numbers.table import cite, flat

from configs import common

RECIPES = {**beit.RECIPES, **beitv2.RECIPES, **beit3.RECIPES, **mae.RECIPES, **img2vec.RECIPES,
           **dvae.RECIPES}
PAPERS = ("beit", "beitv2", "beit3", "mae", "img2vec", "dvae")
FILES = sorted(f"{path.parent.name}/{path.stem}"
               for path in (pathlib.Path(__file__).parent.parent / "configs").glob("*/*.py")
               if path.parent.name in PAPERS and path.stem != "__init__")

# keys that no paper has: names of ours, and what belongs to the machine
OF_OURS = {
    "task": "our name of the program",
    "data.name": "where the data lie is the user's",
    "data.train_split": "TFDS's names of splits; of texts they are in the tables",
    "data.eval_split": "as train_split",
    "data.eval_batch_size": "of the machine's memory: no result depends on it",
    "data.streams.images.name": "as data.name",
    "data.streams.images.path": "as data.name",
    "data.streams.texts.name": "as data.name",
    "data.streams.texts.annotations": "as data.name",
    "data.streams.pairs.name": "as data.name",
    "data.streams.pairs.annotations": "as data.name",
    "data.streams.pairs.path": "as data.name",
    "model.kind": "our name of the network",
    "model.remat": "memory against time: no result depends on it",
    "loss.sequential": "memory against time: no result depends on it",
    "target.checkpoint": "a file of the user, or a stage before",
    "target.statistics.checkpoint": "as target.checkpoint",
    "target.adapt": "how weights are made to fit; tests of models/adapt.py",
    "init.checkpoint": "as target.checkpoint",
    "init.adapt": "as target.adapt",
    "init.allow_missing": "what a network lacks in its start; tests of each chain of recipes",
    "init.allow_unused": "as allow_missing",
    "init.accept_other_statistics": "BEiT-3's classifier, tests/test_configs.py",
    "checkpoint.keep_best": "which step stays on the disk",
    "log.every_steps": "lines of a log",
}
BASE = flat(common.base())
MISSING = "missing"


def same(found, value) -> bool:
    """Equal, floats up to rounding: 1.5e-4 x 16 is 2.4e-3."""
    if isinstance(value, tuple):
        return (isinstance(found, tuple) and len(found) == len(value)
                and all(map(same, found, value)))
    if isinstance(value, float):
        return isinstance(found, float | int) and math.isclose(found, value, rel_tol=1e-12)
    return found == value and isinstance(found, bool) == isinstance(value, bool)


def stages_of(name: str, variant: str) -> dict:
    """{stage: config}; a recipe without stages is its own, under ""."""
    config = importlib.import_module(f"configs.{name.replace('/', '.')}").get_config(variant)
    return dict(config.stages.items()) if len(config.stages) else {"": config}


def variants_of(name: str) -> list[str]:
    """What the error about an unknown variant lists."""
    if name == "img2vec/diversity":  # whose variants are lists of its stages
        return [""]
    with pytest.raises(ValueError, match="is unknown; known: ") as error:
        stages_of(name, "?")
    return str(error.value).partition("known: ")[2].partition(", each")[0].split(", ")


@pytest.mark.parametrize("name", FILES)
def test_every_stage_of_every_variant_has_a_table(name):
    found = {(name, variant, stage)[:3 if stage else 2]
             for variant in variants_of(name) for stage in stages_of(name, variant)}
    assert found == {key for key in RECIPES if key[0] == name}


@pytest.mark.parametrize("key", RECIPES, ids=":".join)
def test_recipe_has_the_numbers_of_its_sources_and_no_others(key):
    name, variant, *stage = key
    found, table = flat(stages_of(name, variant)["".join(stage)]), RECIPES[key]
    seen = {path: (found.get(path, MISSING), *row) for path, row in table.items()}
    wrong = {path: f"{there!r}, not {value!r} ({source})"
             for path, (there, value, source) in seen.items() if not same(there, value)}
    unread = {path: value for path, value in found.items()
              if BASE.get(path, MISSING) != value and path not in table and path not in OF_OURS}
    assert not wrong and not unread


def test_every_key_of_ours_is_in_use():
    found = {path for name in FILES for variant in variants_of(name)
             for config in stages_of(name, variant).values() for path, value in flat(config).items()
             if BASE.get(path, MISSING) != value}
    assert OF_OURS.keys() <= found


def test_every_number_has_a_source():
    assert all(source for table in RECIPES.values() for _, source in table.values())


def test_common_holds_no_number_of_a_paper_but_defaults_that_the_tables_state():
    """A default that changes is seen in the recipes that rely on it."""
    stated = {path for table in RECIPES.values() for path in table}
    defaults = cite("", optim=dict(b1=0.9, b2=0.999, eps=1e-8, clip_norm=0.0, layer_decay=1.0,
                                   head_rate=1.0, ema_decay=0.0, decay_rule="matrices",
                                   decay_rel_pos_bias=True, weight_decay_end=-1.0),
                    data=dict(flip=0.5, crop_scale=(0.08, 1.0), crop_ratio=(3 / 4, 4 / 3),
                              interpolation="bicubic", target_filter="lanczos3"))
    assert defaults.keys() <= stated
    assert {path: BASE[path] for path in defaults} == {
        path: value for path, (value, _) in defaults.items()}
