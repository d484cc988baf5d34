"""Several samples in one row: which go together is planned from their lengths, before anything is read.

Rows are taken in blocks of BLOCK from the plan, in its order, and laid into as few packed rows as first-fit-decreasing
finds; the packed rows of a block are then shuffled. All of it follows from the plan and the lengths, so the place of a
packed row is the whole state, as it is for single ones.
"""

import threading

import numpy as np

from seedstory_jax.data.pipeline import ExampleSource, Row
from seedstory_jax.data.token_rows import pack_rows

BLOCK = 1024


class PackedRows:
    """A random-access source of packed rows: `source[place]` holds several rows of `rows` as segments."""

    def __init__(self, rows: ExampleSource):
        self.rows, self.plan = rows, rows.plan
        self._starts = [0]  # packed rows before each block
        self._blocks: dict[int, list[list[int]]] = {}
        self._lock = threading.Lock()

    def places(self, place: int) -> list[int]:
        """Which rows of the plan the packed row `place` holds."""
        with self._lock:
            block = int(np.searchsorted(self._starts, place, side="right")) - 1
            while block == len(self._starts) - 1:  # packed rows of the last known block: how many are there?
                self._starts.append(self._starts[-1] + len(self._packed(block)))
                block += place >= self._starts[-1]
            return self._packed(block)[place - self._starts[block]]

    def _packed(self, block: int) -> list[list[int]]:
        if block not in self._blocks:
            if len(self._blocks) > 4:
                self._blocks.clear()
            config, rows = self.rows.config, range(block * BLOCK, (block + 1) * BLOCK)
            sizes = {}
            for place in rows:
                choice = self.plan.row(place)
                # What is too long will be replaced, by something that may fill the row.
                length = min(self.rows.length_of(choice), config.max_tokens)
                sizes[place] = (length, len(choice.turns))
            bins = first_fit(sizes, config.max_tokens, config.max_images)
            order = np.random.default_rng([self.plan.seed, 3, block]).permutation(len(bins))
            self._blocks[block] = [bins[number] for number in order]
        return self._blocks[block]

    def __getstate__(self):
        return self.rows

    def __setstate__(self, rows):
        self.__init__(rows)

    def __getitem__(self, place: int) -> Row:
        places = self.places(place)
        rows = []
        for single in places:
            choice = self.plan.row(single)
            fits = self.rows.length_of(choice) <= self.rows.config.max_tokens
            rows.append(self.rows.row(single, within=choice if fits and len(places) > 1 else None))
        packed = pack_rows(rows, self.rows.config)
        notes = [row["unreadable"] for row in rows if str(row["unreadable"])]
        packed["unreadable"] = notes[-1] if notes else rows[0]["unreadable"]
        packed["over_length"] = np.array(sum(int(row["over_length"]) for row in rows), np.int32)
        return packed


def first_fit(sizes: dict[int, tuple[int, int]], max_tokens: int, max_images: int) -> list[list[int]]:
    """Groups of names whose (tokens, images) fit together, the largest placed first, each where there is room first."""
    groups: list[list[int]] = []
    room: list[list[int]] = []
    for name, (tokens, images) in sorted(sizes.items(), key=lambda item: (-item[1][0], item[0])):
        for group, left in zip(groups, room):
            if tokens <= left[0] and images <= left[1]:
                group.append(name)
                left[0] -= tokens
                left[1] -= images
                break
        else:
            groups.append([name])
            room.append([max_tokens - tokens, max_images - images])
    return groups
