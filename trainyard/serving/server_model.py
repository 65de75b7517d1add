"""The base model in memory once, and LoRA adapters on it that are loaded, chosen and freed.

A version that is a whole model (`method: full`) is one more model in memory beside the base.

Nothing here is thread-safe: after loading, only the engine's thread may touch it. Covers decoders
with full or sliding attention on the CPU, safetensors only.
"""

import gc
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache
from transformers.utils import logging as transformers_logging

from trainyard.data.template import Template
from trainyard.errors import InputError
from trainyard.files import read_json
from trainyard.serving import server_attention
from trainyard.serving.server_sequence import Served

BASE = ""
"""Key of the base model itself, beside the keys of adapters."""

_ATTENTION = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
_FP32_UP_TO = 30_000_000
"""Parameters up to which `auto` means float32, whose greedy answers do not depend on the batch.
With AMX, bfloat16 saves 20 % of a step at 9 M parameters and 44 % of it, and 70 % of a prompt's
time, at 97 M."""


def _quiet() -> None:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module="peft")


def read_config(folder: Path, *, trust_remote_code: bool) -> Any:
    """Config of a model that can be served here. Raises InputError."""
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} has no config.json: the base must be a model folder")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (ValueError, OSError) as error:
        raise InputError(f"{folder}/config.json cannot be used: {_first_line(error)}") from error
    text = config.get_text_config(decoder=True)
    other = set(getattr(text, "layer_types", None) or ()) - _ATTENTION
    if other or config.is_encoder_decoder:
        what = ", ".join(sorted(other)) or "an encoder"
        raise InputError(f"{folder} has {what}: the CPU server runs attention-only decoders")
    if getattr(config, "quantization_config", None) is not None:
        raise InputError(f"{folder} is quantised: the CPU server needs 16 or 32-bit weights")
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"{folder} has no *.safetensors: pickled weights are never loaded")
    return config


def choose_dtype(wanted: str, folder: Path) -> torch.dtype:
    """`float32`, `bfloat16`, or `auto`: float32 unless a large model runs faster in bfloat16."""
    if wanted != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[wanted]
    bytes_of_weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    large = bytes_of_weights > 2 * _FP32_UP_TO
    native = torch.backends.cpu.get_cpu_capability() == "AVX512" and _has_bf16()
    return torch.bfloat16 if large and native else torch.float32


def _has_bf16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


