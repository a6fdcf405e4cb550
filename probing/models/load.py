"""Load a model and its tokenizer: from the hub, a folder, a GGUF file, or the embedded one.

A model that is loaded is whole: every weight is the checkpoint's (`probing.models.checkpoint`),
and it has attention heads. A folder that holds an adapter alone is its base with the adapter in
its weights (`probing.models.adapter`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probing.choices import DEVICE_MAPS, DTYPES, EMBEDDED, KERNELS, POCKET, DeviceMap, Dtype, Kernel
from probing.errors import ModelError
from probing.files.headers import data_path
from probing.settings import choice, unknown

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from probing.models.adapter import Adapter

MODEL = "Model"  # panel of the command line


@dataclass(frozen=True)
class ModelSource:
    """Which model, and how it is loaded; part of the settings of all that needs one."""

    model: str = choice(POCKET, "Hub id, folder or .gguf file; pocket, pocket-long: embedded.")
    _: KW_ONLY
    device: str = choice("auto", "auto, cpu, cuda, …", panel=MODEL)
    dtype: Dtype = choice("auto", "Of the weights.", panel=MODEL)
    device_map: DeviceMap = choice(
        "none", "auto: spread over all GPUs, and what they cannot hold over memory.", panel=MODEL
    )
    attention: Kernel = choice("auto", "Its kernel; auto: the model's own.", panel=MODEL)
    adapter: str | None = choice(None, "LoRA of --model: folder or hub id.", panel=MODEL)
    trust_remote_code: bool = choice(False, "Run code of the model's.", panel=MODEL)

    @property
    def named(self) -> str:
        """What results call the model: its adapter, where one is given."""
        return self.adapter or self.model

    def load(
        self, model: PreTrainedModel | None = None, tokenizer: Any = None
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model and its tokenizer; one that is given is taken as it is.

        Raises:
            ModelError: one of them cannot be loaded, or they do not fit each other.
        """
        code = self.trust_remote_code
        if tokenizer is None:
            tokenizer = load_tokenizer(self.model, trust_remote_code=code)
        if model is None:
            names = ("device", "dtype", "device_map", "attention", "adapter")
            given = {name: getattr(self, name) for name in names}
            model = load_model(self.model, **given, trust_remote_code=code)
        check_fit(model, tokenizer, self.model)
        return model, tokenizer


