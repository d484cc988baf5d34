"""Metrics: metrics.jsonl, TensorBoard, W&B, and a progress bar with throughput and MFU."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from seedstory_jax.config import WatchConfig
from seedstory_jax.errors import UserError
from seedstory_jax.files import write_text

# Dense bfloat16 operations a second of one jax device, as vendors publish them; the first prefix that fits counts.
PEAKS = (
    ("TPU v6 lite", 918e12),
    ("TPU v6e", 918e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5", 459e12),
    ("TPU v4", 275e12),
    ("NVIDIA B200", 2250e12),
    ("NVIDIA GH200", 989e12),
    ("NVIDIA H200", 989e12),
    ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA H100", 989e12),
    ("NVIDIA A100", 312e12),
    ("NVIDIA L40S", 362e12),
    ("NVIDIA L4", 121e12),
)
SMOOTHING = 0.9  # of the time a step takes, over the steps before


def peak_flops(device_kind: str) -> float | None:
    """Operations a second that a device could do at most; None if it is not in the table (CPUs are not)."""
    return next((peak for prefix, peak in PEAKS if device_kind.startswith(prefix)), None)


@dataclass(frozen=True)
class StepSize:
    """What one step works through, over all devices; `flops` without what rematerialisation computes again."""

    images: int = 0
    tokens: int = 0  # places in rows, padding among them
    flops: int = 0


class Throughput:
    """Images and tokens a second, and the share of the devices' peak, from the time between steps."""

    def __init__(self, size: StepSize, devices: int, peak: float | None):
        self.size, self.devices, self.peak = size, devices, peak
        self._last: float | None = None
        self._seconds: float | None = None

    def step(self, real_share: float = 1.0, now: float | None = None) -> dict[str, float]:
        """The rates after one more step; nothing after the first, which compiled."""
        now = time.perf_counter() if now is None else now
        last, self._last = self._last, now
        if last is None:
            return {}
        passed = now - last
        self._seconds = passed if self._seconds is None else SMOOTHING * self._seconds + (1 - SMOOTHING) * passed
        rates = {}
        if self.size.images:
            rates["images_per_second"] = self.size.images / self._seconds
        if self.size.tokens:
            rates["tokens_per_second"] = self.size.tokens * real_share / self._seconds
        if self.size.flops and self.peak:
            rates["mfu"] = self.size.flops / self._seconds / (self.devices * self.peak)
        return rates

    def pause(self) -> None:
        """Whatever comes before the next step (a preview, an evaluation) is no part of its time."""
        self._last = None


class MetricsWriter:
    """One stage's numbers, wherever they are shown."""

    def __init__(
        self, workdir: Path, stage: str, first: int, steps: int, size: StepSize, config: WatchConfig | None = None
    ):
        self.metrics = MetricsLog(workdir, stage, first, config or WatchConfig())
        self.throughput = Throughput(size, jax.device_count(), peak_flops(jax.devices()[0].device_kind))
        self.bar = tqdm(total=steps, initial=first, desc=f"{stage:>13}", unit="step", mininterval=1.0)

    def step(self, step: int, numbers: Mapping[str, float], seconds: float) -> None:
        """One line everywhere."""
        rates = self.throughput.step(numbers.get("real_token_share", 1.0))
        self.metrics.write(step, numbers, seconds, rates)
        shown = [f"loss {numbers['loss']:.4f}"]
        for name, unit in (("images_per_second", "images/s"), ("tokens_per_second", "tokens/s")):
            if name in rates:
                shown.append(f"{rates[name]:.3g} {unit}" if rates[name] < 1000 else f"{rates[name]:,.0f} {unit}")
        if "mfu" in rates:
            shown.append(f"MFU {rates['mfu']:.1%}")
        self.bar.update(1)
        self.bar.set_postfix_str(", ".join(shown), refresh=False)

    def images(self, folder: Path, step: int) -> None:
        """Whatever pictures of this step a preview wrote into `folder`."""
        from PIL import Image

        for path in sorted(folder.glob(f"step_{step:06d}*.png")):
            with Image.open(path) as image:
                self.metrics.image(step, path.stem.removeprefix(f"step_{step:06d}").strip("_"), np.asarray(image))

    def close(self) -> None:
        """Flushes everything."""
        self.bar.close()
        self.metrics.close()


class MetricsLog:
    """workdir/metrics.jsonl, one line a step and none twice, and the same numbers as TensorBoard events (and W&B)."""

    def __init__(self, workdir: Path, stage: str, first: int, config: WatchConfig):
        self.path, self.stage = workdir / "metrics.jsonl", stage
        self._wandb = _wandb_run(config.wandb_project, workdir, stage) if config.wandb_project else None
        self._drop_after(first)
        self._file = self.path.open("a", buffering=1)
        from tensorboardX import SummaryWriter

        self._events = SummaryWriter(str(workdir / "tensorboard" / stage), purge_step=first + 1, flush_secs=30)

    def _drop_after(self, first: int) -> None:
        """Cuts off this stage's lines past the restored step, and a last line that a kill tore."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if row["stage"] != self.stage or row["step"] <= first:
                kept.append(line + "\n")
        write_text(self.path, "".join(kept))

    def write(self, step: int, numbers: Mapping[str, float], seconds: float, rates: Mapping[str, float]) -> None:
        """Appends one line; `step_seconds` is the only field that differs between two runs, and rates are not in it."""
        self._file.write(json.dumps({"stage": self.stage, "step": step, **numbers, "step_seconds": seconds}) + "\n")
        for name, value in {**numbers, **rates}.items():
            self._events.add_scalar(f"{self.stage}/{name}", value, step)
        if self._wandb is not None:
            self._wandb.log({f"{self.stage}/{name}": value for name, value in {**numbers, **rates}.items()}, step=step)

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """One picture, uint8 [h w 3]."""
        title = f"{self.stage}/{name or 'preview'}"
        self._events.add_image(title, pixels, step, dataformats="HWC")
        if self._wandb is not None:
            import wandb

            self._wandb.log({title: wandb.Image(pixels)}, step=step)

    def close(self) -> None:
        """Flushes all of them."""
        self._file.close()
        self._events.close()
        if self._wandb is not None:
            self._wandb.finish()


def _wandb_run(project: str, workdir: Path, stage: str) -> Any:
    """A run that goes on when the stage does. Raises UserError if wandb is not installed."""
    try:
        import wandb
    except ImportError:
        raise UserError(
            f"watch.wandb_project is {project!r}, but wandb is not installed: pip install 'seedstory_jax[wandb]'"
        ) from None
    name = f"{workdir.name}-{stage}"
    return wandb.init(project=project, id=name, name=name, dir=str(workdir), resume="allow")