class Model:
    """A base model and its adapters; one of them is active at a time."""

    def __init__(self, folder: Path, name: str, *, dtype: str, trust_remote_code: bool) -> None:
        _quiet()
        config = read_config(folder, trust_remote_code=trust_remote_code)
        self.folder = folder
        self.template = Template.load(folder)
        try:
            self.module = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=choose_dtype(dtype, folder),
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                attn_implementation=server_attention.register(),
            ).eval()
        except (ValueError, OSError, RuntimeError) as error:
            raise InputError(f"{folder} cannot be loaded: {_first_line(error)}") from error
        text = config.get_text_config(decoder=True)
        self.max_len = int(text.max_position_embeddings)
        self.vocabulary = int(self.module.get_input_embeddings().num_embeddings)
        eos_ids = frozenset(self.template.eos_token_ids)
        self.base = Served(name, BASE, folder, self.template, eos_ids, self.vocabulary)
        self._check_vocabulary(self.template, folder)
        self._peft: PeftModel | None = None
        self._switches: list[Any] = []
        self._active = BASE
        self._count = 0
        self._wanted = (dtype, trust_remote_code)
        self._wholes: dict[str, torch.nn.Module] = {}
        self._running: torch.nn.Module | None = None

    @property
    def dtype(self) -> str:
        return str(self.module.dtype).removeprefix("torch.")

    def load(self, name: str, folder: Path) -> Served:
        """Add an adapter under a new key. Raises InputError, and changes nothing then."""
        if (folder / "config.json").is_file():
            return self._load_whole(name, folder)
        config = read_adapter(folder)
        _check_fit(self.module, config, folder)
        template = self._template(folder)
        self._count += 1
        key = f"a{self._count}"  # a name may hold dots, a key of torch modules may not
        options = {"adapter_name": key, "is_trainable": False, "autocast_adapter_dtype": False}
        try:
            if self._peft is None:
                self._peft = PeftModel.from_pretrained(self.module, folder, **options)
            else:
                self._peft.load_adapter(folder, **options)
        except (ValueError, OSError, RuntimeError, KeyError) as error:
            self._forget(key)
            raise InputError(f"{folder} cannot be loaded: {_first_line(error)}") from error
        self._peft.eval()
        self._find_switches()
        eos_ids = {*template.eos_token_ids, *self.template.eos_token_ids}
        return Served(name, key, folder, template, frozenset(eos_ids), self.vocabulary)

    def _load_whole(self, name: str, folder: Path) -> Served:
        dtype, trusted = self._wanted
        found = Model(folder, name, dtype=dtype, trust_remote_code=trusted)
        if found.vocabulary != self.vocabulary or found.max_len != self.max_len:
            raise InputError(
                f"{folder} has {found.vocabulary} embeddings and {found.max_len} positions, the "
                f"base {self.vocabulary} and {self.max_len}: it was trained from another one"
            )
        self._count += 1
        key = f"w{self._count}"
        self._wholes[key] = found.module
        eos_ids = found.base.eos_ids | frozenset(self.template.eos_token_ids)
        return Served(name, key, folder, found.template, eos_ids, self.vocabulary)

    def unload(self, key: str) -> None:
        """Free the adapter's weights."""
        if self._wholes.pop(key, None) is not None:
            self._running = None
            gc.collect()
            return
        self._forget(key)
        self._find_switches()
        gc.collect()

    def activate(self, key: str) -> None:
        self._running = self._wholes.get(key)
        if self._running is not None or key == self._active:
            return
        if BASE in (key, self._active):
            for layer in self._switches:
                layer.enable_adapters(key != BASE)
        if key != BASE:
            for layer in self._switches:
                layer.set_adapter(key, inference_mode=True)
        self._active = key

    def _forget(self, key: str) -> None:
        if self._peft is None:
            return
        if key in self._peft.peft_config:
            self._peft.delete_adapter(key)
        if not self._peft.peft_config:
            self.module = self._peft.unload()
            self._peft = None

    def _find_switches(self) -> None:
        kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
        self._switches = [layer for layer in self.module.modules() if isinstance(layer, kinds)]
        for layer in self._switches:
            layer.enable_adapters(False)
        self._active = BASE

    def _template(self, folder: Path) -> Template:
        """The adapter's own tokenizer and chat template where it carries them, else the base's."""
        own = folder / "chat_template.jinja"
        text = own.read_text(encoding="utf-8") if own.is_file() else None
        if (folder / "tokenizer.json").is_file():
            found = Template.load(folder, text if text is not None else None)
            if found.source is None:
                found = Template.load(folder, self.template.source)
            self._check_vocabulary(found, folder)
            return found
        return Template.load(self.folder, text) if text is not None else self.template

    def _check_vocabulary(self, template: Template, folder: Path) -> None:
        size = template.tokenizer.get_vocab_size(with_added_tokens=True)
        if size > self.vocabulary:
            raise InputError(
                f"the tokenizer of {folder} has {size} tokens, the base only {self.vocabulary} "
                "embeddings; resized embeddings are not served here: merge the adapter first"
            )

    def forward(
        self,
        input_ids: torch.Tensor,
        cache: DynamicCache,
        *,
        mask: torch.Tensor,
        positions: torch.Tensor,
        keep: int,
    ) -> torch.Tensor:
        """Logits [B, keep or T, V] in float32; `keep` = 0 keeps all T. The cache grows by T."""
        running = self.module if self._running is None else self._running
        out = running(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        return out.logits.float()


def read_adapter(folder: Path) -> Mapping[str, Any]:
    """`adapter_config.json` of a LoRA adapter in safetensors. Raises InputError."""
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise InputError(f"{folder} has no adapter_config.json: is it a PEFT adapter folder?")
    if not (folder / "adapter_model.safetensors").is_file():
        raise InputError(f"{folder} has no adapter_model.safetensors")
    try:
        config = read_json(path)
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA":
        raise InputError(f"{path}: peft_type is {kind}; the CPU server serves LORA adapters")
    return LoraConfig.from_pretrained(folder).to_dict()


def _check_fit(module: torch.nn.Module, config: Mapping[str, Any], folder: Path) -> None:
    """Every LoRA tensor has a layer of its shape in the base. Raises InputError for the first."""
    layers = dict(module.named_modules())
    found = 0
    for name, shape in _shapes(folder / "adapter_model.safetensors").items():
        path, _, kind = name.removeprefix("base_model.model.").rpartition(".lora_")
        if not path or not kind.startswith(("A.", "B.")):
            continue
        found += 1
        # a layer that already has adapters is wrapped, and named without its `base_layer`
        layer = layers.get(path)
        layer = getattr(layer, "base_layer", layer)
        if layer is None:
            raise InputError(f"{folder} does not fit the base: it has no layer {path}")
        features = getattr(layer, "in_features" if kind.startswith("A.") else "out_features", None)
        size = shape[1] if kind.startswith("A.") else shape[0]
        if features is not None and size != features:
            raise InputError(
                f"{folder} does not fit the base: {path} has {features} features, "
                f"the adapter {size}; was it trained on {config.get('base_model_name_or_path')}?"
            )
    if not found:
        raise InputError(f"{folder}/adapter_model.safetensors holds no LoRA weights")


def _shapes(file: Path) -> dict[str, list[int]]:
    try:
        with safe_open(file, framework="pt") as tensors:
            return {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors raises its own bare Exception for a broken file
        raise InputError(f"{file} cannot be read: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].strip() if lines else type(error).__name__