def load_tokenizer(model_id: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The model's tokenizer, which must give character offsets.

    Args:
        model_id: as for `load_model`; of an adapter without one its base's.
        trust_remote_code: run code that comes with the model. Off unless asked for.

    Raises:
        ModelError: it cannot be loaded, or is a slow one without offsets.
    """
    from transformers import AutoTokenizer

    from probing.models.adapter import Adapter
    from probing.models.checkpoint import FAULTS, told

    name, options = _source(model_id)
    folder = Path(name)
    if folder.is_dir() and not options and not any(folder.glob("tokenizer*")):
        if adapter := Adapter.at(name):
            return load_tokenizer(adapter.base, trust_remote_code=trust_remote_code)
        if not (folder / "config.json").is_file():
            raise ModelError(f"{model_id}: no model in this folder: it has no config.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, trust_remote_code=trust_remote_code, **options
        )
    except FAULTS as error:
        raise ModelError(f"no tokenizer for {model_id}: {told(error)}") from error
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
    device_map: str | dict[str, Any] = "none",
    attention: str = "auto",
    adapter: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a causal language model in eval mode.

    Args:
        model_id: hub id, folder, path of a `.gguf` file, or `pocket`: the embedded model. Where
            it holds an adapter, its base is loaded and the adapter merged into the weights.
        device: `auto` (CUDA where there is one, else CPU), or a torch device.
        dtype: `auto` (bfloat16 on CUDA, float32 elsewhere), float32, bfloat16 or float16.
        device_map: `none` (the model is on one device), `auto`, or a map as accelerate takes it:
            the layers are spread over all GPUs, and those that these cannot hold over memory.
        attention: `auto` (what the model's config asks for, else the library's choice), sdpa,
            eager or flash_attention_2.
        adapter: a LoRA (folder or hub id) to be merged into the weights.
        trust_remote_code: run code that comes with the model. Off unless asked for.

    Raises:
        ModelError: it cannot be loaded whole, has no attention heads, or there is no such
            device, dtype or kernel.
    """
    place, kind = choose_device(device), choose_dtype(dtype, device)
    if attention not in KERNELS:
        raise ModelError(unknown("attention", attention, KERNELS))
    if isinstance(device_map, str) and device_map not in DEVICE_MAPS:
        raise ModelError(unknown("device_map", device_map, DEVICE_MAPS))
    spread = None if device_map == "none" else device_map
    if spread and device != "auto":
        raise ModelError(f"--device {device} names one device, --device-map all: give one of them")
    name, options, lora = _parts(model_id, adapter)
    model = _whole(name, options, model_id, kind, attention, trust_remote_code, spread)
    if lora:
        if spread:
            raise ModelError(f"{lora.name} is an adapter: merge and save it to load it spread out")
        model = lora.merge(model)
    if not spread:
        model.to(place)  # type: ignore[arg-type]  # transformers wraps `to` without its types
    loaded: PreTrainedModel = model.eval()
    return loaded


def load_config(
    model_id: str, *, adapter: str | None = None, trust_remote_code: bool = False
) -> Any:
    """The config of the model that `load_model` gives; of its weights an adapter's alone are read.

    Args:
        model_id, adapter, trust_remote_code: as for `load_model`.

    Raises:
        ModelError: it cannot be loaded, or has no attention heads.
    """
    from probing.models.checkpoint import FAULTS, told

    name, options, lora = _parts(model_id, adapter)
    try:
        config = _config(name, options, model_id, trust_remote_code)
        if lora:
            lora.mark(config)
    except FAULTS as error:
        raise ModelError(f"the config of {model_id} cannot be loaded: {told(error)}") from error
    return config


def _config(name: str, options: dict[str, Any], said: str, trust_remote_code: bool) -> Any:
    """The config of a name that `from_pretrained` takes, of a model with attention heads."""
    from transformers import AutoConfig

    from probing.models.identity import head_count

    folder = Path(name)
    if folder.is_dir() and not options and not (folder / "config.json").is_file():
        raise ModelError(f"{said}: no model in this folder: {name} has no config.json")
    config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code, **options)
    head_count(config, said)
    return config


def _whole(
    name: str,
    options: dict[str, Any],
    said: str,
    dtype: torch.dtype,
    attention: str,
    trust_remote_code: bool,
    device_map: str | dict[str, Any] | None,
) -> PreTrainedModel:
    """The model of a name that `from_pretrained` takes, all its weights the checkpoint's.

    Args:
        said: what messages call it.
    """
    from transformers import AutoModelForCausalLM

    from probing.models.checkpoint import FAULTS, check_gguf, check_weights, quiet, told, unpacked

    config = None
    try:
        config = _config(name, options, said, trust_remote_code)
        if attention != "auto":
            # As an argument it would yield to what some configs ask for.
            config._attn_implementation = attention
        with quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                name,
                config=config,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                ignore_mismatched_sizes=True,  # they are told of below, by name
                output_loading_info=True,
                device_map=device_map,
                **options,
                **unpacked(options),
            )
    except FAULTS as error:
        kernel = getattr(config, "_attn_implementation", None)  # that the config asks for
        blamed = isinstance(error, ImportError) or "attn_implementation" in str(error)
        hint = f". It asks for {kernel}; choose another with --attention" if kernel else ""
        raise ModelError(
            f"{said} cannot be loaded: {told(error)}{hint if blamed else ''}"
        ) from error
    model: PreTrainedModel = loaded[0]
    check_weights(said, model, loaded[1])
    if options:
        check_gguf(Path(name) / options["gguf_file"], model)
    return model


