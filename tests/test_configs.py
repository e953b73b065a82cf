"""Every recipe builds, says nothing that nobody reads, holds the published numbers, and runs."""

import ast
import dataclasses
import functools
import importlib
import pathlib
import shlex
from typing import NamedTuple

import documented
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from beit_jax import main, tasks
from beit_jax.checkpoint import flatten
from beit_jax.training import recipe, rehearsal, state
from configs import common

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = {f"{path.parent.name}/{path.stem}": path
         for path in sorted((ROOT / "configs").glob("*/*.py")) if path.stem != "__init__"}
ABLATIONS = ("full", "no_blockwise", "no_tokens", "no_tokens_no_blockwise", "recover_all",
             "recover_all_no_mask", "full_800", "layer_scale", "layer_scale_rel_pos",
             "own_tokenizer")
VARIANTS = {
    "beit/pretrain_in1k": ("base", "large", "base_plain", "large_plain"),
    "beit/pretrain_in22k": ("base", "large"),
    "beit/finetune_in22k": ("base", "large"),
    "beit/finetune_in1k": ("base", "large", "base_pt1k", "large_pt1k"),
    "beit/finetune_in22k_to_in1k": ("base", "base_384", "large", "large_384", "large_512"),
    "beit/finetune_in1k_plain": ("base", "large", "base_384", "large_384"),
    "beit/finetune_cifar100": ("base", "intermediate"),
    "beit/linear_probe": ("base", "large", "base_rel_pos", "large_rel_pos", "base_code",
                          "large_code", "base_code_pt1k", "large_code_pt1k"),
    "beit/ablations": ABLATIONS,
}
BEIT = [(name, variant) for name, variants in VARIANTS.items() for variant in variants]
ALL = BEIT + [(name, "") for name in FILES if name not in VARIANTS]


def get_config(name: str, variant: str = ""):
    return importlib.import_module("configs." + name.replace("/", ".")).get_config(variant)


def runs_of(config) -> dict:
    """The stages of a config, or the config itself under the name "run"."""
    return dict(config.stages.items()) if len(config.stages) else {"run": config}


def with_classes(config, num_classes: int):
    """What the loop does once it knows the data."""
    for section in (config.model, config.probe, config.target):
        if section.get("num_classes") == -1:
            section.num_classes = num_classes
    if config.model.get("vocab_size") == -1:
        config.model.vocab_size = 210
    return config


def test_every_file_of_the_papers_recipes_has_its_variants_tested():
    assert {name for name in FILES if name.startswith("beit/")} == set(VARIANTS)


@pytest.mark.parametrize("path", [*FILES.values(), ROOT / "configs" / "common.py"],
                         ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_configs_import_nothing_but_ml_collections_and_configs(path):
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            imported.add(node.module)
    assert {name.partition(".")[0] for name in imported} <= {"ml_collections", "configs"}


@pytest.mark.parametrize("name", recipe.SECTIONS)
def test_common_base_has_every_key_of_the_section_with_its_default(name):
    section, cls = common.base()[name], recipe.SECTIONS[name]
    for field in cls.__dataclass_fields__.values():
        if field.default is not dataclasses.MISSING:
            assert section[field.name] == field.default, f"{name}.{field.name}"
        elif field.default_factory is not dataclasses.MISSING:
            assert dict(section[field.name]) == field.default_factory(), f"{name}.{field.name}"
    assert set(section) == set(cls.__dataclass_fields__)


@pytest.mark.parametrize(("name", "variant"), ALL)
def test_every_key_of_every_recipe_is_read(name, variant):
    config = get_config(name, variant)
    for stage in runs_of(config).values():
        recipe.read(stage)
        tasks.make(with_classes(stage, 1_000))
    for row in dict(config.report).get("rows", {}).values():
        for stages in row.values():
            assert set(stages) <= set(config.stages)


@pytest.mark.parametrize("section", [*recipe.SECTIONS, "mask", "target", "loss", "model"])
def test_a_typo_in_a_section_is_an_error_that_names_it(section):
    config = get_config("beit/pretrain_in1k")
    config[section].num_maskd = 1
    with pytest.raises(ValueError, match=rf"config\.{section}\.num_maskd is unknown"):
        recipe.read(config)
        tasks.make(config)


@pytest.mark.parametrize("section", ["augment", "probe"])
def test_a_typo_in_a_section_of_another_task_is_an_error_that_names_it(section):
    name = {"augment": "beit/finetune_in1k", "probe": "beit/linear_probe"}[section]
    config = with_classes(get_config(name), 10)
    config[section].cutmixx = 1
    with pytest.raises(ValueError, match=rf"config\.{section}\.cutmixx is unknown"):
        tasks.make(config)


def test_an_unknown_variant_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match="'huge' is unknown; known: base, large"):
        get_config("beit/finetune_in1k", "huge")


