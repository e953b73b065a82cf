"""TorchScript archives as torch writes them are read as their state dicts."""

import numpy as np
import pytest

from beit_jax.convert import files

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")


class Tower(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Parameter(torch.randn(8))
        self.conv1 = torch.nn.Conv2d(3, 8, 4, 4, bias=False)
        self.norm = torch.nn.LayerNorm(8)
        self.attn = torch.nn.MultiheadAttention(8, 2)
        self.mlp = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 8))
        self.register_buffer("input_resolution", torch.tensor(8))

    def forward(self, image):
        x = self.norm(self.conv1(image).flatten(2).permute(2, 0, 1) + self.embedding)
        return self.mlp(self.attn(x, x, x, need_weights=False)[0])


@pytest.mark.parametrize("how", ["trace", "script"])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
@pytest.mark.filterwarnings("ignore")
def test_traced_and_scripted_modules(tmp_path, how, half):
    module = Tower().eval()
    if how == "trace":
        made = torch.jit.trace(module, (torch.zeros(1, 3, 8, 8),))
    else:
        made = torch.jit.script(module)
    made = made.half() if half else made
    path = str(tmp_path / "x.pt")
    made.save(path)
    arrays, state = files.read(path), made.state_dict()
    assert arrays.keys() == state.keys()
    for name, tensor in state.items():
        assert arrays[name].dtype == tensor.numpy().dtype
        np.testing.assert_array_equal(arrays[name], tensor.numpy())
