"""What the recipes on built-in data promise in their docstrings."""

import importlib

import pytest

from configs.digits import mae


def get_config(name, variant=""):
    return importlib.import_module(f"configs.digits.{name}").get_config(variant)


@pytest.mark.parametrize("name", ["mae", "img2vec"])
def test_pre_training_and_scratch_have_the_same_budget_and_labels(name):
    stages = get_config(name).stages
    for seed in mae.SEEDS:
        for rate in ("2e-3", "7e-4"):
            tuned, scratch = (stages[f"{what}_{rate}_seed{seed}"]
                              for what in ("finetune", "scratch"))
            assert tuned.init.checkpoint == "stage:pretrain" and not scratch.init.checkpoint
            assert tuned.total_steps == scratch.total_steps
            assert tuned.data.to_dict() == scratch.data.to_dict()
            assert tuned.optim.learning_rate == scratch.optim.learning_rate


def test_the_teacher_has_the_patches_of_the_student_and_the_papers_share_is_hidden():
    stages = get_config("img2vec").stages
    student, teacher = stages.pretrain.model, stages.pretrain.target.model
    assert (teacher.image_px, teacher.patch_size) == (student.image_px, student.patch_size)
    assert 16 - stages.pretrain.mask.num_masked == int(16 * (1 - 0.6))


def test_all_teachers_of_the_thesis_get_the_same_student_and_steps():
    config = get_config("img2vec_teachers")
    runs = [stage for name, stage in config.stages.items() if name.startswith("pretrain_")]
    assert len(runs) == 5 * 3
    assert len({(run.total_steps, str(run.model), str(run.mask), str(run.loss), str(run.optim))
                for run in runs}) == 1
    for groups in config.report.rows.values():
        for stage in groups["3 seeds"]:
            assert stage in config.stages
        assert len({config.stages[stage].data.subset_seed for stage in groups["3 seeds"]}) == 3
