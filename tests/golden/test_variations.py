"""The golden tests read everything from their files: variations of them, made by plain formulas."""

import dataclasses
import json
import math

import golden as golden_files
import numpy as np
import pytest
import test_beit2
import test_golden_beit3
import test_masking

DRAWS = 4000


@pytest.fixture
def written(tmp_path):
    """(Golden) -> the same, through a file."""
    def through_a_file(golden):
        path = tmp_path / "variation.npz"
        np.savez(path, config=json.dumps(golden.config), **golden.arrays)
        read = golden_files.read(path)
        assert golden_files.kind(read) == golden_files.kind(golden) != ""
        return read
    return through_a_file


def original_block_mask(random, rows, columns, num_masked, min_block, log_aspect):
    """Algorithm 1 of BEiT as its program does it, in loops: bool [rows, columns]."""
    mask = np.zeros((rows, columns), bool)
    while mask.sum() < num_masked:
        room = num_masked - mask.sum()
        for _ in range(10):
            area = random.uniform(min_block, room)
            aspect = math.exp(random.uniform(*log_aspect))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if height >= rows or width >= columns:
                continue
            top, left = random.randint(0, rows - height), random.randint(0, columns - width)
            block = np.zeros_like(mask)
            block[top:top + height, left:left + width] = True
            if 0 < (block & ~mask).sum() <= room:
                mask |= block
                break
        else:
            return mask
    return mask


@pytest.fixture(scope="module")
def masks():
    """A file of masks with lying blocks alone, on a grid of its own."""
    import random

    rows, columns, num_masked, min_block = 9, 11, 40, 6
    log_aspect = [math.log(0.2), math.log(0.7)]
    generator = random.Random(0)
    drawn = np.stack([original_block_mask(generator, rows, columns, num_masked, min_block,
                                          log_aspect) for _ in range(DRAWS)])
    case = dict(grid=[rows, columns], num_masking_patches=num_masked, min_num_patches=min_block,
                max_num_patches=num_masked, log_aspect=log_aspect, draws=DRAWS)
    agreement = [(drawn[:, :, 1:] == drawn[:, :, :-1]).mean(),
                 (drawn[:, 1:] == drawn[:, :-1]).mean()]
    return golden_files.Golden(None, {"cases": {"lying": case}}, {
        "lying/count_hist": np.bincount(drawn.sum(axis=(1, 2)), minlength=num_masked + 1),
        "lying/position_freq": drawn.mean(axis=0),
        "lying/neighbour_agreement_h_v": np.array(agreement)})


MASK_TESTS = (test_masking.test_number_of_hidden_patches_is_distributed_as_in_the_original,
              test_masking.test_every_position_is_hidden_as_often_as_in_the_original,
              test_masking.test_neighbours_agree_as_often_as_in_the_original)


def test_blocks_of_another_aspect_on_another_grid(masks, written):
    golden = written(masks)
    for test in MASK_TESTS:
        test(golden, "lying")


def test_blocks_of_the_usual_aspect_do_not_pass_for_them(masks):
    case = masks.config["cases"]["lying"] | dict(log_aspect=[math.log(0.3), -math.log(0.3)])
    with pytest.raises(AssertionError):
        MASK_TESTS[2](dataclasses.replace(masks, config={"cases": {"lying": case}}), "lying")


@pytest.mark.parametrize("process_type", ["imagenet_norm", "dall-e"])
@pytest.mark.parametrize("golden", golden_files.load("vqkd"), ids=golden_files.name)
def test_vqkd_that_normalizes_its_input_otherwise(golden, process_type, written):
    """Images that become the recorded ones behind the other normalization: nothing else changes."""
    pixels = {"imagenet_norm": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
              "dall-e": ((-0.125,) * 3, (1.25,) * 3)}[process_type]
    mean, std = (np.asarray(part).reshape(3, 1, 1) for part in pixels)
    seen = golden.outputs["preprocessed"].astype(np.float64)
    image = (255 * (seen * std + mean)).astype(np.float32)
    test_beit2.test_vqkd_network_and_codes(written(dataclasses.replace(
        golden, config=golden.config | {"process_type": process_type},
        arrays=golden.arrays | {"in/image_0_1": image})))


@pytest.mark.parametrize("golden", test_golden_beit3.ENCODERS, ids=golden_files.name)
def test_embeddings_of_fewer_patches(golden, written):
    """The upper left patches of a grid: before positions each patch stands for itself."""
    side, px = golden.config["img_size"] // golden.config["patch_size"], golden.config["patch_size"]
    fewer = side - 1
    kept = [row * side + column for row in range(fewer) for column in range(fewer)]
    arrays = dict(golden.arrays)
    arrays["in/image"] = arrays["in/image"][:, :, :fewer * px, :fewer * px]
    arrays["in/vision_masked"] = arrays["in/vision_masked"][:, kept]
    assert 0 < arrays["in/vision_masked"].sum() < arrays["in/vision_masked"].size
    positions = "param/encoder.embed_positions.A.weight"
    arrays[positions] = arrays[positions][:3 + len(kept)]
    for name in golden.outputs:
        if name.endswith("/encoder_embedding") and not name.startswith("text"):
            tokens = arrays[f"out/{name}"]
            behind = range(1 + side ** 2, tokens.shape[1])  # words
            arrays[f"out/{name}"] = tokens[:, [0, *(1 + number for number in kept), *behind]]
    test_golden_beit3.test_embeddings_before_positions(written(dataclasses.replace(
        golden, config=golden.config | {"img_size": fewer * px}, arrays=arrays)))
