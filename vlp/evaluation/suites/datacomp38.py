"""The 38 sets of DataComp, with its main metrics and groups.

Sets, metrics, groups and numbers are those of tasklist.yml and aggregate_scores.py of
github.com/mlfoundations/datacomp; FairFace and UTKFace stand in its list, but have no main metric and count nowhere.
Its download_evalsets.py writes the directories that are looked for.
"""

from vlp.evaluation.suites.base import HUB, Entry, Suite, benchmark_places, on_hub

IMAGENET, SHIFTS, VTAB, RETRIEVAL = "ImageNet", "ImageNet dist. shifts", "VTAB", "Retrieval"
TOP1, PER_CLASS = ("acc1",), ("mean_per_class_recall",)
RECALL = ("image_retrieval_recall@1", "text_retrieval_recall@1")
JACCARD = ("jaccard_score_10-12",)
_NO_MAIN_METRIC = "DataComp has no main metric for it, and it counts in no mean"
_WINOGAVIL = (
    f"{HUB}/nlphuji/winogavil (winogavil_dataset.csv and winogavil_images.zip; "
    "its page asks to use it for research only)"
)


def _classes(
    name: str,
    key: str,
    images: int,
    classes: int,
    *groups: str,
    metrics: tuple[str, ...] = TOP1,
    task: str = "",
    places: tuple[str, ...] = (),
) -> Entry:
    """``key`` is DataComp's and CLIP_benchmark's name of the set."""
    where = on_hub(key, "djghosh", "_test")
    return Entry(name, (*benchmark_places(key), *places), metrics, where, groups, task, images, classes)


def _recall(name: str, key: str, repository: str, images: int, *places: str) -> Entry:
    where = f"{on_hub(key)} (DataComp takes the same pictures from {HUB}/nlphuji/{repository})"
    return Entry(name, (*benchmark_places(key), *places), RECALL, where, (RETRIEVAL,), images=images)


def _not_computed(name: str, key: str, images: int) -> Entry:
    return Entry(name, benchmark_places(key), (), on_hub(key), images=images, not_computed=_NO_MAIN_METRIC)


SUITE = Suite(
    (
        _classes("Caltech-101", "vtab/caltech101", 6_085, 102, VTAB, metrics=PER_CLASS),
        _classes("CIFAR-10", "cifar10", 10_000, 10, places=("wds_vtab-cifar10",)),
        _classes("CIFAR-100", "vtab/cifar100", 10_000, 100, VTAB),
        _classes("CLEVR Counts", "vtab/clevr_count_all", 15_000, 8, VTAB),
        _classes("CLEVR Distance", "vtab/clevr_closest_object_distance", 15_000, 6, VTAB),
        _classes("Country211", "country211", 21_100, 211),
        _classes("Describable Textures", "vtab/dtd", 1_880, 47, VTAB),
        _classes("EuroSAT", "vtab/eurosat", 5_400, 10, VTAB),
        _classes("FGVC Aircraft", "fgvc_aircraft", 3_333, 100, metrics=PER_CLASS),
        _classes("Food-101", "food101", 25_250, 101),
        _classes("GTSRB", "gtsrb", 12_630, 43),
        _classes("ImageNet 1k", "imagenet1k", 50_000, 1_000, IMAGENET),
        _classes("ImageNet Sketch", "imagenet_sketch", 50_889, 1_000, SHIFTS),
        _classes("ImageNet v2", "imagenetv2", 10_000, 1_000, SHIFTS),
        _classes("ImageNet-A", "imagenet-a", 7_500, 200, SHIFTS),
        _classes("ImageNet-O", "imagenet-o", 2_000, 200, SHIFTS),
        _classes("ImageNet-R", "imagenet-r", 30_000, 200, SHIFTS),
        _classes("KITTI Vehicle Distance", "vtab/kitti_closest_vehicle_distance", 711, 4, VTAB),
        _classes("MNIST", "mnist", 10_000, 10),
        _classes("ObjectNet", "objectnet", 18_574, 113, SHIFTS),
        _classes("Oxford Flowers-102", "vtab/flowers", 6_149, 102, VTAB, metrics=PER_CLASS),
        _classes("Oxford-IIIT Pet", "vtab/pets", 3_669, 37, VTAB, metrics=PER_CLASS),
        _classes("Pascal VOC 2007", "voc2007", 14_976, 20),
        _classes("PatchCamelyon", "vtab/pcam", 32_768, 2, VTAB),
        _classes("Rendered SST2", "renderedsst2", 1_821, 2),
        _classes("RESISC45", "vtab/resisc45", 6_300, 45, VTAB),
        _classes("Stanford Cars", "cars", 8_041, 196),
        _classes("STL-10", "stl10", 8_000, 10),
        _classes("SUN397", "sun397", 108_754, 397, VTAB),
        _classes("SVHN", "vtab/svhn", 26_032, 10, VTAB),
        _recall("Flickr", "flickr30k", "flickr_1k_test_image_text_retrieval", 1_000),
        _recall("MSCOCO", "mscoco_captions", "mscoco_2014_5k_test_image_text_retrieval", 5_000, "coco", "mscoco"),
        Entry("WinoGAViL", benchmark_places("winogavil"), JACCARD, _WINOGAVIL, (RETRIEVAL,), images=2_044),
        _classes("iWildCam", "wilds/iwildcam", 42_791, 182, metrics=("F1-macro_all",), task="groups"),
        _classes("Camelyon17", "wilds/camelyon17", 85_054, 2),
        _classes("FMoW", "wilds/fmow", 22_108, 62, metrics=("acc_worst_region",), task="groups"),
        _classes("Dollar Street", "dollar_street", 3_503, 58, metrics=("acc_top5_wg",), task="groups"),
        _classes("GeoDE", "geode", 12_488, 40, metrics=("acc_wg",), task="groups"),
        _not_computed("FairFace", "fairface", 10_954),
        _not_computed("UTKFace", "utkface", 23_703),
    ),
    groups=(IMAGENET, SHIFTS, VTAB, RETRIEVAL),
    average="Average",
)
