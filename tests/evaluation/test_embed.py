import math
import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from vlp.data.aro_sets import CroppedFile
from vlp.data.benchmark_sets import StoredFile
from vlp.encoders.evaluating import evaluating
from vlp.encoders.openclip import ModelOptions, build
from vlp.evaluation.embed import embed_images, embed_texts
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


def test_equal_pictures_are_decoded_and_embedded_once(encoder, stored, monkeypatch):
    red, green = stored(["#ff0000", "#00ff00"])
    again = StoredFile(red.path, red.name)
    parts = [CroppedFile(red.path, red.name, box=(0, 0, size, 2)) for size in (2, 3, 2)]
    read = []
    file_read = StoredFile.read
    monkeypatch.setattr(StoredFile, "read", lambda file: read.append(file.name) or file_read(file))

    image_ND = embed_images(encoder, [red, again, green, red, *parts], batch_size=2)
    assert sorted(read) == ["0.png", "0.png", "0.png", "1.png"]
    assert encoder.num_images_seen == 4
    colours = ["#ff0000", "#ff0000", "#00ff00", *["#ff0000"] * 4]
    torch.testing.assert_close(image_ND, embed_texts(encoder, colours, 4))


@pytest.mark.parametrize("batch_size", [7, 8, 13, 32, 100])
def test_texts_that_the_model_reads_alike_get_equal_rows(tiny_model, batch_size):
    """Far apart in the list they would come into batches of other shapes, and differ in the last bits."""
    config = {**tiny_model, "embed_dim": 256, "text_cfg": {**tiny_model["text_cfg"], "width": 256, "heads": 4}}
    model = build(ModelOptions(config=config), seed=0)
    draw = random.Random(1)
    words = ["red", "blue", "circle", "square", "dog", "sits", "under", "tree"]
    texts = [" ".join(draw.choices(words, k=5)) for _ in range(50)]
    rows = []
    encode = model.encode_text
    model.encode_text = lambda text_NL: rows.append(len(text_NL)) or encode(text_NL)
    text_ND = embed_texts(model, [text.capitalize() for text in texts] + ["longer " * 9] * 3 + texts, batch_size)
    assert torch.equal(text_ND[:50], text_ND[-50:])
    assert sum(rows) == len(set(texts)) + 1


def test_a_text_whose_features_are_not_finite_is_named(encoder):
    encode = encoder.encode_text
    encoder.encode_text = lambda text_NL: encode(text_NL) / (text_NL.sum(1, keepdim=True) != 255)
    with pytest.raises(UserError, match=r"1 of 2 inputs, first for '#00ff00'"):
        embed_texts(encoder, ["#ffff00", "#ffff00", "#00ff00"], 2)


# By length: 6, 10, 3, 2, 16 (as long as the context), 10, 3.
CAPTIONS = ["a red circle !", "a red circle left of a blue square", "red", "", "word " * 40]
CAPTIONS += ["a blue square left of a red circle", "blue"]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
@pytest.mark.parametrize("text_cfg", [{}, {"no_causal_mask": True, "pool_type": "last"}])
def test_features_are_those_of_padded_texts_in_the_order_given(tiny_model, batch_size, text_cfg):
    text_cfg = {**tiny_model["text_cfg"], "layers": 2, **text_cfg}
    config = {**tiny_model, "custom_text": "pool_type" in text_cfg, "text_cfg": text_cfg}
    model = build(ModelOptions(config=config), seed=0)
    seen = []
    encode = model.encode_text
    model.encode_text = lambda text_NL: seen.append(tuple(text_NL.shape)) or encode(text_NL)

    with evaluating(model):
        expected_ND = F.normalize(model.clip.encode_text(model.tokenizer(CAPTIONS)), dim=1)
    text_ND = embed_texts(model, [*CAPTIONS, CAPTIONS[2]], batch_size)
    torch.testing.assert_close(text_ND[:-1], expected_ND, rtol=0, atol=1e-5)
    assert torch.equal(text_ND[-1], text_ND[2])
    assert (torch.pdist(expected_ND) > 1e-3).all(), "or the order would not show"
    if text_cfg.get("no_causal_mask"):
        assert {length for _, length in seen} == {16}
    elif batch_size == 2:
        assert seen == [(2, 16), (2, 10), (2, 3), (1, 2)]


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