# BEiT Table 12; microsoft/unilm beit/README.md
PRETRAINING = {
    ("beit/pretrain_in1k", "base"): (800, 10, 0, 3.0, 0.1, 0.485),
    ("beit/pretrain_in1k", "large"): (800, 10, 0, 1.0, 1e-5, 0.485),
    ("beit/pretrain_in1k", "base_plain"): (800, 10, 0, 3.0, 0.0, 0.485),
    ("beit/pretrain_in1k", "large_plain"): (800, 10, 0, 1.0, 0.0, 0.485),
    ("beit/pretrain_in22k", "base"): (150, 0, 10_000, 3.0, 0.1, 0.5),
    ("beit/pretrain_in22k", "large"): (150, 0, 10_000, 1.0, 1e-5, 0.5),
}


@pytest.mark.parametrize(("recipe_name", "expected"), PRETRAINING.items(), ids=str)
def test_pretraining_has_the_published_numbers(recipe_name, expected):
    config = get_config(*recipe_name)
    assert (config.total_epochs, config.optim.warmup_epochs, config.optim.warmup_steps,
            config.optim.clip_norm, config.model.layer_scale_init, config.data.mean[0]) == expected
    assert (config.data.global_batch_size, config.optim.learning_rate,
            config.optim.min_learning_rate, config.optim.weight_decay) == (2048, 1.5e-3, 1e-5, 0.05)
    assert (config.mask.num_masked, config.mask.min_block, config.mask.kind) == (75, 16, "block")
    assert (config.data.image_px, config.data.target_px, config.data.color_jitter,
            config.model.drop_path_rate, config.optim.layer_decay) == (224, 112, 0.4, 0.1, 1.0)


# microsoft/unilm beit/get_started_for_image_classification.md; BEiT Table 13 for pt1k, plain and
# CIFAR-100, its Sec. 3.1 and DeiT for 384 px: epochs, batch, rate, warm-up epochs, layer decay,
# drop path, weight decay, mixup, side in pixels
FINETUNING = {
    ("beit/finetune_in1k", "base"): (100, 1024, 4e-3, 20, 0.65, 0.1, 0.05, 0.8, 224),
    ("beit/finetune_in1k", "large"): (50, 1024, 1e-3, 5, 0.75, 0.2, 0.05, 0.8, 224),
    ("beit/finetune_in1k", "base_pt1k"): (100, 1024, 4e-3, 20, 0.65, 0.1, 0.05, 0.8, 224),
    ("beit/finetune_in1k", "large_pt1k"): (50, 1024, 2e-3, 5, 0.75, 0.1, 0.05, 0.8, 224),
    ("beit/finetune_in1k_plain", "base"): (100, 1024, 4e-3, 20, 0.65, 0.1, 0.05, 0.8, 224),
    ("beit/finetune_in1k_plain", "large"): (50, 1024, 2e-3, 5, 0.75, 0.1, 0.05, 0.8, 224),
    ("beit/finetune_in1k_plain", "base_384"): (10, 512, 5e-6, 0, 0.65, 0.1, 1e-8, 0.8, 384),
    ("beit/finetune_in1k_plain", "large_384"): (10, 512, 5e-6, 0, 0.75, 0.1, 1e-8, 0.8, 384),
    ("beit/finetune_in22k", "base"): (90, 4096, 3e-3, 5, 0.65, 0.2, 0.05, 0.0, 224),
    ("beit/finetune_in22k", "large"): (90, 2048, 2e-3, 5, 0.75, 0.2, 0.05, 0.0, 224),
    ("beit/finetune_in22k_to_in1k", "base"): (30, 512, 2e-5, 5, 0.85, 0.1, 1e-8, 0.0, 224),
    ("beit/finetune_in22k_to_in1k", "base_384"): (30, 512, 2e-5, 5, 0.85, 0.1, 1e-8, 0.0, 384),
    ("beit/finetune_in22k_to_in1k", "large"): (30, 512, 2e-5, 5, 0.9, 0.4, 1e-8, 0.0, 224),
    ("beit/finetune_in22k_to_in1k", "large_384"): (30, 512, 2e-5, 5, 0.9, 0.4, 1e-8, 0.0, 384),
    ("beit/finetune_in22k_to_in1k", "large_512"): (30, 512, 2e-5, 5, 0.9, 0.4, 1e-8, 0.0, 512),
    ("beit/finetune_cifar100", "base"): (150, 512, 4e-3, 20, 0.65, 0.1, 0.3, 0.8, 224),
}


