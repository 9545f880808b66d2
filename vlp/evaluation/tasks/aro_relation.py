"""ARO's VG-Relation (Yuksekgonul et al., arXiv:2210.01936): "the horse is eating the grass" against its reverse.

The official files are those of github.com/mertyg/vision-language-models-are-bows, whose reader downloads them:
``visual_genome_relation.json`` and vgr_vga_images.zip, a gigabyte that unpacks to ``images/``:

    visual_genome_relation.json   [{image_path, bbox_x, bbox_y, bbox_w, bbox_h, true_caption, false_caption,
                                    relation_name, ...}, ...]
    images/2325499.jpg ...

Where one directory holds ``visual_genome_attribution.json`` as well, name the file:
``DIRECTORY/visual_genome_relation.json``. Pictures are cut to the box. ``text_acc_macro_official`` is the figure of the
paper: the mean of the relations but those that the authors' notebook takes for symmetric; ``text_acc_macro`` is the
mean of all.
"""

from __future__ import annotations

from pathlib import Path

from vlp.data import aro_sets
from vlp.evaluation.choices import ChoiceTask, Mean

# The relations that the notebook of the authors' repository leaves out of the mean, as it spells them.
_LEFT_OUT = """
    adjusting; around; attached to; beside; between; bigger than; biting; boarding; brushing; by; chewing; cleaning;
    climbing; close to; coming from; coming out of; contain; crossing; dragging; draped over; drinking; drinking
    from; driving; driving down; driving on; eating from; eating in; enclosing; exiting; facing; filled with;
    floating in; floating on; flying; flying above; flying in; flying over; flying through; full of; going down;
    going into; going through; grazing in; growing in; growing on; guiding; hanging from; hanging in; hanging off;
    hanging over; higher than; holding onto; hugging; in between; jumping off; jumping on; jumping over; kept in;
    larger than; leading; leaning over; leaving; licking; longer than; looking in; looking into; looking out;
    looking over; looking through; lying next to; lying on top of; making; mixed with; mounted on; moving; near;
    next to; of; on the back of; on the edge of; on the front of; on the other side of; on the side of; opening;
    painted on; parked at; parked beside; parked by; parked in; parked in front of; parked near; parked next to;
    perched on; petting; piled on; playing; playing in; playing on; playing with; pouring; reaching for; reading;
    reflected on; riding on; running in; running on; running through; seen through; sitting behind; sitting beside;
    sitting by; sitting in front of; sitting near; sitting next to; sitting under; skiing down; skiing on; sleeping
    in; sleeping on; smiling at; sniffing; splashing; sprinkled on; stacked on; standing against; standing around;
    standing behind; standing beside; standing in front of; standing near; standing next to; staring at; stuck in;
    surrounding; swimming in; swinging; talking to; topped with; touching; traveling down; traveling on; tying;
    typing on; underneath; wading in; waiting for; walking across; walking by; walking down; walking next to;
    walking through; with; working in; working on; worn on; wrapped around; wrapped in
"""
SYMMETRIC = frozenset(" ".join(_LEFT_OUT.split()).split("; "))


class Task(ChoiceTask):
    layout = (
        "ARO's visual_genome_relation.json (downloaded by the reader of "
        "github.com/mertyg/vision-language-models-are-bows)"
    )
    table = "relation"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        found = aro_sets.read_crops(path, aro_sets.RELATION)
        self.images, self.texts, self.choices = found.images, found.texts, found.choices

    @staticmethod
    def detects(path: Path) -> bool:
        return aro_sets.is_file_or_in(path, (aro_sets.RELATION,))

    def means(self) -> dict[str, Mean]:
        relations = tuple(sorted({choice.category for choice in self.choices}))
        kept = tuple(relation for relation in relations if relation not in SYMMETRIC)
        number = "the only relation" if len(relations) == 1 else f"all {len(relations)} relations"
        label = f"mean of {number} (macro)"
        left_out = f"symmetric left out: {len(relations) - len(kept)}"
        return {
            "macro": Mean(label if kept else f"{label}, symmetric ones only", relations),
            "macro_official": Mean(f"mean of the paper's relations (macro, {len(kept)}; {left_out})", kept),
        }
