"""Eight devices, or two processes, compute what one computes."""

import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from processes import pretended

from beit_jax import checkpoint
from beit_jax.training import loop, sharding
from beit_jax.training.sharding import MeshOptions

ROOT = Path(__file__).parents[2]
# ranks and hits: a text in 37 or a patch in 48 that changes its place is no rounding error
COUNTED = re.compile(r"accuracy|/(tr|ir)_r\d+$|validation/mean$")
RECALL = re.compile(r"/(tr|ir)_r\d+$|validation/mean$")
# generous: seconds on an idle machine, minutes where others work too
pytestmark = [pytest.mark.multidevice, pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def worker():
    """tests/multidevice/worker.py as a module of this process, which has one device."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests/multidevice")]
    import worker as module

    return module


def environment(devices):
    return pretended(devices) | {"PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def one_device(worker, tmp_path_factory):
    """Workdir of the recipe on one device."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    loop.run(worker.pretraining(), workdir)
    return workdir


@pytest.fixture(scope="module")
def codebooks(worker, tmp_path_factory):
    """What a tokenizer's first steps make on one device."""
    return worker.codebooks(tmp_path_factory.mktemp("codebooks"))


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """(what the worker found on 8 devices, its folder)."""
    workdir = tmp_path_factory.mktemp("eight")
    done = subprocess.run([sys.executable, ROOT / "tests/multidevice/worker.py", workdir],
                          env=environment(8), capture_output=True, text=True, timeout=1700)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Involuntary full rematerialization" not in done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("FOUND"))
    found = json.loads(line.removeprefix("FOUND"))
    assert found["devices"] == 8
    return found, workdir


def assert_close(found, expected):
    """Of {step/name: value}: what is counted may differ by near ties, all else by rounding."""
    assert found.keys() == expected.keys()
    measured = [name for name in expected if not COUNTED.search(name)]
    assert len(measured) >= 10
    for name in measured:
        # sums in another order; Adam divides by small numbers, which lets that grow
        assert found[name] == pytest.approx(expected[name], rel=2e-4, abs=1e-6), name
    for name in expected.keys() - set(measured) - set(filter(RECALL.search, expected)):
        assert found[name] == pytest.approx(expected[name], abs=0.1), name


def assert_recalls_follow(found, scores, is_own):
    """Recalls in percent, {step/name: value}, are those of `worker.similarities`.

    Where two of them are as close as rounding, as those of equal texts are, either may be first.
    """
    found = {name.split("/")[-1]: value for name, value in found.items() if RECALL.search(name)}
    for way, each, own in (("tr", scores, is_own), ("ir", scores.T, is_own.T)):
        best = np.where(own, each, -np.inf).max(1, keepdims=True)
        others = np.where(own, -np.inf, each)
        first, last = (others > best + 1e-5).sum(1), (others > best - 1e-5).sum(1)
        for k in (1, 5, 10):
            sure, possible = 100 * np.mean(last < k), 100 * np.mean(first < k)
            assert sure - 1e-6 <= found.pop(f"{way}_r{k}") <= possible + 1e-6
            # images differ; of texts as short as these, many are one text of several images
            assert way == "tr" or possible - sure < 3
    assert found.keys() == {"mean"}


@pytest.mark.parametrize("mesh", ["data", "mixed"])
def test_eight_devices_equal_one(eight, one_device, worker, mesh):
    assert_close(eight[0][mesh], worker.losses(one_device))


def test_a_checkpoint_of_eight_devices_goes_on_on_one(eight, one_device, worker, tmp_path):
    config = worker.pretraining()
    config.total_steps = 5
    for name, workdir in (("eight", eight[1] / "mixed"), ("one", one_device)):
        shutil.copytree(workdir, tmp_path / name)
        loop.run(config, tmp_path / name)
    assert_close(worker.losses(tmp_path / "eight"), worker.losses(tmp_path / "one"))


def test_vectors_on_eight_devices_move_the_codebook_as_on_one(eight, worker):
    np.testing.assert_allclose(eight[0]["update"], worker.update(), atol=1e-6)


@pytest.mark.parametrize("step", [0, 1, 2], ids=["kmeans", "step_1", "step_2"])
def test_a_tokenizer_on_eight_devices_has_the_codebook_of_one(eight, codebooks, step):
    found, expected = eight[0]["codebooks"][step], codebooks[step]
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-4, atol=1e-5, err_msg=name)
    if step == 2:  # the first step's batch is that of k-means, which leaves nothing to move
        assert np.abs(np.subtract(expected["codebook"], codebooks[0]["codebook"])).max() > 1e-3


def test_a_masked_autoencoder_on_eight_devices_learns_as_on_one(eight, worker, tmp_path):
    found, expected = eight[0]["img2vec"], worker.masked_autoencoder(tmp_path / "img2vec")
    assert found.keys() == expected.keys() and any("loss_global" in name for name in expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=2e-4, abs=1e-6), name


