"""The fusion tower reads texts with pictures, lives with the run and is not exported; which words are hidden."""

from __future__ import annotations

import open_clip
import pytest
import torch

from vlp.encoders.fusion import FusionOptions, FusionTower
from vlp.encoders.masking import NOT_HIDDEN, Masking
from vlp.encoders.openclip import ModelOptions, build, load, outline, save_openclip_directory
from vlp.encoders.tokenizer import openclip_tokenizer

OPTIONS = FusionOptions(layers=2, width=16, heads=2)
CLIP_START = 49406
CAPTIONS = ["a red circle above a small blue square", "one", "", "two words", "a large green star " * 6]


@pytest.fixture
def tower() -> FusionTower:
    torch.manual_seed(0)
    return FusionTower(OPTIONS, embed_dim=8, vocab_size=50)


@pytest.fixture
def tokens() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    text_NLD, image_NPD = (torch.randn(3, length, 8, generator=generator) for length in (6, 4))
    return text_NLD, torch.arange(6) < torch.tensor([4, 6, 0])[:, None], image_NPD


def test_what_is_no_word_changes_nothing(tower, tokens):
    text_NLD, mask_NL, image_NPD = tokens
    noisy_NLD = torch.where(mask_NL[..., None], text_NLD, 100 * torch.randn_like(text_NLD))
    before, after = tower(text_NLD, mask_NL, image_NPD), tower(noisy_NLD, mask_NL, image_NPD)
    torch.testing.assert_close(after[:, 0], before[:, 0])
    torch.testing.assert_close(after[:, 1:][mask_NL], before[:, 1:][mask_NL])
    assert after.isfinite().all(), "a text without words has its summary"
    other = tower(torch.where(mask_NL[..., None], text_NLD + 1, text_NLD), mask_NL, image_NPD)
    assert (other[:2, 0] - before[:2, 0]).abs().max() > 1e-3


def test_states_depend_on_all_words_and_on_the_picture(tower, tokens):
    text_NLD, mask_NL, image_NPD = tokens
    text_NLD.requires_grad_()
    image_NPD.requires_grad_()
    first_word = tower(text_NLD, mask_NL, image_NPD)[1, 1]
    of_text, of_image = torch.autograd.grad(first_word.square().sum(), [text_NLD, image_NPD])
    assert (of_text[1].abs().sum(-1) > 0).all(), "words to the right, too"
    assert (of_image[1].abs().sum(-1) > 0).all()
    assert of_image[[0, 2]].abs().sum() == 0, "not those of other rows"


def test_only_wanted_positions_get_logits(tower, tokens):
    wanted_NL = torch.zeros(3, 6, dtype=torch.bool)
    wanted_NL[0, 2] = wanted_NL[1, 0] = wanted_NL[1, 5] = True
    logits = tower.words(*tokens, wanted_NL)
    assert logits.shape == (3, 50)
    states = tower(*tokens)
    torch.testing.assert_close(logits[2], tower.words_head(states[1, 6]))
    assert tower.words(*tokens, torch.zeros_like(wanted_NL)).shape == (0, 50)


def test_it_starts_from_the_seed_and_leaves_the_towers_as_they_are(tiny_model):
    plain = build(ModelOptions(config=tiny_model), seed=3)
    first, again, other = (build(ModelOptions(config=tiny_model, fusion=OPTIONS), seed=s) for s in (3, 3, 4))
    assert plain.fusion is None
    values, repeated, different = (m.fusion.state_dict() for m in (first, again, other))
    assert all(torch.equal(values[name], repeated[name]) for name in values)
    assert not torch.equal(values["words_head.weight"], different["words_head.weight"])
    ours, theirs = first.clip.state_dict(), plain.clip.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    layers = first.fusion.layers
    assert not torch.equal(layers[0].linear1.weight, layers[1].linear1.weight), "each layer has values of its own"
    assert first.fusion.words_head.out_features == 49408


def test_it_is_counted_on_its_own_also_without_memory(tiny_model):
    options = ModelOptions(config=tiny_model, fusion=OPTIONS)
    model, outlined = build(options, seed=0), outline(options)
    counts = model.parameters_by_tower()
    assert counts["fusion"] == sum(p.numel() for p in model.fusion.parameters())
    assert sum(counts.values()) == sum(p.numel() for p in model.parameters())
    assert outlined.parameters_by_tower() == counts
    assert all(p.is_meta for p in outlined.fusion.parameters())


