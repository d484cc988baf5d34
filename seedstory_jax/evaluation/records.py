"""Records of an ablation in long form, a row a value, with every setting of a policy as a column."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import fields

from seedstory_jax.evaluation.ablation import Run
from seedstory_jax.evaluation.policy_table import KEYS


def records_csv(records: Mapping[int, Sequence[Mapping]], runs: Sequence[Run], sample, seed: int = 0) -> str:
    """CSV of records by length: policy, its settings, seed, length, story, turn (the prompt's is 0), metric, value.

    A setting that a policy lacks is empty; numbers of a tuple are joined by colons. `sample` is the config's section
    that the policies were made with. Values that were not asked are left out.
    """
    settings = {}
    for run in runs:
        policy = run.policy.make(sample)
        settings[run.label] = {field.name: _text(getattr(policy, field.name)) for field in fields(policy)}
    columns = list(dict.fromkeys(name for own in settings.values() for name in own))
    names = {run.label: run.policy.name for run in runs}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("label", "policy", *columns, "seed", "length", "story", "turn", "metric", "value"))
    for length, own in records.items():
        for record in own:
            label = str(record["policy"])
            head = (label, names[label], *(settings[label].get(name, "") for name in columns), seed, length)
            for metric, value in record.items():
                if metric not in KEYS and value is not None:
                    writer.writerow((*head, record["story"], record["frame"], metric, float(value)))
    return text.getvalue()


def _text(value: object) -> str:
    return ":".join(map(str, value)) if isinstance(value, tuple) else str(value)
