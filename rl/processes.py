"""Are as many processes at work as were asked for, and may parameters be spread over them so?"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from probing.errors import ConfigError


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


def sharding_reasons(args: Any, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Why parameters cannot be sharded as FSDP is set up, in the settings or by the launcher."""
    if not uses_fsdp(args, environment):
        return []
    own = dict(args.fsdp_config or {}) if args.fsdp else {}
    version = str(own.get("version", 2) if args.fsdp else environment.get("FSDP_VERSION", "1"))
    loading = environment.get("FSDP_CPU_RAM_EFFICIENT_LOADING", "false").lower()
    reasons = [
        (args.device.type == "cpu", "FSDP on CPU: accelerate would silently run DDP instead"),
        (
            version != "2",
            f"FSDP version {version}: scoring is proven with version 2 (fsdp_version: 2)",
        ),
        (
            loading == "true",
            "fsdp_cpu_ram_efficient_loading: processes but the first would hold no weights when "
            "the capture proves itself (set it to false)",
        ),
    ]
    return [reason for applies, reason in reasons if applies]


def uses_fsdp(args: Any, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether FSDP is on, by the settings or by the launcher's environment."""
    return bool(args.fsdp) or environment.get("ACCELERATE_USE_FSDP", "").lower() == "true"
