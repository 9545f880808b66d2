"""Captioning: the mean over the ids of the global batch on any layout, beside other objectives; and it learns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import CoCaLoss
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedTokenizerFast

from vlp import distributed, embeddings
from vlp.durations import Span
from vlp.encoders.captioner import CaptionerOptions
from vlp.encoders.openclip import ModelOptions, build
from vlp.encoders.two_tower import CaptionCounts, TwoTower
from vlp.encoding import Encoding, crops
from vlp.objectives import base
from vlp.types import Batch

ROWS, STEPS = 12, 3
WAYS = [(1, 5), (2, 99), (4, 2)]  # processes, rows of a micro-batch: of 12, 6 or 3 rows of each process
WORDS = [
    *("<pad>", "<s>", "<unk>", "a", "red", "green", "dog", "cat", "star"),
    *("boat", "two", "of", "in", "with", "and", "on", "the", "</s>"),
]
END = len(WORDS) - 1
HEAD = CaptionerOptions(layers=1, width=16, heads=2, queries=4)
HALF = CaptionerOptions(layers=1, width=16, heads=2, queries=4, text_layers=1)
CAPTIONING: dict[str, Any] = {"name": "captioning", "weight": 2}
TRIPLE = {"name": "triple", "terms": ["cma", "imc", "lmi"], "queue_size": ROWS, "momentum": 0.7}
FADING = {"name": "captioning", "weight": {"start": 1, "end": 0, "over": "3 steps"}, "label_smoothing": 0.1}
# kind of captioner, options of the model, objectives
CASES: dict[str, tuple[str, dict[str, Any], list[dict[str, Any]]]] = {
    "alone, smoothed": ("CoCa", {}, [{**CAPTIONING, "label_smoothing": 0.2}]),
    "alone, on locked pictures": ("CoCa", {"lock_image": True}, [CAPTIONING]),
    "alone, head on locked towers": ("head", {"lock_image": True, "lock_text": True}, [CAPTIONING]),
    "with infonce": ("CoCa", {}, [{"name": "infonce"}, CAPTIONING]),
    "head with infonce": ("head", {}, [{"name": "infonce"}, CAPTIONING]),
    "half with siglip": ("half", {}, [{"name": "siglip"}, CAPTIONING]),
    "with tokens, twin and queue": ("CoCa", {}, [TRIPLE, CAPTIONING]),
    "head with tokens, twin and queue": ("head", {}, [TRIPLE, CAPTIONING]),
    "with two captions": ("CoCa", {}, [{"name": "infonce", "captions": 2}, CAPTIONING]),
    "head with hard captions": ("head", {}, [{"name": "infonce"}, {"name": "hard_negatives"}, CAPTIONING]),
    "until its weight is 0": ("CoCa", {}, [{"name": "infonce"}, FADING]),
    "alone until its weight is 0": ("half", {}, [FADING]),
}


def pairs(images: int = 1, texts: int = 1, seed: int = 0) -> Batch:
    """Captions of 2 to 12 ids behind their start, and hard ones of the same lengths."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (images, ROWS, 3, 32, 32), generator=generator, dtype=torch.uint8)
    text = torch.randint(2, END, (texts + 1, ROWS, 16), generator=generator)
    end_N, places_L = torch.arange(ROWS)[:, None] + 2, torch.arange(16)
    text = torch.where(places_L > end_N, 0, torch.where(places_L == end_N, END, text))
    text[..., 0] = 1
    names = tuple(str(row) for row in range(ROWS))
    there = torch.ones(1, ROWS, dtype=torch.bool)
    rows = torch.arange(ROWS)
    return Batch(image, text[:-1], names, names, picture_N=rows, hard_text_KNL=text[-1:], hard_mask_KN=there)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a few words, so that no time goes to a vocabulary; the end has the largest id, as CLIP's towers want it."""
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", END)]
    )
    roles = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=inner, **roles).save_pretrained(folder)
    return folder


