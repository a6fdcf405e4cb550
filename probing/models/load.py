"""Load a model and its tokenizer: from the hub, a folder, a GGUF file, or the embedded one."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probing.choices import DTYPES, POCKET, Dtype
from probing.errors import ModelError
from probing.files.headers import data_path
from probing.settings import choice, unknown

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MODEL = "Model"  # panel of the command line


@dataclass(frozen=True)
class ModelSource:
    """Which model, and how it is loaded; part of the settings of all that needs one."""

    model: str = choice(POCKET, "Hub id, folder or .gguf file; pocket: the embedded model.")
    _: KW_ONLY
    device: str = choice("auto", "auto, cpu, cuda, …", panel=MODEL)
    dtype: Dtype = choice("auto", "Of the weights.", panel=MODEL)
    trust_remote_code: bool = choice(False, "Run code of the model's.", panel=MODEL)

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model and its tokenizer.

        Raises:
            ModelError: one of them cannot be loaded.
        """
        code = self.trust_remote_code
        tokenizer = load_tokenizer(self.model, trust_remote_code=code)
        model = load_model(self.model, device=self.device, dtype=self.dtype, trust_remote_code=code)
        return model, tokenizer


def load_tokenizer(model_id: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The model's tokenizer, which must give character offsets.

    Args:
        model_id: as for `load_model`.
        trust_remote_code: run code that comes with the model. Off unless asked for.

    Raises:
        ModelError: it cannot be loaded, or is a slow one without offsets.
    """
    from transformers import AutoTokenizer

    name, options = _source(model_id)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, trust_remote_code=trust_remote_code, **options
        )
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"no tokenizer for {model_id}: {error}") from error
    if not tokenizer.is_fast:
        raise ModelError(
            f"the tokenizer of {model_id} is a slow one without character offsets; "
            "save a fast one beside the model (tokenizer.json)"
        )
    fast: PreTrainedTokenizerBase = tokenizer
    return fast


def load_model(
    model_id: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    attention: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a causal language model in eval mode.

    Args:
        model_id: hub id, folder, path of a `.gguf` file, or `pocket`: the embedded model.
        device: `auto` (CUDA where there is one, else CPU), or a torch device.
        dtype: `auto` (bfloat16 on CUDA, float32 elsewhere), float32, bfloat16 or float16.
        attention: transformers' attention implementation; None takes the model's default.
        trust_remote_code: run code that comes with the model. Off unless asked for.

    Raises:
        ModelError: it cannot be loaded, or there is no such device or dtype.
    """
    from transformers import AutoModelForCausalLM

    name, options = _source(model_id)
    place, kind = choose_device(device), choose_dtype(dtype, device)
    if attention:
        options["attn_implementation"] = attention
    try:
        model = AutoModelForCausalLM.from_pretrained(
            name, dtype=kind, trust_remote_code=trust_remote_code, **options
        )
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ModelError(f"{model_id} cannot be loaded: {error}") from error
    model.to(place)  # type: ignore[arg-type]  # transformers wraps `to` without its types
    loaded: PreTrainedModel = model.eval()
    return loaded


def choose_device(device: str) -> torch.device:
    """`auto` is this process's CUDA device where there is one, else the CPU.

    Raises:
        ModelError: torch does not know or have the device.
    """
    import os

    import torch

    if device == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device {device!r} cannot be used: {error}") from error
    return place


def choose_dtype(dtype: str, device: str) -> torch.dtype:
    """`auto` is bfloat16 on CUDA and float32 elsewhere.

    Raises:
        ModelError: an unknown dtype.
    """
    import torch

    if dtype not in DTYPES:
        raise ModelError(unknown("dtype", dtype, DTYPES))
    if dtype == "auto":
        return torch.bfloat16 if choose_device(device).type == "cuda" else torch.float32
    kind: torch.dtype = getattr(torch, dtype)
    return kind


def _source(model_id: str) -> tuple[str, dict[str, Any]]:
    """What `from_pretrained` wants for this id."""
    if model_id == POCKET:
        model_id = str(pocket_model())
    path = Path(model_id)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"{model_id}: no such file")
        return str(path.parent), {"gguf_file": path.name}
    if model_id.startswith((".", "/", "~")) and not path.expanduser().is_dir():
        raise ModelError(f"{model_id}: no such folder")
    return str(path.expanduser()) if path.expanduser().is_dir() else model_id, {}


def load_frozen(folder: Path) -> tuple[PreTrainedModel, Any]:
    """The model in a folder, on the CPU in float32, and its tokenizer.

    Raises:
        ModelError: the folder holds no model, or one that cannot be loaded.
    """
    place = str(folder.resolve())
    return load_model(place, device="cpu", dtype="float32"), load_tokenizer(place)


def pocket_model() -> Path:
    """Folder of the embedded model, the pocket reasoner (data/pocket/README.md)."""
    return data_path("pocket")


def with_random_weights(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """A model of the same shape whose weights were never trained, drawn as its family draws them.

    On the device and in the precision of the model; torch's own random state stays as it was.

    Args:
        model: a loaded one, of which only the config is taken.
        seed: of the weights.

    Raises:
        ModelError: its family cannot be built from a config alone.
    """
    import copy

    import torch
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(model.config)
    config.quantization_config = None
    weight = next(model.parameters())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            fresh = AutoModelForCausalLM.from_config(config, dtype=weight.dtype)
        except (ValueError, TypeError) as error:
            raise ModelError(f"no model of random weights for {config.model_type}: {error}") from (
                error
            )
    fresh.to(weight.device)
    drawn: PreTrainedModel = fresh.eval()
    return drawn
