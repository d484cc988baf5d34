import csv
import io

from seedstory_jax.config import SampleConfig
from seedstory_jax.evaluation.ablation import plan_runs
from seedstory_jax.evaluation.records import records_csv


def test_settings_are_columns():
    runs = plan_runs(["window", "multimodal_sink(image_sink_cap=3)"], [], [4])
    records = [
        {"policy": "window", "story": "a,b", "frame": 0, "scene": None, "repeated": 0.25},
        {"policy": "multimodal_sink(image_sink_cap=3)", "story": "a,b", "frame": 1, "scene": True, "repeated": None},
    ]
    text = records_csv({4: records}, runs, SampleConfig(window=5, head=(1, 2)), seed=7)
    first, second = csv.DictReader(io.StringIO(text))
    shared = {"story": "a,b", "length": "4", "seed": "7", "window": "5", "positions": "slot"}
    assert shared.items() <= first.items() and shared.items() <= second.items()
    assert (first["policy"], first["turn"], first["metric"], first["value"]) == ("window", "0", "repeated", "0.25")
    assert (first["head"], second["head"], second["image_sink_cap"], second["start"]) == ("", "1:2", "3", "4")
    assert (second["policy"], second["metric"], second["value"]) == ("multimodal_sink", "scene", "1.0")
    assert second["label"] == "multimodal_sink(image_sink_cap=3)"