def test_the_head_for_hidden_words_is_there_only_where_they_are_found(tiny_model):
    options = ModelOptions(config=tiny_model, fusion=OPTIONS)
    whole, model = build(options, seed=0), build(options, seed=0, needs=frozenset())
    head = sum(p.numel() for p in whole.fusion.words_head.parameters())
    assert head > 49408 * OPTIONS.width
    counts = [m.parameters_by_tower()["fusion"] for m in (whole, model, outline(options, needs=frozenset()))]
    assert counts == [counts[0], counts[0] - head, counts[0] - head]
    assert not any("words" in name for name, _ in model.fusion.named_parameters())
    width = tiny_model["embed_dim"]
    mask_NL = torch.ones(2, 5, dtype=torch.bool)
    assert model.fusion.match(torch.randn(2, 5, width), mask_NL, torch.randn(2, 4, width)).shape == (2, 2)


def test_it_is_not_exported(tiny_model, tmp_path):
    model = build(ModelOptions(config=tiny_model, fusion=OPTIONS), seed=0)
    save_openclip_directory(model, tmp_path / "out")
    clip, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'out'}")
    assert clip.state_dict().keys() == model.clip.state_dict().keys()
    assert load(f"local-dir:{tmp_path / 'out'}").fusion is None


def test_heads_must_share_the_width():
    with pytest.raises(ValueError, match="width 16 is no multiple of heads 3"):
        FusionOptions(width=16, heads=3)


# ---- Hidden words


def bert_tokens(bert_model):
    return build(ModelOptions(config=bert_model), seed=0).tokenizer


@pytest.fixture(params=["clip", "bert"])
def tokenizer(request, bert_model):
    return openclip_tokenizer(16) if request.param == "clip" else bert_tokens(bert_model)


def test_hidden_words_are_a_function_of_the_seed_and_the_text_alone(tokenizer):
    masking, text_NL = Masking(tokenizer, 0.3), tokenizer(CAPTIONS)
    masked_NL, labels_NL = masking(text_NL, 5)
    backwards = [tensor.flip(0) for tensor in masking(text_NL.flip(0), 5)]
    alone = masking(text_NL[4:], 5)
    for whole, turned, single in zip((masked_NL, labels_NL), backwards, alone, strict=True):
        assert torch.equal(whole, turned)
        assert torch.equal(whole[4:], single)
    assert any(not torch.equal(masking(text_NL, seed)[1], labels_NL) for seed in (6, 7, 8))


def test_labels_say_what_was_hidden_and_the_rest_stays(tokenizer):
    masking, text_NL = Masking(tokenizer, 0.3), tokenizer(CAPTIONS)
    masked_NL, labels_NL = masking(text_NL, 5)
    hidden_NL = labels_NL != NOT_HIDDEN
    assert torch.equal(torch.where(hidden_NL, labels_NL, masked_NL), text_NL)
    assert (masked_NL[hidden_NL] == masking.mask_id).all()
    words_NL = masking.words(text_NL)
    assert not (hidden_NL & ~words_NL).any(), "neither start nor end nor padding"
    assert (hidden_NL.any(1) == words_NL.any(1)).all(), "one at least, where there is one"
    words = [8, 1, 0, 2] if masking.mask_id == CLIP_START else [6, 0, 0, 0]  # this BERT does not know the others
    assert words_NL.sum(1)[:4].tolist() == words


def test_the_share_is_right_in_the_mean():
    tokenizer = openclip_tokenizer(24)
    masking, text_NL = Masking(tokenizer, 0.15), tokenizer(["a red circle above a small blue square near a star"])
    words = masking.words(text_NL)[0]
    counts = torch.stack([masking(text_NL, seed)[1][0] != NOT_HIDDEN for seed in range(1500)]).float()
    assert words.sum() == 11
    assert counts.sum(1).unique().tolist() == [1, 2]
    assert counts.sum(1).mean() == pytest.approx(11 * 0.15, abs=0.05)
    assert counts.mean(0)[words].tolist() == pytest.approx([0.15] * 11, abs=0.04), "each word alike"


def test_the_mask_id_of_each_tokenizer(bert_model):
    assert Masking(openclip_tokenizer(16), 0.15).mask_id == CLIP_START, "below the end, and not the padding"
    tokenizer = bert_tokens(bert_model)
    assert Masking(tokenizer, 0.15).mask_id == tokenizer.tokenizer.mask_token_id


def test_what_stood_there_cannot_be_read_from_the_tokens(tiny_model):
    """Two texts that differ in the hidden word alone have the same tokens; the end is found all the same."""
    model = build(ModelOptions(config=tiny_model), seed=0).eval()
    text_NL = model.tokenizer(["a red circle", "a blue circle"])
    masked_NL = text_NL.clone()
    masked_NL[:, 2] = Masking(model.tokenizer, 0.15).mask_id
    with torch.no_grad():
        pooled_ND, tokens_NLD, mask_NL = model.encode_text_tokens(masked_NL)
    assert torch.equal(tokens_NLD[0], tokens_NLD[1])
    assert mask_NL.sum(1).tolist() == [3, 3]
    torch.testing.assert_close(pooled_ND, tokens_NLD[:, 4])