@pytest.mark.parametrize(("recipe_name", "expected"), FINETUNING.items(), ids=str)
def test_finetuning_has_the_published_numbers(recipe_name, expected):
    config = get_config(*recipe_name)
    optim = config.optim
    assert (config.total_epochs, config.data.global_batch_size, optim.learning_rate,
            optim.warmup_epochs, optim.layer_decay, config.model.drop_path_rate,
            optim.weight_decay, config.augment.get("mixup", 0.0),
            config.model.image_px) == expected
    assert config.data.image_px == config.model.image_px
    floor = 5e-6 if "plain" in recipe_name[0] and config.data.image_px == 384 else 1e-6
    assert (optim.min_learning_rate, optim.clip_norm, config.loss.label_smoothing,
            config.data.randaugment) == (floor, 0.0, 0.1, "rand-m9-mstd0.5-inc1")
    assert config.augment.random_erasing == (0.0 if "cifar" in recipe_name[0] else 0.25)


# instantiated reference modules; 22k: 21,841 classes
PARAMETERS = {
    ("beit/pretrain_in1k", "base"): 91_965_776,
    ("beit/pretrain_in1k", "base_plain"): 92_089_856,
    ("beit/pretrain_in1k", "large"): 311_534_016,
    ("beit/pretrain_in1k", "large_plain"): 311_674_880,
    ("beit/finetune_in1k", "base"): 86_530_984,
    ("beit/finetune_in1k", "large_pt1k"): 304_430_568,
    ("beit/finetune_in22k_to_in1k", "base_384"): 86_744_104,
    ("beit/finetune_in22k_to_in1k", "large_512"): 305_674_728,
    ("beit/finetune_in22k", "base"): 102_557_713,
    ("beit/finetune_in22k", "large"): 325_792_593,
}


@pytest.mark.parametrize(("recipe_name", "count"), PARAMETERS.items(), ids=str)
def test_recipe_trains_a_model_of_the_published_size(recipe_name, count):
    config = get_config(*recipe_name)
    task = tasks.make(with_classes(config, 21_841 if "22k" == recipe_name[0][-3:] else 1_000))
    px = config.data.image_px
    batch = {"image": jax.ShapeDtypeStruct((1, px, px, 3), jnp.uint8)}
    params = jax.eval_shape(task.init, jax.random.key(0), batch)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


class Command(NamedTuple):
    """A command of a recipe's first lines. weights: section -> checkpoint."""

    name: str
    variant: str
    workdir: str
    weights: dict


def commands_of(name: str) -> list[Command]:
    found = []
    for block in documented.blocks_of_script(FILES[name]):
        words = shlex.split(block.text, comments=True)
        flags = dict(zip(words, words[1:]))
        file, _, variant = flags["--config"].partition(":")
        weights = {key.removeprefix("--config.").removesuffix(".checkpoint"): path
                   for word in words for key, _, path in [word.partition("=")]
                   if key.endswith(".checkpoint")}
        found.append(Command(file.removeprefix("configs/").removesuffix(".py"), variant,
                             flags["--workdir"], weights))
    return found


