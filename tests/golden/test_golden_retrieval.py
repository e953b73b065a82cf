"""Recalls against those of the original program, on features of its own."""

import golden as golden_files
import pytest

from beit_jax import retrieval_metrics


@pytest.mark.parametrize("golden", golden_files.load("retrieval_metrics"), ids=golden_files.name)
def test_recalls_are_those_of_the_original(golden):
    found = retrieval_metrics.recalls(
        golden.inputs["image_features"], golden.inputs["text_features"],
        golden.inputs["image_row_of_caption"])
    found["average_score"] = found.pop("mean")
    assert found.keys() == golden.outputs.keys()
    for name, value in golden.outputs.items():
        assert found[name] == pytest.approx(float(value), abs=1e-4), name
