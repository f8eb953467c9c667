"""What keeps a long training safe: checkpoints by time, on interrupt, and none of a lost run."""

import signal
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from wspnb.distributed import gather
from wspnb.files import read_csv
from wspnb.pretrain import LOST, Config, health, save_checkpoint


@dataclass(eq=False)
class Keeper:
    """Called after each step: logs, watches the loss, saves; Ctrl-C and SIGTERM wait for it.

    ::

        with Keeper(checkpoint, config, log, parts) as keep:
            for step, batch in ...:
                ...
                keep(step, loss, view_1, view_2, features)

    A signal that arrives within a step ends the run after it, with a checkpoint; a second Ctrl-C
    ends it at once. What is saved is therefore always the state between two steps.
    """

    checkpoint: Path  # file to write
    config: Config
    log: list[dict]  # rows so far; new ones are appended
    parts: dict  # what `save_checkpoint` saves
    log_every: int = 10  # steps between log rows
    every: float = 30.0  # seconds between checkpoints
    main: bool = True  # whether this process writes
    mean: Callable[[Tensor], Tensor] = lambda loss: loss  # of a loss over all devices

    def __post_init__(self):
        self.asked, self.last, self.before = None, None, {}
        self.losses: list[Tensor] = []  # since the last look at them, which waits for the device

    def __enter__(self):
        if self.last is not None:  # a loop's cell that is run again
            raise ValueError("this loop has run: run the cell above it again first")
        self.last = time.monotonic()
        self.start = self.last - (self.log[-1]["seconds"] if self.log else 0.0)
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def __call__(self, step: int, loss: Tensor, view_1: Tensor, view_2: Tensor, features: Tensor):
        """After a step (0-based): its loss, embeddings ``(n, dim)``, features ``(2n, d)``.

        Raises:
            FloatingPointError: the loss is not finite; names the first such step, and what to do.
            KeyboardInterrupt: as asked for, once the checkpoint is written.
        """
        self.losses.append(loss.detach())
        if step % self.log_every == 0 or step == self.config.n_steps - 1:
            self._look(step)
            row = {"step": step, "loss": self.mean(loss.detach()).item()}
            row["seconds"] = time.monotonic() - self.start
            all_of_it = (gather(part.detach()) for part in (view_1, view_2, features))
            self.log.append(row | health(*all_of_it))
        if self.asked or time.monotonic() - self.last > self.every:
            self._look(step)
            if self.main:
                save_checkpoint(self.checkpoint, step + 1, self.log, self.config, **self.parts)
            self.last = time.monotonic()
        if self.asked:
            print(f"stopped after step {step + 1}; the same call goes on from there", flush=True)
            self.__exit__()
            signal.raise_signal(self.asked)

    def _ask(self, number, _):
        if self.asked == number == signal.SIGINT:
            self.__exit__()
            signal.raise_signal(number)
        self.asked = self.asked or number  # the runner sends SIGINT, then SIGTERM

    def _look(self, step: int) -> None:
        """Stop where a loss since the last look is not finite."""
        if not self.losses:
            return
        lost = ~torch.stack(self.losses).isfinite().cpu()
        if lost.any():
            first = int(lost.int().argmax())
            since = step + 1 - len(lost) + first
            text = f"the loss is {self.losses[first].item()} from step {since}"
            there = f", and delete {self.checkpoint} (the state before)"
            raise FloatingPointError(f"{text} on{LOST}{there if self.checkpoint.exists() else ''}")
        self.losses.clear()


def load_run(checkpoint: Path, config: Config, encoder: torch.nn.Module, **_) -> tuple:
    """Encoder and log of a run that is finished, as :func:`~wspnb.pretrain.load_checkpoint` would
    after the last step; says that there is nothing to do."""
    words = f"{checkpoint.parent}: finished with these settings, nothing to do"
    warnings.warn(f"{words}: existing=restart trains it anew", stacklevel=2)
    encoder.load_state_dict(load_file(checkpoint.with_name("encoder.safetensors")))
    return config.n_steps, read_csv(checkpoint.with_name("log.csv")).to_dict("records")
