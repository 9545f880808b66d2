"""Whether word order, attributes and relations count: SugarCrepe, ARO, Winoground, MMVP-VLM.

Main metrics are those of the papers; a tie between a true and a false answer counts as wrong, so a model that sees no
difference scores 0 on all of them.
"""

from vlp.evaluation.suites.base import HUB, Entry, Suite

_ARO = "the reader of https://github.com/mertyg/vision-language-models-are-bows, which downloads them"

SUITE = Suite(
    (
        Entry(
            "SugarCrepe",
            ("sugarcrepe", "sugar_crepe", "sugar-crepe"),
            ("text_acc_macro",),
            "data/ of https://github.com/RAIVNLab/sugar-crepe, with COCO's val2017.zip of https://cocodataset.org",
        ),
        Entry(
            "ARO VG-Relation",
            ("aro/visual_genome_relation.json", "visual_genome_relation", "vg_relation"),
            ("text_acc_macro_official",),
            _ARO,
        ),
        Entry(
            "ARO VG-Attribution",
            ("aro/visual_genome_attribution.json", "visual_genome_attribution", "vg_attribution"),
            ("text_acc_macro_official",),
            _ARO,
        ),
        Entry(
            "ARO COCO-Order",
            ("aro/coco_karpathy_test.json", "aro/coco_order.json", "coco_order"),
            ("text_acc",),
            _ARO,
        ),
        Entry(
            "ARO Flickr30k-Order",
            ("aro/flickr30k_test.json", "aro/flickr30k_order.json", "flickr30k_order"),
            ("text_acc",),
            f"{_ARO}; its pictures on request from the authors of Flickr30k",
        ),
        Entry("Winoground", ("winoground",), ("acc",), f"{HUB}/facebook/winoground, after accepting its terms"),
        Entry("MMVP-VLM", ("mmvp", "mmvp_vlm", "MMVP_VLM"), ("image_acc_macro",), f"{HUB}/MMVP/MMVP_VLM", images=270),
    )
)