COMMANDS = [command for name in FILES for command in commands_of(name)]
# (recipe that goes on, variant) -> (recipe that it starts from, variant)
CHAIN = {
    (after.name, after.variant): [(before.name, before.variant)]
    for after in COMMANDS if after.weights.get("init", "").startswith("runs/")
    for before in COMMANDS if before.workdir == after.weights["init"]
    and before.name.split("/")[0] == after.name.split("/")[0]}
IN_WORDS = {  # what first lines say in words alone
    "pretrain_in1k": {"finetune_in1k": "{}_pt1k", "linear_probe": "{}_rel_pos {}_code_pt1k"},
    "pretrain_in22k": {"finetune_in1k": "{}", "finetune_in22k": "{}", "linear_probe": "{}_code"},
    "finetune_in22k": {"finetune_in22k_to_in1k": "{} {}_384"},
    "pretrain_in1k:{}_plain": {"finetune_in1k_plain": "{}", "linear_probe": "{}"},
    "finetune_in1k_plain": {"finetune_in1k_plain": "{}_384"},
}
for before, afters in IN_WORDS.items():
    for size in ("base", "large"):
        name, _, variant = before.partition(":")
        for after, variants in afters.items():
            for each in variants.split():
                CHAIN.setdefault((f"beit/{after}", each.format(size)), []).append(
                    (f"beit/{name}", variant.format(size) or size))
CHAIN[("beit/finetune_cifar100", "intermediate")] = [("beit/finetune_in1k_plain", "base")]
LINKS = [(after, before) for after, starts in CHAIN.items() for before in dict.fromkeys(starts)]


def test_every_command_that_starts_from_a_run_names_one_that_another_command_makes():
    made = {(command.name.split("/")[0], command.workdir) for command in COMMANDS}
    for command in COMMANDS:
        start = command.weights.get("init", "")
        assert not start.startswith("runs/") or (command.name.split("/")[0], start) in made, command
    assert {name for name, _ in CHAIN} >= {
        "beit/finetune_in1k", "beit/finetune_in1k_plain", "beit/finetune_in22k",
        "beit/finetune_in22k_to_in1k", "beit/finetune_cifar100", "beit/linear_probe",
        "beitv2/finetune", "beitv2/linear_probe", "beitv2/robustness", "mae/finetune",
        "mae/linear_probe", "img2vec/finetune", "img2vec/linear_probe", "beit3/finetune",
        "beit3/vqa", "beit3/nlvr2", "beit3/itc", "beit3/captioning", "beit3/retrieval"}


@pytest.mark.parametrize(("after", "before"), LINKS, ids=lambda link: ":".join(link))
def test_a_recipe_sees_the_pixels_of_the_one_that_its_first_lines_start_from(after, before):
    start, config = get_config(*before), get_config(*after)
    assert (config.model.width, config.model.depth, config.model.patch_size) == (
        start.model.width, start.model.depth, start.model.patch_size)
    config.init.checkpoint = "runs/start"
    state.check_statistics(config, {}, record_of={"runs/start": start}.get)
    published = after[0] == "beit3/finetune"  # with other statistics than all else of BEiT-3
    assert config.init.accept_other_statistics == published


@functools.cache
def shapes_of(name: str, variant: str):
    """At toy size: (flat shapes of what a recipe trains or, if it probes, looks at; its config)."""
    config = get_config(name, f"{variant}_smoke")
    task = tasks.make(with_classes(config, 1_000))
    px, key = config.data.image_px, jax.random.key(0)
    if config.task == "linear_probe":
        variables = jax.eval_shape(task.frozen["backbone"].init, key)
    else:
        batch = {"image": jax.ShapeDtypeStruct((2, px, px, 3), jnp.uint8)}
        variables = jax.eval_shape(task.init, key, batch)
    return flatten(variables["params"]), config


@pytest.mark.parametrize(
    ("after", "before"), [link for link in LINKS if not any(
        name.startswith("beit3/") or "large" in variant for name, variant in link)],
    ids=lambda link: ":".join(link))
