"""Image-text matching: hard negatives drawn alike on any layout, never the pair itself or what equals it."""

from __future__ import annotations

import math
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from data_tools.scenes import ScenesOptions, write_scenes
from vlp import distributed, embeddings, recipe
from vlp.encoders.fusion import FusionOptions, FusionTower
from vlp.encoders.openclip import ModelOptions, build
from vlp.encoding import Encoding
from vlp.export import export
from vlp.features import Embeddings
from vlp.objectives import base, matching
from vlp.similarity import negatives
from vlp.similarity.negatives import hard_negatives
from vlp.track import read_metrics
from vlp.trainer import train
from vlp.types import Batch, UserError

ROWS = 16


def rows_of_all(rank: int, world: int, seed: int = 1, **others: Any) -> Embeddings:
    """The rows of one rank, every world-th as the loader deals them, with random features."""
    generator = torch.Generator().manual_seed(0)
    image_BD, text_BD = (torch.randn(ROWS, 8, generator=generator) for _ in range(2))
    captions_B, pictures_B = torch.arange(ROWS) * 7, torch.arange(ROWS) * 5
    captions_B[9] = captions_B[3]
    pictures_B[4] = pictures_B[8]
    mine = slice(rank, None, world)
    ids = {"caption_VN": captions_B[None, mine], "picture_N": pictures_B[mine]}
    return Embeddings.of(image_BD[mine], text_BD[mine], torch.tensor(3.0), **{**ids, **others}, seed=seed)


def drawn(rank: int, world: int) -> dict[int, tuple[int, int]]:
    """Row of the whole batch -> the rows of its negatives, whichever rank holds them."""
    found = hard_negatives(rows_of_all(rank, world))
    rows = [row for r in range(world) for row in range(r, ROWS, world)]  # of the gathered batch
    mine = range(rank, ROWS, world)
    pairs = zip(found.text_N.tolist(), found.image_N.tolist(), strict=True)
    return {row: (rows[text], rows[image]) for row, (text, image) in zip(mine, pairs, strict=True)}


def test_draws_do_not_depend_on_the_number_of_processes(run_ranks):
    alone = drawn(0, 1)
    assert len(set(alone.values())) > 1
    for world in (2, 4):
        together: dict[int, tuple[int, int]] = {}
        for part in run_ranks(drawn, world):
            together |= part
        assert together == alone


def test_neither_the_pair_nor_its_equals_are_drawn():
    for seed in range(200):
        found = hard_negatives(rows_of_all(0, 1, seed))
        for own in (found.text_N, found.image_N):
            assert (own != torch.arange(ROWS)).all()
            for one, other in ((3, 9), (9, 3), (4, 8), (8, 4)):
                assert own[one] != other
        assert found.exist_N.all()


def test_draws_follow_the_softmax_of_the_similarities():
    text = torch.stack([hard_negatives(rows_of_all(0, 1, seed)).text_N for seed in range(3000)])
    embedded = rows_of_all(0, 1)
    logits = embedded.logit_scale * embedded.image_ND @ embedded.text_ND.T
    logits = logits.masked_fill(torch.eye(ROWS, dtype=torch.bool), -torch.inf)[0]
    shares = torch.bincount(text[:, 0], minlength=ROWS) / len(text)
    assert (shares - logits.softmax(0)).abs().max() < 0.03


def test_pictures_and_texts_are_drawn_on_their_own():
    found = hard_negatives(rows_of_all(0, 1))
    assert not torch.equal(found.text_N, found.image_N)


def test_strips_of_rows_draw_alike(monkeypatch):
    whole = hard_negatives(rows_of_all(0, 1))
    monkeypatch.setattr(negatives, "_MOST_LOGITS", 3 * ROWS)
    assert all(torch.equal(a, b) for a, b in zip(hard_negatives(rows_of_all(0, 1)), whole, strict=True))


def test_without_ids_pairs_are_told_apart_by_their_place():
    found = hard_negatives(rows_of_all(0, 1, caption_VN=None, picture_N=None))
    assert (found.text_N != torch.arange(ROWS)).all()


# ---- The loss


