"""Does what it learns show? Evaluation against chance, collapse, overfit, and traps of the sets themselves."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from vlp.doctor.finding import Finding, judged, times
from vlp.doctor.run_files import RunFiles, stretches

# Of sets of five captions a picture, which everybody reports that way.
FIVE_CAPTIONS = re.compile(r"coco|flickr", re.IGNORECASE)
JUDGED = re.compile(r"val/.+(/(image_to_text|text_to_image)_R@1|-zeroshot-val-top1)")


def evaluated(run: RunFiles) -> Finding:
    topic, sets = "evaluation", run.option("evaluate.sets", [])
    if not sets:
        cure = "evaluate.sets=[DIR]; a falling loss alone does not tell what a model can do"
        return Finding(topic, "look", "no evaluation set", cure)
    every, steps = run.option("evaluate.every"), [row["step"] for row in run.evaluations]
    if steps:
        says = f"{len(sets)} set{'s' * (len(sets) > 1)}, {times(len(steps))}, last at step {steps[-1]:,}"
        return Finding(topic, "ok", says)
    if not every:
        return Finding(topic, "look", "only at the end of the run", "evaluate.every=1000 shows what goes wrong in time")
    return Finding(topic, "ok", f"the first comes at step {every:,}")


def chance(run: RunFiles) -> Finding | None:
    """Sets on which the model does no better than drawing lots."""
    asked, at_chance = 0, []
    for result in run.results:
        number = {"zeroshot_retrieval": "num_texts", "zeroshot_classification": "num_images"}.get(
            result.get("task", "")
        )
        metrics, levels = result["metrics"], result.get("chance", {})
        known = [key for key, level in levels.items() if level and metrics.get(key) is not None]
        if number is None or not known:
            continue
        asked += 1
        # R@10 and top-5 have more right answers to count than R@1, so they tell sooner.
        key = max(known, key=lambda key: levels[key] * (levels[key] < 0.5))
        value, level = metrics[key], levels[key]
        if value < level + 3 * math.sqrt(level * (1 - level) / max(1, result.get(number, 1))):
            at_chance.append(f"{result['dataset']}: {key} {100 * value:.1f} %, chance {100 * level:.1f} %")
    if not asked or run.step < 2 * (run.warmup_steps or 0):
        return None
    if not at_chance:
        return Finding("chance", "ok", f"above it on {'all ' * (asked > 1)}{asked} set{'s' * (asked > 1)}")
    says = f"no better than chance on {len(at_chance)} of {asked} set{'s' * (asked > 1)}; {at_chance[0]}"
    cure = "early in a run: wait; else see the lines on loss and learning rate, and the set's own captions"
    return Finding("chance", "bad" if len(at_chance) == asked and not run.is_early else "look", says, cure)


def collapsed(run: RunFiles) -> Finding | None:
    """Features that all lie in one point, or on a line: log mean exp(-2 d^2) near 0, effective rank near 1."""
    worst: list[tuple[float, str]] = []
    for result in run.results:
        figures = result.get("geometry") or {}
        for tower in ("image", "text"):
            spread, rank = figures.get(f"{tower}_uniformity"), figures.get(f"{tower}_effective_rank")
            if spread is not None and rank is not None:
                says = f"{result['dataset']}: {tower} uniformity {spread:.2f}, effective rank {rank:.1f}"
                worst.append((spread if rank > 2 else 0.0, says))
        ties = result.get("tie_rate") or 0.0
        if ties > 0.2:
            says = f"{result['dataset']}: {100 * ties:.0f} % of the questions are ties"
            worst.append((-0.1 if ties > 0.9 else -0.5, says))
    if not worst:
        return None
    spread, says = max(worst)
    cure = "lower train.lr, lengthen train.warmup, larger batch; equal captions of many pictures tie as well"
    return judged("collapse", says, cure, bad=spread > -0.3 and not run.is_early, look=spread > -1.0)


def overfit(run: RunFiles) -> Finding | None:
    """A figure of the evaluation that was clearly better before, although the loss of training falls."""
    sizes = {result["dataset"]: result.get("num_images", 0) for result in run.results}
    losses = run.values("train/loss")
    if len(run.evaluations) < 3 or len(losses) < 10:
        return None
    fallen: list[tuple[float, str]] = []
    for name in run.evaluations[-1]:
        points = [(row["step"], row[name]) for row in run.evaluations if row.get(name) is not None]
        if not JUDGED.fullmatch(name) or len(points) < 3:
            continue
        step, best = max(points, key=lambda point: point[1])
        now, rows = points[-1][1], sizes.get(re.split(r"/|-zeroshot", name)[1], 0)
        middle = (best + now) / 2
        error = math.sqrt(middle * (1 - middle) / rows) if rows else 0.02
        if best - now > max(2 * error, 0.01):
            says = f"{name.removeprefix('val/')} {100 * now:.1f} %, {100 * best:.1f} % at step {step:,}"
            fallen.append(((best - now) / error, says))
    if not fallen:
        return Finding("overfit", "ok", "no score is clearly below its best")
    first, *_, last = medians = stretches(losses)
    falling = first - last > 0.9 * (first - min(medians)) > 0
    cure = "fewer epochs, more augmentation or captions, weight decay; checkpoint.keep to have the best one"
    return Finding("overfit", "look", ("the loss falls, but " if falling else "") + max(fallen)[1], cure)


def captions_per_picture(run: RunFiles) -> Iterator[Finding]:
    """Sets of retrieval with one caption a picture: image -> text asks another question than with five."""
    for result in run.results:
        images, texts = result.get("num_images", 0), result.get("num_texts", 0)
        if result.get("task") != "zeroshot_retrieval" or not images:
            continue
        says = f"{result['dataset']}: {images:,} pictures, {texts:,} captions"
        if texts > images:
            yield Finding("captions", "ok", f"{says}, any of a picture's counts")
        elif FIVE_CAPTIONS.search(result["dataset"]):
            cure = "papers have five captions a picture, and image -> text some 20 points higher: make the set again"
            yield Finding("captions", "look", f"{says}: one a picture", cure)
        else:
            yield Finding("captions", "ok", f"{says}: do not compare with sets of five captions a picture")


def blind_captions(run: RunFiles) -> Iterator[Finding]:
    """A captioner that tells what captions are like, but not what the picture shows."""
    last = run.evaluations[-1] if run.evaluations else {}
    for name, own in last.items():
        other = last.get(name.removesuffix("caption_loss") + "caption_loss_shuffled")
        if name.endswith("/caption_loss") and own is not None and other is not None:
            says = f"{name.split('/')[1]}: {own:.3g} nats an id with its picture, {other:.3g} with another's"
            cure = "it does not look: a larger weight of captioning, or an image tower that is trained; early: wait"
            yield judged("captioner", says, cure, bad=False, look=own > 0.98 * other)


def average(run: RunFiles) -> Finding | None:
    if run.option("train.ema_decay") is None and run.option("train.schedule") == "constant":
        cure = "train.ema_decay=0.999, or train.schedule=wsd: weights at a constant rate are noisy"
        return Finding("average", "look", "a constant learning rate, and no average of the weights", cure)
    return None
