"""The whole of BEiT on small photographs: CIFAR-10, 32 px, patches of 4 px, an image folder.

python -m beit_jax.main --config configs/cifar10/beit.py:DIR --workdir runs/cifar10

DIR holds one sub-folder of images for each class (cat/0000.jpg, ...); the last 500 of each class
are held out for validation. Stages: tokenizer (a dVAE with 8 x 8 codes), pretrain (nothing but
images), finetune (from pre-training) and scratch (same network, same epochs), and linear probes on
frozen features of the pre-trained and of an untrained backbone.
In place of DIR: "smoke". All numbers are ours; docs/results.md says what came out.
"""

from configs import common

EPOCHS = dict(tokenizer=2.0, pretrain=12.0, finetune=2.0, probe=1.0)
CODES = 256
# 16 px views, a code for each 2 px of them: an 8 x 8 grid, as the patches of 4 px
TOKENIZER = dict(vocab_size=CODES, n_hid=16, n_init=32, num_groups=2, blocks_per_group=1)
BACKBONE = dict(image_px=32, patch_size=4, width=128, depth=4, num_heads=4, layer_scale_init=0.1)


def get_config(path: str = ""):
    config = common.staged()
    config.stages = dict(
        tokenizer=tokenizer(path),
        pretrain=pretrain(path),
        finetune=finetune(path, "stage:pretrain"),
        scratch=finetune(path, ""),
        probe=probe(path, "stage:pretrain"),
        probe_untrained=probe(path, "random"),
    )
    config.report = dict(
        metric="eval/validation/top1", scale=100.0, unit="%",
        title="CIFAR-10, accuracy on 5,000 held-out training images",
        rows={
            "fine-tuned from pre-training": {"1 run": ("finetune",)},
            "from scratch, same epochs": {"1 run": ("scratch",)},
            "linear probe, pre-trained": {"1 run": ("probe",)},
            "linear probe, untrained": {"1 run": ("probe_untrained",)},
        },
    )
    return common.shrink(config) if path == "smoke" else config


def photographs(path: str, epochs: float):
    """What all stages share."""
    config = common.base()
    config.total_epochs = epochs
    config.data.update(
        name="folder", path=path, holdout_per_class=500, global_batch_size=128, image_px=32,
        **common.HALF_MEAN_STD)
    return config


def tokenizer(path: str):
    config = photographs(path, EPOCHS["tokenizer"])
    config.task = "dvae_train"
    config.data.update(image_px=16, global_batch_size=32, crop_scale=(0.3, 1.0))
    config.model = dict(**TOKENIZER)
    config.loss = dict(kl_weight=1.5, kl_steps=500, tau_start=0.5, tau_end=1 / 16, tau_steps=1500)
    config.optim.update(
        learning_rate=5e-3, min_learning_rate=1e-4, weight_decay=1e-4, decay_rule="kernels")
    return config


def pretrain(path: str):
    config = photographs(path, EPOCHS["pretrain"])
    config.task = "beit_pretrain"
    config.data.update(target_px=16, crop_scale=(0.3, 1.0))
    config.model = dict(**BACKBONE, use_shared_rel_pos=True)
    config.mask = dict(kind="block", num_masked=25, min_block=4)  # about 40 % of 64
    config.target = dict(kind="dvae", checkpoint="stage:tokenizer", **TOKENIZER)
    config.loss = dict(positions="masked")
    config.optim.update(
        learning_rate=2e-3, min_learning_rate=1e-5, warmup_epochs=0.5, weight_decay=0.05,
        clip_norm=3.0)
    return config


def finetune(path: str, start: str):
    config = photographs(path, EPOCHS["finetune"])
    config.task = "classification"
    config.data.update(crop_scale=(0.3, 1.0))
    config.model = dict(**BACKBONE, use_rel_pos=True, pool="mean", drop_path_rate=0.1,
                        num_classes=-1, head_init_scale=0.001)
    config.loss = dict(label_smoothing=0.1)
    config.optim.update(
        learning_rate=1e-3, min_learning_rate=1e-6, warmup_epochs=0.5, weight_decay=0.05,
        layer_decay=0.75 if start else 1.0)
    if start:
        config.init.update(common.FROM_MIM, checkpoint=start)
    return config


def probe(path: str, start: str):
    config = photographs(path, EPOCHS["probe"])
    config.task = "linear_probe"
    config.data.update(crop_scale=(0.3, 1.0))
    config.model = dict(**BACKBONE, use_shared_rel_pos=True)
    config.probe = dict(feature="mean", num_classes=-1)
    config.optim.update(learning_rate=4e-3, weight_decay=1e-4, decay_rule="all")
    config.init.checkpoint = start
    return config
