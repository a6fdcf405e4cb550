"""What a run does beside training: the metrics file, interruption, probing the policy again."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather
from jaxtyping import Float
from transformers import TrainerCallback

from probing.attention.capture import AttentionCapture
from probing.attention.scores import score_traces
from probing.errors import DataError
from probing.files.headers import json_number
from probing.files.jsonl import LineStore
from probing.headset import HeadSet
from probing.models.identity import fits
from probing.ranking.metrics import ranked_trace, step_ranking_accuracy
from probing.traces.source import TraceSource, prepare_traces
from probing.traces.tokens import encode_trace
from rl.attnpo.completions import Cutter

# TRL's names → ours; everything else is taken as it is.
_NAMES = {"completions/clipped_ratio": "truncated", "loss": "loss", "grad_norm": "grad_norm"}
_LEFT_OUT = ("completions/", "clip_ratio/", "rewards/", "frac_reward", "num_tokens", "step_time")


def open_at(store: LineStore, step: int) -> list[dict[str, Any]]:
    """Open a file of one line a step, cut back to the step that training goes on from.

    Returns:
        Its lines up to there.
    """
    lines: list[dict[str, Any]] = []

    def take(line: dict[str, Any]) -> bool:
        before = int(line["step"]) <= step
        if before:
            lines.append(line)
        return before

    store.open(True, take)
    return lines


class MetricsFile(TrainerCallback):
    """Writes `metrics.jsonl`: a header, then one line a step. The main process alone writes."""

    def __init__(self, folder: Path) -> None:
        self.store = LineStore(folder / "metrics.jsonl", "training metrics")
        self.last: dict[str, Any] | None = None
        self.began = self.seconds = 0.0  # of the present step: when it began, how long it took

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin the file, or cut it back to the checkpoint that training goes on from."""
        if state.is_world_process_zero:
            lines = open_at(self.store, state.global_step)
            self.last = lines[-1] if lines else None

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock of the step."""
        self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop it."""
        self.seconds = time.perf_counter() - self.began

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Write the line of a step."""
        if not state.is_world_process_zero or not logs or "accuracy" not in logs:
            return
        self.last = step_line(logs, state, self.seconds)
        self.store.add([self.last])


def step_line(logs: dict[str, Any], state: Any, seconds: float) -> dict[str, Any]:
    """The metrics of one step; what is not a number becomes null."""
    line: dict[str, Any] = {"step": state.global_step, "epoch": logs.get("epoch")}
    phrases = {}
    for name, value in logs.items():
        if name.startswith("phrases/"):
            phrases[name.removeprefix("phrases/")] = value
        elif name in _NAMES:
            line[_NAMES[name]] = value
        elif name != "epoch" and not name.startswith(_LEFT_OUT):
            line[name] = value
    parts = [logs.get(f"seconds_{part}", 0.0) for part in ("sampling", "rewards", "scoring")]
    line |= {"phrases": phrases, "seconds": seconds, "seconds_update": seconds - sum(parts)}
    line["scoring_share"] = logs.get("seconds_scoring", 0.0) / seconds if seconds else None
    for name in ("attenuated", "attenuated_tokens", "gamma", "redundant_steps"):
        line.setdefault(name, None)
    return {
        name: json_number(value) if isinstance(value, float) else value
        for name, value in line.items()
    }


class Interrupt(TrainerCallback):
    """SIGINT saves a checkpoint at the end of the step and leaves; a second one leaves at once.

    One that comes within a second of the first is the same: Ctrl-C reaches every process of the
    terminal, and torchrun hands it on to them once more.
    """

    def __init__(self) -> None:
        self.stopped = False  # the same in all processes
        self._heard: float | None = None  # when this process got the signal
        self._former: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Listen."""
        try:
            self._former = signal.signal(signal.SIGINT, self._hear)
        except ValueError:  # not the main thread: the host program handles signals
            self._former = None

    def _hear(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if self._heard is not None and now - self._heard > 1:
            raise KeyboardInterrupt
        self._heard = now if self._heard is None else self._heard

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop all processes at the same step."""
        heard = self._heard is not None
        if args.world_size > 1:
            heard = int(gather(torch.tensor([int(heard)], device=args.device)).sum()) > 0
        if heard:
            self.stopped = control.should_save = control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Give SIGINT back."""
        if self._former is not None:
            signal.signal(signal.SIGINT, self._former)


class Reprobe(TrainerCallback):
    """Probes the policy every k steps: do the heads stay the heads? (The paper's stability.)

    Writes `probe.jsonl`: SRA of the heads of the set, their mean, and the Pearson correlation of
    all heads' SRA with that before training.
    """

    def __init__(
        self,
        folder: Path,
        traces: Path,
        head_set: HeadSet | None,
        cutter: Cutter,
        every: int = 10,
        limit: int | None = None,
    ) -> None:
        self.store = LineStore(folder / "probe.jsonl", "policy probes")
        self.head_set, self.every = head_set, every
        self.source = TraceSource(traces)
        self.traces = {trace.id: trace for trace in prepare_traces(self.source)}
        encoded = (
            encode_trace(cutter.tokenizer, trace, rule=self.source.rule, answer=cutter.answer)
            for trace in self.traces.values()
        )
        self.encoded = [trace for trace in encoded if fits(len(trace), limit)]
        self.start: np.ndarray | None = None  # SRA of every head before training

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        """Probe before the first step; cut the file back where training goes on."""
        if not state.is_world_process_zero:
            return
        lines = open_at(self.store, state.global_step)
        self.start = np.array(lines[0]["all_sra"]) if lines else None
        if not lines:
            self._probe(model, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Probe every k steps."""
        if state.is_world_process_zero and state.global_step % self.every == 0:
            self._probe(model, state.global_step)

    def _probe(self, model: Any, step: int) -> None:
        capture = AttentionCapture(model, prove=False)
        sra, count = self._sra(capture, next(model.parameters()).device)
        self.start = sra if self.start is None else self.start
        pairs = self.head_set.pairs if self.head_set else []
        places = [capture.heads.index(pair) for pair in pairs]
        heads = [
            {"layer": layer, "head": head, "sra": float(sra[i]), "start_sra": float(self.start[i])}
            for (layer, head), i in zip(pairs, places, strict=True)
        ]
        line = {
            "step": step,
            "traces": count,
            "traces_left_out": len(self.traces) - count,
            "heads": heads,
            "sra": float(np.mean([head["sra"] for head in heads])) if heads else None,
            "correlation": json_number(np.corrcoef(sra, self.start)[0, 1]),
            "all_sra": sra.tolist(),
        }
        self.store.add([line])

    def _sra(
        self, capture: AttentionCapture, device: torch.device
    ) -> tuple[Float[np.ndarray, "head"], int]:
        """SRA of every head, and over how many traces: those with a pair of steps with tokens."""
        scored = {item.id: item for item in score_traces(capture, self.encoded, device=device)}
        ranked = [ranked_trace(self.traces[n], scored[n]) for n in self.traces if n in scored]
        rows = [step_ranking_accuracy(each.scores, each.essential) for each in ranked if each]
        if not rows:
            raise DataError(
                f"{self.source.path}: no trace has both essential and redundant steps with a token"
            )
        return np.mean(rows, axis=0), len(rows)
