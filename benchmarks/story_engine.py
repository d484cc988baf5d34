"""Five policies on the same stories: LLM seconds, calls, operations, bytes.

    python benchmarks/story_engine.py [--sequences=25,50] [--policies=window,multimodal_sink] [--stories=1]

One JSON line. The policies alternate turn by turn, so that a busy machine slows all of them; all are warm and have the
same weights. `speedup` is window_recompute's time over multimodal_sink's; `ratio_to_window` multimodal_sink's time
over window's beside the analytic one, both of the last ten turns; `late_over_early` the seconds a call of the last ten
turns over those of turns 11 to 20. The first three are of the largest number of turns (`--sequences`).
"""

import argparse
import json
import platform
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import numpy as np

from benchmarks.middle import TEXT_TOKENS, middle_config, middle_model, prompt
from seedstory_jax.generation.engine import StoryEngine
from seedstory_jax.generation.flops import buffer_bytes, turn_cost
from seedstory_jax.generation.interface import GenerationConfig
from seedstory_jax.generation.policies import PUBLISHED, Window, make_policy


class Contestant:
    """One policy with a batch of stories, its programs compiled."""

    def __init__(self, model, tokens, name: str, sequences: int, stories: int):
        self.model, self.name, self.sequences, self.stories = model, name, sequences, stories
        self.policy = make_policy(name)
        config = GenerationConfig(length=sequences, max_text_tokens=TEXT_TOKENS, allow_end=False)
        self.engine = StoryEngine(model, tokens, self.policy, config)
        self.turns: list = []
        warm = self.start()
        for _ in range((self.policy.window if isinstance(self.policy, Window) else 1) + 1):  # up to the first eviction
            warm.next()
        self.compiled = self.engine.compilations.count
        self.session = self.start()

    def start(self):
        """A session of the batch's prompts."""
        features, text = prompt(self.model.config)
        return self.engine.start(np.stack([features] * self.stories), [text] * self.stories)

    def next(self) -> None:
        """Generates one turn of every story."""
        before = self.engine.compilations.count
        self.turns.append(self.session.next()[0])
        assert self.engine.compilations.count == before, "a warm story compiled something"

    def row(self) -> dict:
        """Measurements of all stories together, beside the expected cost of one."""
        seconds = np.array([turn.seconds for turn in self.turns])
        calls = np.array([turn.calls for turn in self.turns])
        llama, slots = self.model.config.llama, self.session.slots
        cost = turn_cost(
            self.model.config,
            self.policy,
            turns=self.sequences,
            text_tokens=TEXT_TOKENS,
            max_text_tokens=TEXT_TOKENS,
        )
        a_call = seconds / calls
        return {
            "llm_s": round(float(seconds.sum()), 3),
            "calls": int(calls.sum()),
            "calls_a_sequence": int(calls[-1]),
            # Medians, since a shared machine has hiccups.
            "median_s": round(float(np.median(seconds[-10:])), 4),
            "gflop_a_sequence": round(cost.total / 1e9, 3),
            "gflop_s": round(self.stories * cost.total / 1e9 / float(np.median(seconds[-10:])), 1),
            "slots": slots,
            "buffer_bytes": buffer_bytes(llama, self.stories, slots, llama.dtype),
            "programs": self.compiled,
            # Turns 11 to 20 of the story are turns[9:19], as the prompt is not among them.
            "late_over_early": round(float(np.median(a_call[-10:]) / np.median(a_call[9:19])), 3),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", default="25,50")
    parser.add_argument("--policies", default=",".join(PUBLISHED))
    parser.add_argument("--stories", type=int, default=1, help="generated at a time")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--grid", type=int, default=8)
    flags = parser.parse_args()
    model, tokens = middle_model(middle_config(flags.layers, flags.width, flags.grid))
    result: dict = {"benchmark": "story_engine", "device": jax.devices()[0].device_kind, "host": platform.processor()}
    result["stories"] = flags.stories
    for sequences in [int(number) for number in flags.sequences.split(",")]:
        contestants = [Contestant(model, tokens, name, sequences, flags.stories) for name in flags.policies.split(",")]
        for number in range(1, sequences):
            for one in contestants:
                one.next()
            print(sequences, number, [round(one.turns[-1].seconds, 3) for one in contestants], file=sys.stderr)
        rows = {one.name: one.row() for one in contestants}
        result[f"sequences_{sequences}"] = rows
    if {"multimodal_sink", "window_recompute"} <= rows.keys():
        result["speedup"] = round(rows["window_recompute"]["median_s"] / rows["multimodal_sink"]["median_s"], 2)
    if {"multimodal_sink", "window"} <= rows.keys():
        sink, window = rows["multimodal_sink"], rows["window"]
        result["ratio_to_window"] = round(sink["median_s"] / window["median_s"], 3)
        result["analytic_ratio"] = round(sink["gflop_a_sequence"] / window["gflop_a_sequence"], 3)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
