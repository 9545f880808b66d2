"""How good captions are: BLEU, METEOR, ROUGE-L, CIDEr and SPICE of the field's library, CLIPScore, and repetition.

The first five compare with true captions and are computed by pycocoevalcap, as papers of COCO do. METEOR and SPICE need
Java; SPICE also wants Stanford's CoreNLP, which the library does not bring along. What cannot be computed is left out,
and ``left_out`` says why. CLIPScore asks an image-text model (Hessel et al., arXiv:2104.08718).
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from vlp.evaluation.caption_words import LeftOut, java, last_line, tokenised
from vlp.evaluation.metrics import pair_scores

LIBRARY = "pycocoevalcap"
NAMES = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr", "SPICE")
MEANS = ("ROUGE_L", "CIDEr", "SPICE")
"""Metrics of a set that are means of those of its pictures; the others are not."""

PROMPT = "A photo depicts "
WEIGHT = 2.5  # of CLIPScore, which stretches the cosines that CLIP gives to about 0 to 1

Tokens = dict[int, list[str]]


@dataclass(frozen=True)
class CaptionScores:
    """Scores of captions against true ones, under the names of pycocoevalcap and CLIP_benchmark.

    Attributes:
        of_set: metric -> score of all captions together; CIDEr may exceed 1, and papers write a hundred times it.
        of_picture: metric -> score of each caption alone.
        left_out: metric -> why it is not there.
        tokenizer: what made words of the captions; empty where nothing was computed.
    """

    of_set: dict[str, float]
    of_picture: dict[str, list[float]]
    left_out: dict[str, str]
    tokenizer: str


def score_captions(captions: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """Compare each caption with the true captions of its picture, one or more.

    An empty caption scores 0.
    """
    if find_spec(LIBRARY) is None:
        why = f"{LIBRARY} is not installed: pip install 'vlp[captions]'"
        return CaptionScores({}, {}, dict.fromkeys(NAMES, why), "")
    texts, tokenizer = tokenised([*captions, *(text for texts in references for text in texts)])
    rest = iter(texts[len(captions) :])
    mine: Tokens = {row: [text] for row, text in enumerate(texts[: len(captions)])}
    true: Tokens = {row: [next(rest) for _ in of_row] for row, of_row in enumerate(references)}
    of_set: dict[str, float] = {}
    of_picture: dict[str, list[float]] = {}
    left_out: dict[str, str] = {}
    for names, compute in _METRICS:
        try:
            scores, lists = compute(true, mine)
        except LeftOut as error:
            left_out |= dict.fromkeys(names, str(error))
            continue
        of_set |= {name: float(score) for name, score in zip(names, scores, strict=True)}
        of_picture |= {name: [float(one) for one in ones] for name, ones in zip(names, lists, strict=True)}
    return CaptionScores(of_set, of_picture, left_out, tokenizer)


def _bleu(true: Tokens, mine: Tokens) -> tuple[Any, Any]:
    return import_module(f"{LIBRARY}.bleu.bleu").Bleu(4).compute_score(true, mine, verbose=0)


def _rouge(true: Tokens, mine: Tokens) -> tuple[Any, Any]:
    score, scores = import_module(f"{LIBRARY}.rouge.rouge").Rouge().compute_score(true, mine)
    return [score], [scores]


def _cider(true: Tokens, mine: Tokens) -> tuple[Any, Any]:
    # A word counts by how few pictures have it. That of the only picture counts nothing: the library says 0 to all.
    if len(true) < 2 or not any(text for texts in true.values() for text in texts):
        raise LeftOut("CIDEr weighs words by how few pictures have them, which one picture, or no word, cannot tell")
    score, scores = import_module(f"{LIBRARY}.cider.cider").Cider().compute_score(true, mine)
    return [score], [scores]


def _meteor(true: Tokens, mine: Tokens) -> tuple[Any, Any]:
    with _meteor_process() as meteor:
        try:
            # Its program reads ||| as the end of a text.
            plain = {row: [text.replace("|||", " ") for text in texts] for row, texts in true.items()}
            score, scores = meteor.compute_score(plain, mine)
        except (OSError, ValueError) as error:
            meteor.meteor_p.kill()
            said = last_line(meteor.meteor_p.communicate()[1] or b"")
            raise LeftOut(f"METEOR's program failed ({said})") from error
    return [score], [scores]


@contextmanager
def _meteor_process() -> Iterator[Any]:
    """METEOR, whose program is ended with everything that belongs to it."""
    java()
    meteor = import_module(f"{LIBRARY}.meteor.meteor").Meteor()
    try:
        yield meteor
    finally:
        if meteor.lock.locked():  # after an error; its destructor would wait for the lock for ever
            meteor.lock.release()
        process = meteor.meteor_p
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            with suppress(OSError):  # what it has not read
                pipe.close()


def _spice(true: Tokens, mine: Tokens) -> tuple[Any, Any]:
    java()
    models = import_module(f"{LIBRARY}.spice.get_stanford_models")
    folder = Path(str(models.__file__)).parent / models.SPICELIB
    if not all((folder / f"{models.JAR}{part}.jar").exists() for part in ("", "-models")):
        raise LeftOut(
            "Stanford's CoreNLP 3.6.0 is missing: python -m pycocoevalcap.spice.get_stanford_models downloads it"
        )
    library: Any = import_module(f"{LIBRARY}.spice.spice")
    with TemporaryDirectory() as folder:
        library.TEMP_DIR = folder  # else in the package's own folder, where files stay after an error
        try:
            score, scores = library.Spice().compute_score(true, mine)
        except subprocess.CalledProcessError as error:
            raise LeftOut(f"its program ended with {error.returncode}; it was written for Java 8") from error
        except (OSError, ValueError, KeyError) as error:
            raise LeftOut(f"its program failed ({error})") from error
    return [score], [[one["All"]["f"] for one in scores]]


_METRICS: tuple[tuple[tuple[str, ...], Callable[[Tokens, Tokens], tuple[Any, Any]]], ...] = (
    (NAMES[:4], _bleu),
    (("METEOR",), _meteor),
    (("ROUGE_L",), _rouge),
    (("CIDEr",), _cider),
    (("SPICE",), _spice),
)


def clip_scores(image_ND: Tensor, caption_ND: Tensor) -> Tensor:
    """CLIPScore of each picture with its caption (N): 2.5 times the cosine, 0 where that is negative.

    Args:
        image_ND, caption_ND: L2-normalised features, of captions that begin with `PROMPT`.
    """
    return WEIGHT * pair_scores(image_ND, caption_ND).clamp(min=0)


def ref_clip_scores(clip_N: Tensor, caption_ND: Tensor, true_MD: Tensor, image_of_true: Tensor) -> Tensor:
    """RefCLIPScore (N): the harmonic mean of CLIPScore and of the largest cosine with a true caption.

    Args:
        clip_N: what `clip_scores` gave.
        true_MD: L2-normalised features of the true captions, which begin with `PROMPT`, too.
        image_of_true: the row of the picture of each; every picture has one.
    """
    image_of_true = image_of_true.to(caption_ND.device)
    cosine_M = pair_scores(true_MD, caption_ND[image_of_true])
    best_N = torch.zeros_like(clip_N).scatter_reduce(0, image_of_true, cosine_M, "amax")  # negative ones are 0
    return 2 * clip_N * best_N / (clip_N + best_N).clamp(min=torch.finfo(clip_N.dtype).tiny)


def repetition(captions: Sequence[str]) -> dict[str, float]:
    """Signs of a captioner that repeats itself: ``words`` a caption, share of ``distinct`` captions, and ``repeats``.

    The last is the share of captions in which three words in a row come twice.
    """
    words = [caption.lower().split() for caption in captions]
    triples = [list(zip(one, one[1:], one[2:], strict=False)) for one in words]
    number = len(captions)
    return {
        "words": sum(map(len, words)) / number,
        "distinct": len({" ".join(one) for one in words}) / number,
        "repeats": sum(len(set(one)) < len(one) for one in triples) / number,
    }
