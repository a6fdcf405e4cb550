"""As many processes, and shards, as were started: checks, and who does what."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from probing.errors import ConfigError
from probing.models.load import choose_device


@dataclass(frozen=True)
class Shard:
    """One of `count` commands that share out a work and know nothing of each other; from 1."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """The shard that `i/n` names.

        Raises:
            ConfigError: it names none.

        Example:
            >>> Shard.parse("2/4"), Shard.parse("2/4").folder
            (Shard(number=2, count=4), '2-of-4')
        """
        found = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
        number, count = map(int, found.groups()) if found else (0, 0)
        if not 1 <= number <= count:
            raise ConfigError(
                f"--shards {text}: write i/n, the i-th of n shards, from 1/n to n/n, such as 2/4"
            )
        return cls(number, count)

    @property
    def folder(self) -> str:
        """The name of its folder."""
        return f"{self.number}-of-{self.count}"

    def __str__(self) -> str:
        """As the command line has it."""
        return f"{self.number}/{self.count}"


class Processes:
    """This process among those that `accelerate launch` or `torchrun` started, if any."""

    def __init__(self, device: str) -> None:
        self.rank, self.count = 0, 1
        self._state: Any = None
        started = int(os.environ.get("WORLD_SIZE", "1"))
        if started > 1:
            from datetime import timedelta

            from accelerate import PartialState

            # A process that is done waits for the slowest, however long that takes.
            on_cpu = choose_device(device).type == "cpu"
            self._state = PartialState(cpu=on_cpu, timeout=timedelta(days=7))
            self.rank, self.count = self._state.process_index, self._state.num_processes
        if self.count != started:
            raise ConfigError(
                f"{started} processes were started, but accelerate sees {self.count}: each would "
                "score every trace. Check its configuration (accelerate env)."
            )

    def wait(self) -> None:
        """Until all processes are here."""
        if self._state is not None:
            self._state.wait_for_everyone()


def check_processes(
    seen: int, wanted: int | None, environment: Mapping[str, str] = os.environ
) -> None:
    """Refuse a launch that started other processes than were asked for.

    Args:
        seen: processes that take part.
        wanted: the setting `processes`; None: what the launcher left in the environment tells.
        environment: of this process.

    Raises:
        ConfigError: fewer or more take part, or each process would train alone.
    """
    advice = "On CPU start them with torchrun --nproc_per_node: accelerate launch starts one"
    if wanted is not None:
        if seen != wanted:
            raise ConfigError(f"{wanted} processes were asked for, {seen} take part. {advice}")
        return
    started = environment.get("WORLD_SIZE", "")
    if started.isdigit() and int(started) != seen:
        raise ConfigError(
            f"{started} processes were started, but {seen} take part: each would train alone. "
            "Check accelerate's configuration (accelerate env); on CPU set ACCELERATE_USE_CPU=1"
        )
    # accelerate launch sets an address for several processes alone; where torchrun then runs
    # them, WORLD_SIZE is set as well. On CPU it starts one, and says nothing.
    launched = "ACCELERATE_MIXED_PRECISION" in environment and "MASTER_ADDR" in environment
    if launched and not started and seen == 1:
        raise ConfigError(
            f"accelerate launch was asked for several processes and started one. {advice}. "
            "If one is right, say so: --set processes=1"
        )
