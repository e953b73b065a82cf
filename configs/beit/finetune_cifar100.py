"""Fine-tuning on CIFAR-100, enlarged to 224 px: the plain ViT-B of the paper.

python -m beit_jax.main --config configs/beit/finetune_cifar100.py --workdir runs/cifar100 \
    --config.init.checkpoint=runs/pretrain_plain

Variants and what was published (top-1): base 90.1 %, from masked image modelling on ImageNet-1k;
  intermediate 91.8 %, from the model that was then fine-tuned on the labels of ImageNet-1k
  (finetune_in1k_plain.py).
Source: BEiT (arXiv 2106.08254v2), Sec. 3.1 and the appendix on CIFAR-100; what it does not state
  is as in Table 13. It repeats augmentation; its code does not and neither do we.
"""

from configs import common


def get_config(variant: str = ""):
    name, smoke = common.choose(variant, ("base", "intermediate"))
    config = common.base()
    config.task = "classification"
    config.total_epochs = 150.0
    config.data.update(
        name="cifar100",
        eval_split="test",  # CIFAR has no validation split
        global_batch_size=512,
        image_px=224,
        randaugment="rand-m9-mstd0.5-inc1",
        **common.IMAGENET_MEAN_STD,  # as in pre-training on ImageNet-1k
    )
    config.model = dict(
        image_px=224, patch_size=16, **common.VIT["base"],
        layer_scale_init=0.0,
        use_abs_pos=True, pool="mean",
        drop_path_rate=0.1,  # Table 13
        num_classes=-1,  # from the data: 100
        head_init_scale=0.001,  # unilm beit/run_class_finetuning.py
    )
    config.loss = dict(label_smoothing=0.1)  # Table 13
    config.augment = dict(
        random_erasing=0.0,  # off, unlike on ImageNet
        mixup=0.8, cutmix=1.0, switch_probability=0.5,  # Table 13
        group_size=64,  # ours: the paper does not state its batch per GPU
    )
    config.optim.update(
        learning_rate=4e-3,  # ours, within the range of Table 13, which is CIFAR-100's too
        min_learning_rate=1e-6, warmup_epochs=20.0, weight_decay=0.3, layer_decay=0.65,
    )
    config.init.update(common.FROM_MIM if name == "base" else common.FROM_CLASSIFIER)
    config.eval.every_epochs = 5.0
    config.checkpoint.keep_best = "top1"
    return common.shrink(config) if smoke else config
