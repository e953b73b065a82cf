"""A shorter tokenizer run on ImageNet-1k: 250,000 updates. Every reduced number is ours, untried.

python -m beit_jax.main --config configs/dvae/imagenet_256.py --workdir runs/dvae  # CPU: ":smoke"

Differs from configs/dvae/paper.py in length alone: temperature and learning rate end earlier.
"""

from configs import common
from configs.dvae import paper


def get_config(variant: str = ""):
    _, smoke = common.choose(variant, ("base",))
    config = paper.get_config()
    config.total_steps = 250_000
    config.loss.tau_steps = 100_000
    config.optim.decay_steps = 0  # the cosine takes the whole run
    config.eval.every_steps = 10_000
    return common.shrink(config) if smoke else config