@pytest.fixture
def configs(tokenizer: Path, tiny_model: dict[str, Any], tiny_coca: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Of two towers and of a CoCa."""
    words = {"hf_tokenizer_name": str(tokenizer), "vocab_size": len(WORDS)}
    return {
        name: {**config, "text_cfg": {**config["text_cfg"], **words}}
        for name, config in (("CLIP", tiny_model), ("CoCa", tiny_coca))
    }


BUILT: dict[str, TwoTower] = {}


def fresh(case: str, configs: dict[str, dict[str, Any]]) -> TwoTower:
    """A model of the case with seed 0; processes that are forked later copy it instead of building it again."""
    kind, options, entries = CASES[case]
    key = repr((kind, options, "siglip" in str(entries)))
    if key not in BUILT:
        starts = {name: value for entry in entries for name, value in base.parse(entry).initial_logits().items()}
        head = {"CoCa": None, "head": HEAD, "half": HALF}[kind]
        given = ModelOptions(config=configs["CoCa" if kind == "CoCa" else "CLIP"], captioner=head, **options)
        BUILT[key] = build(given, seed=0, starts=starts)
    return deepcopy(BUILT[key], {id(BUILT[key].tokenizer): BUILT[key].tokenizer}).train()


@pytest.fixture(scope="module", autouse=True)
def _forget() -> Iterator[None]:
    yield
    BUILT.clear()
    WHOLE.clear()


class Trained(NamedTuple):
    """Means over the processes of the loss and its parts at each step, the gradients of the first, the weights."""

    losses: list[dict[str, float]]
    gradients: dict[str, Tensor]
    weights: dict[str, Tensor]


def trained(rank: int, world: int, case: str, configs: dict[str, dict[str, Any]], micro: int) -> Trained:
    """Some steps of the trainer, every one with captions of other lengths."""
    model = fresh(case, configs)
    parsed = [base.parse(entry) for entry in CASES[case][2]]
    wrapped = DistributedDataParallel(model) if world > 1 else model
    encoding = Encoding(model, parsed, ROWS)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    rows, losses, first = ROWS // world, [], {}
    for step in range(STEPS):
        objectives = [objective.at(Span(STEPS, ROWS, 1000), step) for objective in parsed]
        here = pairs(crops(parsed), base.text_views(parsed), step).rows(rank * rows, (rank + 1) * rows)
        done = embeddings.backward(
            encoding.encoders(wrapped, here, step),
            here,
            *(base.loss_of(objectives, couples_batch=couples) for couples in (True, False)),
            micro_batch_size=micro,
            seeds=(step, distributed.seed_of("test", step, rank)),
            backward_of=lambda total: total.backward(),
            no_sync=wrapped.no_sync if world > 1 else nullcontext,
        )
        grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        first = first or {name: None if g is None else g.clone() for name, g in grads.items()}
        optimizer.step()
        optimizer.zero_grad()
        encoding.after_step(done.embeddings)
        local = {"loss": done.loss.total.item(), **{name: part.item() for name, part in done.loss.parts.items()}}
        losses.append(distributed.mean_over_ranks(local))
    return Trained(losses, first, {name: value.detach().clone() for name, value in model.named_parameters()})


def all_trained(rank: int, world: int, *arguments: Any) -> dict[str, Trained]:
    return {case: trained(rank, world, case, *arguments) for case in CASES}


WHOLE: dict[str, Trained] = {}


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_any_layout_trains_alike(run_ranks, configs, way):
    """All cases in the same processes: starting them costs more."""
    if not WHOLE:
        WHOLE.update(all_trained(0, 1, configs, ROWS))
    world, micro = way
    arguments = (configs, micro)
    for of_rank in [all_trained(0, 1, *arguments)] if world == 1 else run_ranks(all_trained, world, *arguments):
        for case, expected in WHOLE.items():
            assert_alike(case, of_rank[case], expected)


def assert_alike(case: str, found: Trained, expected: Trained) -> None:
    for step, (actual, wanted) in enumerate(zip(found.losses, expected.losses, strict=True)):
        assert actual == pytest.approx(wanted, rel=2e-5, abs=1e-5), (case, step)
    assert found.gradients.keys() == expected.gradients.keys()
    largest = max(g.abs().max().item() for g in expected.gradients.values() if g is not None)
    for name, gradient in expected.gradients.items():
        assert gradient is not None, (case, name)
        message = partial("{}, {}: {}".format, case, name)
        torch.testing.assert_close(found.gradients[name], gradient, rtol=1e-4, atol=2e-6 * largest, msg=message)
    torch.testing.assert_close(
        found.weights, expected.weights, rtol=1e-4, atol=2e-6, msg=partial("{}: {}".format, case)
    )


def test_a_weight_that_becomes_0_ends_it(configs):
    """In the log, and alone: what DDP waits for is there all the same."""
    found = trained(0, 1, "until its weight is 0", configs, ROWS)
    assert ["captioning_loss" in of_step for of_step in found.losses] == [True, True, False]
    alone = trained(0, 1, "alone until its weight is 0", configs, 5)
    assert alone.losses[2]["loss"] == 0


def test_smoothing_is_in_the_loss_and_not_in_its_part(configs):
    model = fresh("with infonce", configs).eval()
    batch = pairs()
    told_NL = model.special_tokens.told(batch.text_NL)
    path = model.caption_path()
    with torch.no_grad():
        states_NLW = path.states(batch.text_NL[:, :-1], model.caption_memory(batch.image_VNCHW[0]))
        logits, labels = (states_NLW @ path.head_WV)[told_NL], batch.text_NL[:, 1:][told_NL]
    for smoothing in (0.0, 0.2):
        objective = base.parse({"name": "captioning", "label_smoothing": smoothing})
        encoder = Encoding(model, [objective], ROWS).encoders(model, batch).model
        loss = objective.loss(embeddings.embed(encoder(batch), batch))
        torch.testing.assert_close(loss.total, F.cross_entropy(logits, labels, label_smoothing=smoothing))
        torch.testing.assert_close(loss.parts["captioning_loss"], F.cross_entropy(logits, labels))


def test_the_first_of_several_captions_is_told(configs):
    model = fresh("with two captions", configs).eval()
    parsed = [base.parse(entry) for entry in CASES["with two captions"][2]]

    def parts(batch: Batch) -> tuple[Tensor, Tensor]:
        outputs = Encoding(model, parsed, ROWS).encoders(model, batch).model(batch)
        return outputs["caption_loss"], outputs["text"]

    one, other = pairs(texts=2), pairs(texts=2, seed=1)
    swapped = deepcopy(one)
    swapped.text_VNL[1] = other.text_VNL[1]
    assert torch.equal(parts(one)[0], parts(swapped)[0])
    assert not torch.equal(parts(one)[1], parts(swapped)[1])
    swapped.text_VNL[0] = other.text_VNL[0]
    assert not torch.equal(parts(one)[0], parts(swapped)[0])


def caption_losses(rank: int, world: int, configs: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Means over the processes of open_clip's loss and of ours."""
    model = fresh("alone, smoothed", configs).eval()
    rows = ROWS // world
    here = pairs().rows(rank * rows, (rank + 1) * rows)
    config = {name: value for name, value in configs["CoCa"].items() if name != "custom_text"}
    twin = open_clip.CoCa(**config).eval()
    twin.load_state_dict(model.clip.state_dict())
    objective = base.parse({"name": "captioning"})
    with torch.no_grad():
        outputs = twin(model.normalise(here.image_VNCHW[0]), here.text_NL)
        loss = CoCaLoss(1.0, 0.0, rank=rank, world_size=world)
        names = ("image_features", "text_features", "logits", "labels", "logit_scale")
        _, theirs = loss(*(outputs[name] for name in names))
        encoder = Encoding(model, [objective], ROWS).encoders(model, here).model
        ours = objective.loss(embeddings.embed(encoder(here), here)).total
    return distributed.mean_over_ranks({"open_clip": theirs.item(), "ours": ours.item()})


def test_open_clip_averages_means_of_captions_that_are_not_equally_long(run_ranks, configs):
    """The shorter captions lie on the first process: an id of theirs weighs more there than one of the others."""
    with torch.no_grad():  # so that the ids of a caption are not all as likely
        fresh("alone, smoothed", configs)
        for built in BUILT.values():
            if built.captioner is None:
                built.clip.text_decoder.text_projection.mul_(20)
    one = caption_losses(0, 1, configs)
    assert one["ours"] == pytest.approx(one["open_clip"], rel=1e-6)
    for found in run_ranks(caption_losses, 2, configs):
        assert found["ours"] == pytest.approx(one["ours"], rel=1e-6)
        assert abs(found["open_clip"] - one["open_clip"]) > 1e-2
    BUILT.clear()


# ---- It learns


@pytest.mark.parametrize("kind", ["CoCa", "head", "half"])
def test_eight_pairs_are_learned_by_heart_and_by_their_pictures(configs, kind):
    """All captions begin alike, so that nothing but the picture can tell which it is."""
    config = configs["CoCa" if kind == "CoCa" else "CLIP"]
    head = CaptionerOptions(layers=1, width=32, heads=2, queries=4, text_layers=int(kind == "half"))
    model = build(ModelOptions(config=config, captioner=None if kind == "CoCa" else head), seed=0).train()
    texts = [f"a {colour} {shape}" for colour in ("red", "green") for shape in ("dog", "cat", "star", "boat")]
    text_1NL = model.tokenizer(texts)[None]
    generator = torch.Generator().manual_seed(0)
    colours = torch.randint(0, 256, (1, 8, 3, 1, 1), generator=generator, dtype=torch.uint8)
    image_VNCHW = (colours // 2).expand(1, 8, 3, 32, 32) + torch.randint(
        0, 128, (1, 8, 3, 32, 32), generator=generator, dtype=torch.uint8
    )
    counts = CaptionCounts(model.special_tokens.told(text_1NL[0]).sum() / 8, 0.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(120):
        loss = model(image_VNCHW, text_1NL, captions=counts)["caption_loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.02:
            break
    with torch.no_grad():
        learned = model.eval()(image_VNCHW, text_1NL, captions=counts)["caption_loss"]
        shuffled = model(image_VNCHW.roll(1, 1), text_1NL, captions=counts)["caption_loss"]
    assert learned < 0.05
    assert shuffled > learned + 0.5
