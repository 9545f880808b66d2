"""Captions and pictures: MSCOCO, Flickr30k, Flickr8k and ECCV Caption.

The main metric is the mean of both directions' recall at 1; of ECCV Caption mAP at R.
"""

from vlp.evaluation.suites.base import Entry, Suite, benchmark_places, on_hub

RECALL = ("image_retrieval_recall@1", "text_retrieval_recall@1")

SUITE = Suite(
    (
        Entry(
            "MSCOCO",
            (*benchmark_places("mscoco_captions"), "coco", "mscoco", "coco_karpathy"),
            RECALL,
            on_hub("mscoco_captions"),
            images=5_000,
        ),
        Entry(
            "Flickr30k",
            (*benchmark_places("flickr30k"), "flickr30k_karpathy"),
            RECALL,
            on_hub("flickr30k"),
            images=1_000,
        ),
        Entry(
            "ECCV Caption",
            ("eccv_caption", "eccv"),
            ("eccv_map_at_r_i2t", "eccv_map_at_r_t2i"),
            "annotations_trainval2014.zip and val2014.zip of https://cocodataset.org, and pip install eccv_caption",
            task="eccv_caption",
            images=5_000,
        ),
        Entry("Flickr8k", benchmark_places("flickr8k"), RECALL, on_hub("flickr8k"), images=1_000),
    )
)
