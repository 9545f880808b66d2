"""What a captioner sees, by perturbation: no later id, no padding, the picture; and the text feature no picture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F


def test_no_logit_sees_a_later_id_and_all_see_the_picture(captioners: Any, captioner_kind: str) -> None:
    model = captioners.shaken(captioner_kind)
    text_NL, image_NCHW = captioners.texts(model)[[0, 3]], captioners.pictures(2)[0]
    with torch.no_grad():
        logits = captioners.logits(model, image_NCHW, text_NL)
        for place in range(1, text_NL.shape[1] - 1, 2):
            other_NL = text_NL.clone()
            other_NL[:, place] = (other_NL[:, place] + 3) % 12
            found = captioners.logits(model, image_NCHW, other_NL)
            torch.testing.assert_close(found[:, :place], logits[:, :place], rtol=0, atol=1e-6)
            assert (found[:, place:] - logits[:, place:]).abs().amax(-1).min() > 1e-5, place
        found = captioners.logits(model, captioners.pictures(2, seed=1)[0], text_NL)
        assert (found - logits).abs().amax(-1).min() > 1e-5


def test_a_loss_sees_the_picture_and_text_features_do_not(captioners: Any, captioner_kind: str) -> None:
    model = captioners.shaken(captioner_kind)
    text_NL = captioners.texts(model)
    with torch.no_grad():
        one, other = (captioners.loss(model, captioners.pictures(seed=seed), text_NL) for seed in (0, 1))
    assert torch.equal(one["text"], other["text"])
    assert not torch.equal(one["caption_loss"], other["caption_loss"])
    assert not torch.equal(one["image"], other["image"])


def test_padding_has_no_part_in_the_loss(captioners: Any, captioner_kind: str) -> None:
    """The batch is cut to its longest caption: the same as whole texts, row by row, whatever stands beside them."""
    model = captioners.shaken(captioner_kind)
    text_NL, image_NCHW = captioners.texts(model), captioners.pictures()[0]
    told_NL = model.special_tokens.told(text_NL)
    assert len(set(told_NL.sum(1).tolist())) > 2
    with torch.no_grad():
        logits, labels = captioners.logits(model, image_NCHW, text_NL), text_NL[:, 1:]
        nll_NL = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none") * told_NL
        for rows in ([0, 1, 2, 3], [1, 2], [2], [0, 3]):
            found = captioners.loss(model, image_NCHW[None, rows], text_NL[rows])
            expected = nll_NL[rows].sum() / told_NL[rows].sum()
            torch.testing.assert_close(found["caption_loss"], expected, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(found["caption_nll"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["CoCa without class token", "head", "half on a tower that sees all", "half on BERT"])
def test_what_stands_behind_the_end_changes_no_loss(captioners: Any, kind: str) -> None:
    """Other ids there, as another tokenizer pads with; a class token apart, which open_clip keeps from them by id."""
    model = captioners.shaken(kind)
    text_NL = captioners.texts(model)
    lengths_N = model.special_tokens.lengths(text_NL)
    behind_NL = torch.arange(text_NL.shape[1]) >= lengths_N[:, None]
    other_NL = torch.where(behind_NL, torch.tensor(7), text_NL)
    assert behind_NL.any()
    with torch.no_grad():
        one, other = (captioners.loss(model, captioners.pictures(), ids) for ids in (text_NL, other_NL))
    torch.testing.assert_close(one["caption_loss"], other["caption_loss"], rtol=0, atol=1e-6)
    if not kind.startswith("half"):  # such towers see all that is no padding
        torch.testing.assert_close(one["text"], other["text"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("legacy", [False, True])
def test_the_class_token_sees_no_padding(captioners: Any, legacy: bool) -> None:
    """By the embeddings of the padding's id and of the places behind the end.

    open_clip's legacy mask is a place off: its class token sees the first place of the padding, and not itself.
    """
    model = captioners.shaken("CoCa")
    tower = model.clip.text
    assert tower.correct_cls_mask
    tower.correct_cls_mask = not legacy
    text_NL, image_VNCHW = captioners.texts(model, "a dog", "two red dogs"), captioners.pictures(2)
    short, longest = model.special_tokens.lengths(text_NL).tolist()
    with torch.no_grad():
        before = captioners.loss(model, image_VNCHW, text_NL)
        states_NLW = model.clip._encode_text(text_NL)[1]
        tower.token_embedding.weight[0] += torch.randn(32)
        tower.positional_embedding[longest:-1] += torch.randn(32)  # the last is the class token's
        after = captioners.loss(model, image_VNCHW, text_NL)
        other_NLW = model.clip._encode_text(text_NL)[1]
    moved = (before["text"] - after["text"]).abs().max()
    assert moved > 1e-2 if legacy else moved == 0
    torch.testing.assert_close(before["caption_loss"], after["caption_loss"], rtol=0, atol=1e-6)
    for row, length in enumerate((short, longest)):
        assert torch.equal(states_NLW[row, :length], other_NLW[row, :length])
    assert not torch.equal(states_NLW[0], other_NLW[0])


def test_a_class_token_behind_a_head_sees_no_padding_either(captioners: Any) -> None:
    model = captioners.shaken("head behind a class token")
    text_NL, image_VNCHW = captioners.texts(model, "a dog", "two red dogs"), captioners.pictures(2)
    with torch.no_grad():
        before = captioners.loss(model, image_VNCHW, text_NL)
        model.clip.text.token_embedding.weight[0] += 1
        after = captioners.loss(model, image_VNCHW, text_NL)
    assert torch.equal(before["text"], after["text"])
    torch.testing.assert_close(before["caption_loss"], after["caption_loss"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["CoCa", "CoCa without class token", "head"])
def test_a_word_with_the_id_of_padding_is_told(captioners: Any, kind: str) -> None:
    """CLIP's id 0 fills texts up and is also "!" before a mark that it has no common id with; open_clip's loss leaves
    it out."""
    model = captioners.shaken(kind)
    text_NL, image_VNCHW = captioners.texts(model, "oh!; a dog", "a dog"), captioners.pictures(2)
    place = text_NL[0].tolist().index(0)
    told_NL = model.special_tokens.told(text_NL)
    assert told_NL[0, place - 1]
    assert told_NL.sum(1).tolist() == [6, 3]
    with torch.no_grad():
        found = captioners.loss(model, image_VNCHW, text_NL)["caption_loss"]
        if kind == "head":
            logits = captioners.logits(model, image_VNCHW[0], text_NL)
        else:
            logits = captioners.twin(model).eval()(model.normalise(image_VNCHW[0]), text_NL)["logits"]
    torch.testing.assert_close(found, F.cross_entropy(logits[told_NL], text_NL[:, 1:][told_NL]))
    assert (text_NL[:, 1:] != 0).sum() == told_NL.sum() - 1


def test_rows_in_parts_add_up_to_the_mean_over_all_ids(captioners: Any) -> None:
    """Each with the mean length of all, as micro-batches and processes have it."""
    model = captioners.shaken("head")
    text_NL, image_VNCHW = captioners.texts(model), captioners.pictures()
    with torch.no_grad():
        whole = captioners.loss(model, image_VNCHW, text_NL, 0.1)["caption_loss"]
        alone = [captioners.loss(model, image_VNCHW[:, [row]], text_NL[[row]], 0.1)["caption_loss"] for row in range(4)]
    weights = model.special_tokens.told(text_NL).sum(1) / model.special_tokens.told(text_NL).sum()
    torch.testing.assert_close((torch.stack(alone) * weights).sum(), whole, rtol=1e-5, atol=1e-6)
    assert abs(torch.stack(alone).mean() - whole) > 1e-3
