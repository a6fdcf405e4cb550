"""`ResumableTrainer`: TRL's GRPOTrainer, whose runs go on bit for bit after any interruption.

It shuffles prompts by epoch, and writes each checkpoint beside its place (1), sets right what was
said of that folder (2), moves it when it is whole (3), and only then deletes old ones and uploads
it (4).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler

STAGING = "_saving"  # what begins with `_` is left out of uploads


class EpochSampler(RepeatSampler):
    """TRL's sampler, shuffled by seed and epoch, so that a resumed run sees the same order."""

    def set_epoch(self, epoch: int) -> None:
        """Called by the training loop at the start of each epoch."""
        if self.shuffle:
            self.generator.manual_seed((self.seed or 0) * 1_000_003 + epoch)


class ResumableTrainer(GRPOTrainer):
    """Shuffles prompts by epoch; a checkpoint that stands in its place is whole."""

    _staging: Path | None = None  # where a checkpoint goes while it is being written

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        stock: Any = super()._get_train_sampler(dataset)
        return EpochSampler(
            data_source=stock.data_source,
            mini_repeat_count=stock.mini_repeat_count,
            batch_size=stock.batch_size,
            repeat_count=stock.repeat_count,
            shuffle=stock.shuffle,
            seed=stock.seed,
        )

    def _get_output_dir(self, trial: Any = None) -> str:
        return str(self._staging or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(super()._get_output_dir(trial))
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        staging, main = folder / STAGING, self.args.should_save
        if main:
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._staging = staging
        try:
            super()._save_checkpoint(model, trial)  # 1
        finally:
            self._staging = None
        self.accelerator.wait_for_everyone()
        if self.state.best_model_checkpoint == str(staging / name):
            self.state.best_model_checkpoint = str(folder / name)  # 2, in all processes
        if main:
            self.state.save_to_json(str(staging / name / TRAINER_STATE_NAME))
            shutil.rmtree(folder / name, ignore_errors=True)
            (staging / name).rename(folder / name)  # 3
            shutil.rmtree(staging, ignore_errors=True)
            rotate_checkpoints(  # 4
                output_dir=str(folder),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(folder / name))
        self.accelerator.wait_for_everyone()

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._staging is None:  # else it is not in its place yet
            super()._push_from_checkpoint(checkpoint_folder)