def test_three_streams_on_eight_devices_learn_as_on_one(eight, worker, tmp_path):
    assert_close(eight[0]["beit3"], worker.beit3(tmp_path / "beit3"))


def test_token_diversity_on_eight_devices_is_that_of_one(eight, worker, tmp_path):
    found, expected = eight[0]["diversity"], worker.diversity(tmp_path)
    assert found == pytest.approx(expected, abs=2e-5)
    assert 0.1 < expected["eval/train/similarity_centred"] < expected["eval/train/similarity"] < 0.9


SPLIT = {  # path of a parameter -> spec on the mesh data=2, fsdp=2, tensor=2
    "blocks/attn/qkv/kernel": [None, "fsdp", "tensor"],
    "blocks/attn/proj/kernel": [None, "tensor", "fsdp"],
    "blocks/mlp/fc1/kernel": [None, "fsdp", "tensor"],
    "blocks/mlp/fc2/kernel": [None, "tensor", "fsdp"],
    "lm_head/kernel": ["fsdp", "tensor"],
    "patch_embed/proj/kernel": [None, None, None, "fsdp"],
    "blocks/norm1/scale": [],
    "cls_token": [],
}


@pytest.mark.parametrize("path", SPLIT)
def test_parameters_moments_and_averages_lie_as_the_table_says(eight, path):
    found = {name: spec for name, spec in eight[0]["specs"].items() if name.endswith("/" + path)}
    assert all(spec == SPLIT[path] for spec in found.values()), found
    kinds = {name.split("/")[0] for name in found}
    assert kinds == {"params", "opt_state", "ema_params"} and len(found) == 4  # mu and nu


def test_activations_are_split_inside_the_context_only(eight):
    inside, outside = eight[0]["constraints"]
    assert inside == [["data", "fsdp"], None, "tensor"]
    assert outside == []


def test_a_batch_is_split_over_data_and_fsdp(eight):
    assert eight[0]["batch"] == [[["data", "fsdp"]], [2]]


def free_port():
    with socket.socket() as sock:
        sock.bind(("localhost", 0))
        return sock.getsockname()[1]


def test_two_processes_equal_one(one_device, codebooks, worker, tmp_path):
    """Real processes with two devices each, through the command line, on one shared folder."""
    config = tmp_path / "recipe.py"
    folder = str(ROOT / "tests/multidevice")
    config.write_text(f"import sys; sys.path.insert(0, {folder!r})\n"
                      "from worker import pretraining, retrieval, tokenizer\n"
                      "from configs import common\n"
                      "def get_config():\n"
                      "    config = common.staged()\n"
                      "    config.stages = dict(tokenizer=tokenizer(), retrieval=retrieval(),\n"
                      "                         pretrain=pretraining())\n"
                      "    return config\n")
    port, workdir = free_port(), tmp_path / "run"

    def start(steps):
        return [subprocess.Popen(
            [sys.executable, "-m", "beit_jax.main", "--config", config, "--workdir", workdir,
             "--coordinator", f"localhost:{port}", "--num_processes", "2", "--process_id", str(i),
             f"--config.stages.pretrain.total_steps={steps}"],
            env=environment(2), cwd=ROOT, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT) for i in range(2)]

    def finish(processes):
        try:
            outputs = [process.communicate(timeout=1700)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
        assert [process.returncode for process in processes] == [0, 0], outputs
        return outputs

    first, second = finish(start(4))
    assert "2 process(es), 4 cpu device(s)" in first
    assert "step 4/4" in first and "step 4/4" not in second  # one of them writes
    assert_close(worker.losses(workdir / "pretrain"), worker.losses(one_device))
    loop.run(worker.retrieval(), tmp_path / "retrieval")
    assert_close(worker.losses(workdir / "retrieval"), worker.losses(tmp_path / "retrieval"))
    scores = {folder: worker.similarities(folder / "retrieval") for folder in (workdir, tmp_path)}
    np.testing.assert_allclose(scores[workdir][0], scores[tmp_path][0], atol=2e-4)
    for folder, each in scores.items():
        assert_recalls_follow(worker.losses(folder / "retrieval"), *each)
    collections = checkpoint.load_variables(workdir / "tokenizer", collections=True)
    np.testing.assert_allclose(collections["codebook/embedding"], codebooks[2]["codebook"],
                               rtol=2e-4, atol=1e-5)
    first, _ = finish(start(5))
    assert "goes on from step 4 of 5" in first and "step 5/5" in first


@pytest.mark.parametrize("options, message", [
    (MeshOptions(data=3), "data=3, fsdp=1, tensor=1 does not fit 1 devices"),
    (MeshOptions(data=-1, fsdp=-1), "one of them may be -1"),
    (MeshOptions(data=-1, tensor=2), "does not fit 1 devices"),
    (MeshOptions(data=0), "sizes are positive"),
])
def test_an_impossible_mesh_is_one_line(options, message):
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(options)