def tokens(world: int = 1, rank: int = 0) -> dict[str, Any]:
    """Tokens whose first number is the number of their pair."""
    generator = torch.Generator().manual_seed(2)
    text, image = (torch.randn(ROWS, length, 8, generator=generator) for length in (5, 4))
    text[:, 0, 0] = image[:, 0, 0] = torch.arange(ROWS)
    mask = torch.arange(5) < torch.tensor([3, 5] * (ROWS // 2))[:, None]
    mine = slice(rank, None, world)
    return {"text_tokens_NLD": text[mine], "text_mask_NL": mask[mine], "image_tokens_NPD": image[mine]}


class Oracle:
    """It sees which text belongs to which picture, and is as sure of it as ``confidence``."""

    def __init__(self, confidence: float) -> None:
        self.confidence = confidence

    def match(self, text_NLD: Tensor, mask_NL: Tensor, image_NPD: Tensor) -> Tensor:
        same_N = (text_NLD[:, 0, 0] == image_NPD[:, 0, 0]).float()
        return torch.stack([1 - same_N, same_N], dim=1) * self.confidence


def loss_of(embedded: Embeddings) -> dict[str, float]:
    loss = base.parse({"name": "matching"}).loss(embedded)
    assert loss.total == loss.parts["matching_loss"]
    return {name: value.item() for name, value in loss.parts.items()}


def test_an_oracle_is_always_right():
    assert loss_of(rows_of_all(0, 1, **tokens(), fusion=Oracle(50.0))) == {
        "matching_loss": pytest.approx(0, abs=1e-6),
        "matching_accuracy": 1.0,
    }
    wrong = loss_of(rows_of_all(0, 1, **tokens(), fusion=Oracle(-2.0)))
    assert wrong["matching_accuracy"] == 0
    assert wrong["matching_loss"] == pytest.approx(2 + math.log1p(math.exp(-2)))


def test_it_starts_at_ln_2():
    torch.manual_seed(0)
    tower = FusionTower(FusionOptions(width=64), 8, 10)
    assert loss_of(rows_of_all(0, 1, **tokens(), fusion=tower))["matching_loss"] == pytest.approx(math.log(2), abs=0.03)


def test_a_batch_that_says_one_thing_counts_its_positives_alone():
    same = {"caption_VN": torch.zeros(1, ROWS, dtype=torch.int64)}
    found = loss_of(rows_of_all(0, 1, **tokens(), **same, fusion=Oracle(1.0)))
    assert found["matching_loss"] == pytest.approx(math.log1p(math.exp(-1)))
    assert found["matching_accuracy"] == 1
    one = Embeddings.of(torch.ones(1, 8), torch.ones(1, 8), torch.tensor(1.0), fusion=Oracle(1.0))
    only = {name: value[:1] for name, value in tokens().items()}
    assert loss_of(Embeddings(**{**vars(one), **only}))["matching_loss"] == pytest.approx(math.log1p(math.exp(-1)))


def test_strips_of_the_tower_give_the_same_gradients(monkeypatch):
    torch.manual_seed(0)
    tower = FusionTower(FusionOptions(width=16, heads=2), 8, 10)

    def gradients() -> list[Tensor]:
        leaves = tokens()
        wanted = [leaves[name].requires_grad_() for name in ("text_tokens_NLD", "image_tokens_NPD")]
        total = base.parse({"name": "matching"}).loss(rows_of_all(0, 1, **leaves, fusion=tower)).total
        return list(torch.autograd.grad(total, [*wanted, tower.summary, tower.match_head.weight]))

    whole = gradients()
    monkeypatch.setattr(matching, "_TOKENS_OF_STRIP", 40)
    for strip, expected in zip(gradients(), whole, strict=True):
        assert expected.abs().sum() > 0
        torch.testing.assert_close(strip, expected, rtol=1e-5, atol=1e-7)


def test_a_recipe_without_the_tower_is_refused():
    objective = base.parse({"name": "matching"})
    with pytest.raises(UserError, match=r"objective 'matching' needs fusion, .* add model\.fusion"):
        base.check_needs([objective], objective.needs - {"fusion"})


# ---- Through the towers


def batch(rank: int, world: int) -> Batch:
    generator = torch.Generator().manual_seed(3)
    image = torch.randint(0, 256, (1, ROWS, 3, 32, 32), generator=generator, dtype=torch.uint8)
    text = torch.randint(1, 49000, (1, ROWS, 16), generator=generator)
    text[:, 5] = text[:, 12]
    text[..., 0], text[..., 10], text[..., 11:] = 49406, 49407, 0
    mine = slice(rank, None, world)
    rows = ("",) * (ROWS // world)
    return Batch(image[:, mine], text[:, mine], rows, rows, picture_N=(torch.arange(ROWS) // 2)[mine])


def step(rank: int, world: int, config: dict[str, Any], names: list[str], micro: int, dropout: float = 0.0) -> Any:
    """Loss and gradients of all parameters, the fusion tower's included."""
    vision = {**config["vision_cfg"], "patch_dropout": dropout}
    fusion = FusionOptions(layers=1, width=16, heads=2)
    model = build(ModelOptions(config={**config, "vision_cfg": vision}, fusion=fusion), seed=0).train()
    wrapped = DistributedDataParallel(model) if world > 1 else model
    objectives = [base.parse({"name": name}) for name in names]

    def sum_of(some: list[base.Objective]) -> embeddings.LossOf | None:
        return (lambda embedded: base.combined_loss(some, embedded)) if some else None

    for _ in range(2):  # the second step fails where the first left a parameter of DDP without gradient
        model.zero_grad()
        loss, _ = embeddings.backward(
            Encoding(model, objectives, ROWS).encoders(wrapped, batch(rank, world), seed=11),
            batch(rank, world),
            sum_of([o for o in objectives if o.couples_batch]),
            sum_of([o for o in objectives if not o.couples_batch]),
            micro_batch_size=micro,
            seeds=(11, distributed.seed_of("test", rank)),
            backward_of=lambda total: total.backward(),
            no_sync=wrapped.no_sync if world > 1 else nullcontext,
        )
    parts = {name: value.item() for name, value in loss.parts.items()}
    mean = distributed.mean_over_ranks(parts)
    return mean, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("names", [["matching"], ["masked_words"], ["matching", "infonce", "masked_words"]])
@pytest.mark.parametrize(("world", "micro"), [(1, 5), (2, 99), (2, 3), (4, 99)])
def test_loss_and_gradients_are_those_of_one_process(run_ranks, tiny_model, names, world, micro):
    """And in any order: a draw that comes first must not leave gathered features without gradient behind."""
    parts, expected = step(0, 1, tiny_model, names[::-1], ROWS)
    scale = max(gradient.abs().max() for gradient in expected.values())
    assert any(name.startswith("fusion.") and gradient.abs().sum() > 0 for name, gradient in expected.items())
    for found, gradients in run_ranks(step, world, tiny_model, names, micro):
        assert found == pytest.approx(parts, rel=1e-5)
        for name, gradient in expected.items():
            torch.testing.assert_close(
                gradients[name], gradient, rtol=1e-5, atol=1e-5 * scale, msg=lambda m, n=name: n + m
            )


def test_a_run_goes_on_with_its_tower_and_exports_without_it(tiny_model, tmp_path: Path):
    write_scenes(ScenesOptions(out=tmp_path / "data", num_train=32, num_eval=8, samples_per_shard=32))
    tree = {
        "name": "trial",
        "run_dir": str(tmp_path / "whole"),
        "data": {"train": str(tmp_path / "data" / "train"), "workers": 0},
        "model": {"config": tiny_model, "fusion": {"layers": 1, "width": 16, "heads": 2}},
        "objectives": [{"name": "infonce"}, {"name": "matching"}, {"name": "masked_words"}],
        "train": {"steps": 4, "global_batch_size": 8, "warmup": 1, "ema_decay": 0.5},
        "checkpoint": {"every": 2},
        "track": {"every": 1, "tensorboard": False},
    }
    whole = train(recipe.validate(tree, "here")).run_dir
    stopped = tmp_path / "stopped"
    shutil.copytree(whole, stopped, symlinks=True)
    shutil.rmtree(stopped / "checkpoints" / "step-0000004")
    (stopped / "checkpoints" / "latest").unlink()
    (stopped / "checkpoints" / "latest").symlink_to("step-0000002")
    train(recipe.validate({**tree, "run_dir": str(stopped)}, "here"))

    def tensors(run_dir: Path, step: str = "latest") -> dict[str, Tensor]:
        place = run_dir / "checkpoints" / step
        files = ("fusion", "optimizer", "open_clip_model")
        return {f"{f}:{n}": value for f in files for n, value in load_file(place / f"{f}.safetensors").items()}

    expected, found, before = tensors(whole), tensors(stopped), tensors(whole, "step-0000002")
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert not torch.equal(expected["fusion:summary"], before["fusion:summary"]), "it learns"
    assert any(name.startswith("optimizer:fusion.") for name in expected)
    row = next(row for row in read_metrics(whole / "metrics.jsonl") if "train/lr" in row)
    assert row["train/matching_loss"] == pytest.approx(math.log(2), abs=0.1)
    assert row["train/masked_words_loss"] == pytest.approx(math.log(49408), abs=0.2)

    assert yaml.safe_load((whole / "recipe.yaml").read_text())["model"]["fusion"]["layers"] == 1
    export(str(whole), tmp_path / "out")
    clip, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'out'}")
    average = load_file(whole / "checkpoints" / "latest" / "ema.safetensors")
    assert clip.state_dict().keys() == average.keys(), "the average is of the two towers"
