import math
from pathlib import Path

import pytest
import torch

from vlp.data.benchmark_sets import StoredFile
from vlp.evaluation.embed import embed_images, embed_texts, evaluating
from vlp.types import UserError


@pytest.fixture
def stored(tmp_path, picture):
    def store(colours: list[str]) -> list[StoredFile]:
        files = []
        for number, colour in enumerate(colours):
            path = tmp_path / f"{number}.png"
            path.write_bytes(picture(colour))
            files.append(StoredFile(path, path.name))
        return files

    return store


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_features_are_normalised_fp32_in_the_order_given(encoder, stored, batch_size):
    colours = ["#ff0000", "#00ff00", "#0000ff", "#ffffff", "#ff8000"]
    image_ND = embed_images(encoder, stored(colours), batch_size)
    text_ND = embed_texts(encoder, colours, batch_size)

    assert image_ND.dtype == torch.float32
    assert not image_ND.requires_grad
    torch.testing.assert_close(image_ND.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(image_ND, text_ND)


def test_equal_texts_are_embedded_once_and_get_equal_rows(encoder):
    text_ND = embed_texts(encoder, ["#ff0000", "#00ff00", "#ff0000", "#ff0000"], batch_size=2)
    assert encoder.num_texts_seen == 2
    assert torch.equal(text_ND[0], text_ND[2])
    assert torch.equal(text_ND[0], text_ND[3])
    assert not torch.equal(text_ND[0], text_ND[1])


def test_each_module_gets_its_own_mode_back(encoder):
    encoder.train()
    encoder.locked.eval()
    with evaluating(encoder):
        assert not encoder.training
        assert not torch.is_grad_enabled()
    assert encoder.training
    assert not encoder.locked.training
    assert torch.is_grad_enabled()


def test_mode_comes_back_after_an_error(encoder):
    encoder.train()
    with pytest.raises(UserError), evaluating(encoder):
        raise UserError("stop")
    assert encoder.training
    assert encoder.locked.training


def test_dropout_is_off_while_embedding(encoder):
    encoder.train()
    first, second = (embed_texts(encoder, ["#123456", "#fedcba"], 2) for _ in range(2))
    assert torch.equal(first, second)
    assert (first != 0).all()


def test_features_that_are_not_finite_name_the_input(encoder, stored):
    encoder.encode_image = lambda image_NCHW: torch.full((len(image_NCHW), 3), math.nan)
    with pytest.raises(UserError, match=r"2 of 2 inputs, first for 0\.png"):
        embed_images(encoder, stored(["#ff0000", "#00ff00"]), 2)


def test_undecodable_picture_is_an_error_with_its_name(encoder, tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"broken\.png cannot be used"):
        embed_images(encoder, [StoredFile(path, str(Path(path)))], 4)
