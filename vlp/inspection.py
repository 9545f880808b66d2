"""What a recipe would run, without running it: data, columns, parameters, global batch, needs."""

from __future__ import annotations

from vlp import encoding
from vlp.data.batches import TrainingData
from vlp.data.captions import CaptionSource
from vlp.durations import described
from vlp.encoders import batch_norm, lora, shape_check
from vlp.encoders.openclip import outline
from vlp.evaluation.run import open_tasks
from vlp.objectives.base import check_needs, hard_texts, needs, text_views
from vlp.optim import adamw, described_groups
from vlp.recipe import Recipe


def inspect(recipe: Recipe) -> str:
    """A text of one fact a line.

    Raises:
        UserError: what `train` would raise before its first step.
    """
    check_needs(recipe.objectives, recipe.provides())
    model = outline(recipe.model, recipe.starts(), needs(recipe.objectives))
    data = TrainingData(
        recipe.data,
        model.picture_format,
        model.tokenizer,
        recipe.train.global_batch_size,
        recipe.seed,
        text_views=text_views(recipe.objectives),
        hard_texts=hard_texts(recipe.objectives),
    )
    span = recipe.span(data.num_samples)
    batch = recipe.train.global_batch_size
    shape_check.check(model, recipe.train, span, needs(recipe.objectives))
    batch_norm.check(model, cached=(recipe.train.micro_batch_size or recipe.rows) < recipe.rows)
    adamw(model, recipe.train)
    encoding.check(model, recipe.objectives, recipe.rows, data.num_samples)
    lines = [
        f"run           {recipe.run_dir} (seed {recipe.seed})",
        f"data          {data.num_samples:,} samples in {data.num_shards} shards",
        *(f"              {note}" for note in data.notes),
        f"columns       {', '.join(data.columns)}",
        *(f"defects       {line}" for line in data.defects_by_kind()),
        f"captions      {', '.join(map(_caption_source, recipe.data.captions))}",
        *(f"hard captions {_caption_source(source)}" for source in recipe.data.hard_captions),
        *([f"neighbours    {recipe.data.neighbours}"] if recipe.data.neighbours else []),
        f"pictures      {model.picture_format.size[0]} x {model.picture_format.size[1]}",
        *(f"parameters    {tower:<6}{count:>14,}" for tower, count in model.parameters_by_tower().items()),
        *([f"lora          {lora.described(model.clip, recipe.model.lora)}"] if recipe.model.lora is not None else []),
        *(f"optimiser     {group}" for group in described_groups(model, recipe.train)),
        f"objectives    {', '.join(f'{described(o.weight)} x {o.name}' for o in recipe.objectives)}",
        f"needs         {', '.join(sorted(needs(recipe.objectives)))}",
        f"global batch  {batch:,}" + (f" and as many neighbours: {recipe.rows:,} rows" if recipe.rows > batch else ""),
        f"length        {span.total_steps:,} steps = {span.total_steps * batch:,} samples = "
        f"{span.total_steps * batch / data.num_samples:.2f} epochs",
    ]
    for task in open_tasks(recipe.evaluate):
        task.check(model)
        lines.append(f"evaluation    {task.kind}: {task.directory}")
    return "\n".join(lines)


def _caption_source(source: CaptionSource) -> str:
    return f"{source.source} (weight {source.weight:g}{' for each text' if source.each else ''})"
