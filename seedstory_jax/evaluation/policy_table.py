"""The policies' table: what share of frames is right, by policy and by how far the story has come.

Records are dicts, one a frame: `policy`, `story`, `frame` (its index in the story, the prompt's is 0) and any number of
judgements (bool, share or None where the question does not arise), such as a `probe.FrameScore` as a dict.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from seedstory_jax.evaluation.bootstrap import Interval, bootstrap_mean

RANGES = ((2, 10), (11, 20), (21, 30))  # counted from 1, both ends included
KEYS = ("policy", "story", "frame")
TITLES = {
    "well_formed": "captions well formed",
    "caption_well_formed": "captions well formed",
    "scene": "scene",
    "all_characters": "all named characters",
    "characters": "named characters",
    "poses": "poses of named characters",
    "extra": "characters shown and not named",
    "treasure": "named treasure shown",
    "cast_kept": "cast kept in the text",
    "props": "props",
    "persistence": "persistence",
    "opening_fact": "opening fact",
    "opening_named": "opening's treasure named",
    "opening_shown": "opening's treasure shown",
    "forced_next_token_loss": "teacher-forced next-token loss, nats",
    "forced_feature_distance": "teacher-forced feature distance",
    "repeated": "runs of four words said before",
    "said_before": "caption said before, word for word",
    "copied_text": "words copied from the prompt",
    "perplexity": "perplexity given the story (SmolLM2-135M; favours models grown from it)",
    "copied_picture": "picture copied from the prompt",
    "style_consistency": "style as in the pictures before",
    "character_consistency": "features found again in the picture before",
    "likeness_to_first": "features found again in the first picture",
    "clip_score": "CLIP score",
    "imagenet_to_first": "like the first picture (EfficientNet-Lite0, ImageNet)",
    "imagenet_to_before": "like the pictures before (EfficientNet-Lite0, ImageNet)",
    "dino_to_first": "like the first picture (DINO)",
    "dino_to_before": "like the pictures before (DINO)",
    "dino_character_consistency": "parts found again in the picture before (DINO)",
    "dino_likeness_to_first": "parts found again in the first picture (DINO)",
    "clip_to_first": "like the first picture (CLIP)",
    "clip_to_before": "like the pictures before (CLIP)",
    "csd_to_first": "style like the first picture's (CSD)",
    "csd_to_before": "style like the pictures' before (CSD)",
    "frechet_vit": "Fréchet distance (own ViT)",
    "fid": "FID",
    "distinct_1": "different words",
    "distinct_2": "different pairs of words",
    "length": "frames",
    "self_csd": "style alike within a story (CSD)",
    "cross_csd": "style like the reference's (CSD)",
    "cross_sim": "character like the reference's (CIDS)",
    "cids_self_mean": "character alike within a story (CIDS)",
    "cids_cross_mean": "character like the reference's (CIDS)",
    "occm": "as many characters as asked (OCCM)",
    "aesthetic_score": "aesthetic score",
    "character_action": "what characters do, 0 to 4",
    "single_character_action": "what each character does, 0 to 4",
    "camera": "camera, 0 to 4",
    "seconds": "seconds a story",
    "llm_calls": "LLM calls a sequence",
    "kv_slots": "buffer slots",
    "buffer_mb": "buffer, MB",
    "peak_mb": "peak device memory, MB",
}


@dataclass(frozen=True)
class PolicyTable:
    """Intervals by policy, range of frames ("2-10") and metric, and the same by single frame, for curves."""

    metrics: tuple[str, ...]
    ranges: tuple[str, ...]
    stories: dict[str, int]
    cells: dict[str, dict[str, dict[str, Interval]]]  # policy -> range -> metric
    curves: dict[str, dict[str, dict[float, Interval]]]  # policy -> metric -> frame counted from 1, a bin's middle

    def rows(self) -> list[dict]:
        """Flat rows: policy, frames, metric, mean, low, high, count."""
        return [
            {"policy": policy, "frames": frames, "metric": metric, **asdict(cell)}
            for policy, by_range in self.cells.items()
            for frames, by_metric in by_range.items()
            for metric, cell in by_metric.items()
        ]


def records_of(policy: str, story: str, scores: Sequence) -> list[dict]:
    """Records of one story's `probe.FrameScore`s (or dicts), the first of which is the prompt's."""
    dicts = [score if isinstance(score, Mapping) else asdict(score) for score in scores]
    return [{"policy": policy, "story": story, "frame": frame, **score} for frame, score in enumerate(dicts)]


def policy_table(
    records: Iterable[Mapping],
    *,
    metrics: Sequence[str] | None = None,
    ranges: Sequence[tuple[int, int]] = RANGES,
    bin_frames: int = 3,
) -> PolicyTable:
    """Means with bootstrap intervals over stories. Without `metrics`, all that some record answers, in its order.

    The last column of the table is all ranges together. A point of a curve is the mean of `bin_frames` frames.
    """
    records = list(records)
    known = dict.fromkeys(k for r in records for k, v in r.items() if k not in KEYS and v is not None)
    metrics = tuple(known) if metrics is None else tuple(metrics)
    policies = tuple(dict.fromkeys(str(record["policy"]) for record in records))
    whole = (min(first for first, _ in ranges), max(last for _, last in ranges))
    ranges = tuple(ranges) if len(ranges) == 1 else (*ranges, whole)
    names = tuple(f"{first}-{last}" for first, last in ranges)
    cells: dict = {}
    curves: dict = {}
    for policy in policies:
        own = [record for record in records if str(record["policy"]) == policy]
        last_frame = max(record["frame"] + 1 for record in own)
        bins = [(n, min(n + bin_frames - 1, last_frame)) for n in range(2, last_frame + 1, bin_frames)]
        cells[policy] = {
            name: {metric: _interval(own, metric, first, last) for metric in metrics}
            for name, (first, last) in zip(names, ranges, strict=True)
        }
        curves[policy] = {m: {(a + b) / 2: _interval(own, m, a, b) for a, b in bins} for m in metrics}
    stories = {policy: len({r["story"] for r in records if str(r["policy"]) == policy}) for policy in policies}
    return PolicyTable(metrics, names, stories, cells, curves)


def _interval(records: Sequence[Mapping], metric: str, first: int, last: int) -> Interval:
    groups: dict[object, list] = {}
    for record in records:
        if first <= record["frame"] + 1 <= last:
            groups.setdefault(record["story"], []).append(record.get(metric))
    return bootstrap_mean(groups)


def title_of(metric: str) -> str:
    """A metric's name in words."""
    return TITLES.get(metric, metric.replace("_", " "))


def to_markdown(table: PolicyTable) -> str:
    """A row a policy and metric, a column a range; the interval in brackets."""
    lines = [
        "| policy | | " + " | ".join(f"frames {name}" for name in table.ranges) + " |",
        "|---|---|" + "---|" * len(table.ranges),
    ]
    for policy, by_range in table.cells.items():
        for place, metric in enumerate(table.metrics):
            shown = [_words(by_range[name][metric]) for name in table.ranges]
            head = "`{}`".format(policy.replace("|", "\\|")) if place == 0 else ""
            lines.append(f"| {head} | {title_of(metric)} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def _words(cell: Interval) -> str:
    if cell.mean is None:
        return "–"  # noqa: RUF001 (a dash: nothing was asked)
    return f"{cell.mean:.2f}" if cell.low is None else f"{cell.mean:.2f} [{cell.low:.2f}, {cell.high:.2f}]"