def check_fit(model: PreTrainedModel, tokenizer: Any, name: str) -> None:
    """Refuse a tokenizer that gives ids for which the model has no embedding.

    Special tokens, such as one for padding, are let be: a text that holds one is refused when it
    comes (`probing.models.identity.check_ids`).

    Raises:
        ModelError: it names the tokens.
    """
    table: Any = model.get_input_embeddings()
    # Where parameters are partitioned (ZeRO-3) the weight here has no row.
    rows = tokenizer._kfh_rows = int(table.num_embeddings)
    beyond = sorted((i, text) for text, i in tokenizer.get_vocab().items() if i >= rows)
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    if not {i for i, _ in beyond} <= special:
        named = ", ".join(f"{text!r} ({i})" for i, text in beyond[:3])
        raise ModelError(
            f"{name}: its tokenizer has {len(beyond)} tokens beyond the {rows} embeddings of the "
            f"model: {named}{', …' if len(beyond) > 3 else ''}. Take the tokenizer that belongs to "
            "these weights, or resize the embeddings (model.resize_token_embeddings) and save both"
        )
    if (tokenizer.pad_token_id or 0) >= rows > (tokenizer.eos_token_id or 0):
        tokenizer.pad_token = tokenizer.eos_token  # so that what is padded has an embedding


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


def fast_bfloat16(device: str = "cpu") -> bool:
    """Whether a device multiplies in bfloat16; emulated, it is slower than float32."""
    import torch

    if choose_device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    probe: Callable[[], bool] = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return probe()


def _source(model_id: str) -> tuple[str, dict[str, Any]]:
    """What `from_pretrained` wants for this id."""
    if model_id in EMBEDDED:
        model_id = str(pocket_model(model_id))
    path = Path(model_id).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"{model_id}: no such file")
        return str(path.parent), {"gguf_file": path.name}
    if path.is_file():
        raise ModelError(f"{model_id}: a file, but no .gguf; a model is a folder or a .gguf file")
    if model_id.startswith((".", "/", "~")) and not path.is_dir():
        raise ModelError(f"{model_id}: no such folder")
    return str(path) if path.is_dir() else model_id, {}


def _parts(model_id: str, given: str | None) -> tuple[str, dict[str, Any], Adapter | None]:
    """What `from_pretrained` wants for the base, and the adapter that is given, or that the id is.

    Raises:
        ModelError: nothing to load there, or two adapters.
    """
    from probing.models.adapter import Adapter

    name, options = _source(model_id)
    lora: Adapter | None = None if options else Adapter.at(name)
    if given is None:
        return (*(_source(lora.base) if lora else (name, options)), lora)
    if lora:
        raise ModelError(f"{model_id} is an adapter, {given} another: give the base of one of them")
    if (lora := Adapter.at(given)) is None:
        raise ModelError(f"{given}: no adapter there (adapter_config.json)")
    return name, options, replace(lora, base=model_id)


def load_frozen(folder: Path) -> tuple[PreTrainedModel, Any]:
    """The model in a folder, on the CPU in float32, and its tokenizer.

    Raises:
        ModelError: the folder holds no model, or one that cannot be loaded.
    """
    return ModelSource(str(folder.resolve()), device="cpu", dtype="float32").load()


def pocket_model(name: str = POCKET) -> Path:
    """Folder of an embedded model, a pocket reasoner (data/pocket/README.md)."""
    return data_path(name)


def with_random_weights(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """A model of the same shape whose weights were never trained, drawn as its family draws them.

    On the device and in the precision of the model; torch's own random state stays as it was.

    Args:
        model: a loaded one, of which only the config is taken.
        seed: of the weights.

    Raises:
        ModelError: its family cannot be built from a config alone, or the model is spread out.
    """
    import copy

    import torch
    from transformers import AutoModelForCausalLM

    if getattr(model, "hf_device_map", None):
        raise ModelError(
            "--control random-weights needs a model on one device, not one that is spread out"
        )
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