def test_weights_fit_where_first_lines_send_them(after, before):
    target, config = shapes_of(*after)
    loaded = {path: np.zeros(leaf.shape, leaf.dtype)
              for path, leaf in shapes_of(*before)[0].items()
              if config.task != "linear_probe" or path in target}  # from which heads stay behind
    options = recipe.read(config).init
    fitted = state.fit(loaded, target, options, "config.init")
    assert {path.split("/")[0] for path in target.keys() - fitted.keys()} <= {"head", "fc_norm"}


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablation_changes_what_it_says_and_nothing_else(name):
    changed = {
        "full": set(),
        "no_blockwise": {"mask.kind", "mask.min_block"},
        "no_tokens": {"target.kind", "target.checkpoint", "data.target_px"},
        "recover_all": {"loss.positions"},
        "recover_all_no_mask": {"loss.positions", "mask.kind", "mask.num_masked",
                                "mask.min_block"},
        "full_800": {"total_epochs"},
        "layer_scale": {"model.layer_scale_init"},
        "layer_scale_rel_pos": {"model.layer_scale_init", "model.use_abs_pos",
                                "model.use_shared_rel_pos"},
        "own_tokenizer": {"target.checkpoint"},
    }
    changed["no_tokens_no_blockwise"] = changed["no_tokens"] | changed["no_blockwise"]
    full, other = (flat(get_config("beit/ablations", variant).stages.pretrain)
                   for variant in ("full", name))
    assert {key for key in full.keys() | other.keys()
            if full.get(key) != other.get(key)} == changed[name]


def flat(config) -> dict:
    """{"section.key": value}"""
    pairs = {}
    for key, value in config.items():
        if hasattr(value, "items"):
            pairs |= {f"{key}.{inner}": leaf for inner, leaf in value.items()}
        else:
            pairs[key] = value
    return pairs


def check_smoke(name, variant, tmp_path):
    config = get_config(name, variant)
    for stage in runs_of(config).values():
        names = {data.name for data in (stage.data, *stage.data.streams.values())}
        assert names in ({"synthetic"}, {"synthetic", "mixture"}) and stage.total_steps == 2
    results = main.run(config, str(tmp_path))
    # token diversity, retrieval and captioning measure, and have no loss
    losses = [value for key, value in _all_metrics(results).items()
              if key.endswith(("loss", "/similarity", "/mean", "/BLEU-1"))]
    assert losses and all(loss == loss and abs(loss) < 1e6 for loss in losses)


def _all_metrics(results) -> dict:
    nested = {f"{stage}/{key}": value for stage, metrics in results.items()
              if isinstance(metrics, dict) for key, value in metrics.items()}
    return nested or results


# they run as their first lines say, from each other: test_documented_commands.py
IN_CHAINS = {name for name in FILES if f"configs/{name}.py" in sum(documented.CHAINS.values(), [])}
# stages like those of the chains; variants that take another path run in tests of their own
IN_SHAPES = {*(f"{name}/ablations" for name in ("beit", "beitv2", "mae", "img2vec")),
             "dvae/imagenet_256", "dvae/paper"}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FILES.keys() - IN_CHAINS - IN_SHAPES))
def test_smoke_runs(name, tmp_path):
    check_smoke(name, "smoke", tmp_path)


@pytest.mark.parametrize("name", sorted(IN_SHAPES))
def test_smoke_takes_its_data_and_measures(name):
    for stage in runs_of(get_config(name, "smoke")).values():
        for section in (stage.init, stage.target):
            if section.get("checkpoint", "").startswith("stage:"):
                section.checkpoint = "random"
        assert any(measured.endswith(("loss", "top1")) for measured in rehearsal.of_config(stage))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["no_tokens", "recover_all_no_mask"])
def test_ablation_of_targets_and_positions_pretrains(name, tmp_path):
    config = get_config("beit/ablations", f"{name}_smoke").stages.pretrain
    results = main.run(config, str(tmp_path))
    assert results["eval/validation/loss"] > 0
