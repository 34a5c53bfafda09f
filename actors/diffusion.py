"""Runs a frozen diffusers checkpoint on one device: encodes text, draws noise, predicts, decodes.

Not a pipeline: it knows no steps, no guidance and no batch but the one it is given. SD 1.x, SD 2.x and SDXL. Legend: B
batch, L tokens, D embedding, P pooled embedding, C latent channels, h w latent side, H W px.
"""

import atexit
import logging
import os
import shutil
import tempfile
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from actors.checkpoint import CheckpointInfo, component_variant
from actors.fault import check_engine, check_finite
from actors.loading import load_whole
from actors.textual_inversion import expander

log = logging.getLogger(__name__)
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ENCODE_BATCH = 8  # prompts an encoder call, padded: one shape, so that a prompt's embedding has no neighbours in it


@dataclass(frozen=True)
class TextEmbeds:
    """prompt_embeds (B, L, D); pooled (B, P), None for SD; truncated (B,): the prompt was not read whole."""

    prompt_embeds: torch.Tensor
    pooled: torch.Tensor | None
    truncated: list[bool]


def resolve_device(device: str) -> torch.device:
    """`auto` is CUDA where there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto` is fp32 on a CPU and fp16 on CUDA, the precision that hub checkpoints are published in."""
    if dtype == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    return DTYPES[dtype]


class Diffusion:
    """The weights of one checkpoint. One thread uses it at a time."""

    def __init__(
        self,
        info: CheckpointInfo,
        dtype: str = "auto",
        device: str = "auto",
        compile_unet: bool = False,
        channels_last: bool | None = None,
    ):
        self.info = info
        self.device = resolve_device(device)
        self.channels_last = self.device.type == "cuda" if channels_last is None else channels_last
        self.dtype = resolve_dtype(dtype, self.device)
        self.unet: Any = self._frozen(self._load(UNet2DConditionModel, "unet", torch_dtype=self.dtype))
        self.vae: Any = self._load(AutoencoderKL, "vae", torch_dtype=self.dtype)
        if self.dtype != torch.float32 and self.vae.config.force_upcast:
            self.vae = self.vae.to(torch.float32)
        self.vae = self._frozen(self.vae)
        self.tokenizers, self.text_encoders = self._load_text()
        self._expand = [expander(tokenizer) for tokenizer in self.tokenizers]
        self._unconditional: dict[str | None, TextEmbeds] = {}
        if self.channels_last:
            self.unet.to(memory_format=torch.channels_last)
            self.vae.to(memory_format=torch.channels_last)
        if compile_unet:
            self.unet = _compiled(self.unet)
        if info.scheduler_class != "DDIMScheduler":
            log.info("%s ships a %s config; it is read as from_config does", info.path, info.scheduler_class)

    def _frozen(self, module: Any) -> Any:
        return module.to(self.device).eval().requires_grad_(False)

    def _load(self, model_class: Any, component: str, **options: Any) -> Any:
        """One component, in the variant it has. Raises CheckpointError where a weight would be made up."""
        variant = component_variant(self.info.path, component, self.info.variant)
        return load_whole(model_class, os.path.join(self.info.path, component), variant=variant, **options)

    def _load_text(self) -> tuple[list[CLIPTokenizer], list[torch.nn.Module]]:
        kinds: list[tuple[str, str, Any]] = [("tokenizer", "text_encoder", CLIPTextModel)]
        if self.info.family == "sdxl":
            kinds.append(("tokenizer_2", "text_encoder_2", CLIPTextModelWithProjection))
        folders = [os.path.join(self.info.path, tokenizer) for tokenizer, _, _ in kinds]
        tokenizers = [CLIPTokenizer.from_pretrained(folder, local_files_only=True) for folder in folders]
        encoders = [self._load(model, encoder, dtype=self.dtype) for _, encoder, model in kinds]
        return tokenizers, [self._frozen(encoder) for encoder in encoders]

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """(C, h, w)."""
        factor = self.info.vae_scale_factor
        return self.unet.config.in_channels, height // factor, width // factor

    def noise(self, seed: int, width: int, height: int) -> torch.Tensor:
        """(C, h, w) float32 on the CPU: what diffusers draws for a generator of this seed; never a slice of a batch."""
        shape = (1, *self.latent_shape(width, height))
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)[0]

    @torch.inference_mode()
    def encode(self, prompts: list[str]) -> TextEmbeds:
        """At most ENCODE_BATCH prompts."""
        padded = [_readable(p) for p in prompts] + [""] * (ENCODE_BATCH - len(prompts))
        n, truncated = len(prompts), [False] * len(prompts)
        states, pooled = [], None
        for tokenizer, expand, encoder in zip(self.tokenizers, self._expand, self.text_encoders, strict=True):
            spelt = [expand(prompt) for prompt in padded]
            tokens = self._tokens(tokenizer, spelt)
            output = self._encoder_output(encoder, tokens)
            states.append(output.hidden_states[-2] if self.info.family == "sdxl" else output.last_hidden_state)
            pooled = getattr(output, "text_embeds", None)
            cut = _truncated(tokenizer, spelt[:n], tokens.attention_mask)
            truncated = [a or b for a, b in zip(truncated, cut, strict=True)]
        return TextEmbeds(torch.cat(states, -1)[:n], None if pooled is None else pooled[:n], truncated)

    def _tokens(self, tokenizer: CLIPTokenizer, prompts: list[str]) -> Any:
        length = tokenizer.model_max_length
        return tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")

    def _encoder_output(self, encoder: torch.nn.Module, tokens: Any) -> Any:
        use_mask = self.info.family == "sd" and getattr(encoder.config, "use_attention_mask", False)
        return encoder(
            tokens.input_ids.to(self.device),
            attention_mask=tokens.attention_mask.to(self.device) if use_mask else None,
            output_hidden_states=self.info.family == "sdxl",
        )

    def unconditional(self, negative_prompt: str | None) -> TextEmbeds:
        """B = 1. SDXL's is zero for None (not for ""), where its checkpoint says so; the last 256 are kept."""
        if negative_prompt not in self._unconditional:
            if len(self._unconditional) >= 256:
                self._unconditional.pop(next(iter(self._unconditional)))
            embeds = self.encode([negative_prompt or ""])
            if negative_prompt is None and self.info.zero_unconditional and embeds.pooled is not None:
                embeds = TextEmbeds(torch.zeros_like(embeds.prompt_embeds), torch.zeros_like(embeds.pooled), [False])
            self._unconditional[negative_prompt] = embeds
        return self._unconditional[negative_prompt]

    @torch.inference_mode()
    def predict(
        self, x: torch.Tensor, t: torch.Tensor, prompt_embeds: torch.Tensor, added: dict[str, torch.Tensor] | None
    ) -> torch.Tensor:
        """x (B, C, h, w) float32, t (B,) int64, prompt_embeds (B, L, D) -> the model's output (B, C, h, w) float32.

        added: SDXL's text_embeds (B, P) and time_ids (B, 6).
        """
        output = self.unet(
            x.to(self.dtype), t, encoder_hidden_states=prompt_embeds, added_cond_kwargs=added, return_dict=False
        )
        return output[0].float()

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """latents (B, C, h, w) float32 -> uint8 (B, H, W, 3), and which were finite (B,) bool. Waits for the device."""
        config, mean, std = self.vae.config, self.vae.config.latents_mean, self.vae.config.latents_std
        if self.info.family == "sdxl" and mean is not None and std is not None:  # the other pipeline reads neither
            mean = torch.tensor(mean, device=self.device).view(1, -1, 1, 1)
            std = torch.tensor(std, device=self.device).view(1, -1, 1, 1)
            latents = latents * std / config.scaling_factor + mean
        else:
            latents = latents / config.scaling_factor
        image = self.vae.decode(latents.to(self.vae.dtype), return_dict=False)[0].float()
        finite = image.isfinite().flatten(1).all(1)
        levels = (image * 0.5 + 0.5).clamp(0, 1).mul(255).round().nan_to_num().to(torch.uint8)
        return levels.permute(0, 2, 3, 1).cpu().numpy(), finite.cpu().numpy()

    def probe(self, after: Exception | None = None) -> None:
        """Raises EngineBroken where a known-good prompt fails, too. Out of memory proves nothing.

        after: what a row alone has failed with. The picture is as small as the UNet takes; the UNet runs uncompiled, so
        that the one shape of a compiled UNet stays the only one.
        """
        check_engine(self._render_small, after)

    @torch.inference_mode()
    def _render_small(self) -> None:
        """Two lanes of one prompt through text encoder, UNet and decoder. FloatingPointError for inf or nan."""
        side_px = self.info.vae_scale_factor * 2 ** (len(self.unet.config.block_out_channels) - 1)
        x, t, prompt_embeds, added = unet_inputs(self, side_px, side_px, 2)
        check_finite(prompt_embeds, "the text encoder's output")
        output = self.unet.forward(
            x.to(self.dtype), t, encoder_hidden_states=prompt_embeds, added_cond_kwargs=added, return_dict=False
        )
        check_finite(output[0], "the UNet's output")
        if not self.decode(x[:1])[1].all():
            raise FloatingPointError("the picture of a known-good input holds inf or nan")


def unet_inputs(model: Diffusion, width: int, height: int, lanes: int) -> tuple[Any, ...]:
    """What `Diffusion.predict` takes, for a call of so many lanes of one prompt, always the same."""
    text = model.encode(["a"])
    x = model.noise(0, width, height).expand(lanes, -1, -1, -1).contiguous().to(model.device)
    t = torch.full((lanes,), 500, device=model.device)
    added = None
    if text.pooled is not None:
        size = torch.tensor([height, width, 0, 0, height, width], dtype=model.dtype, device=model.device)
        added = {"text_embeds": text.pooled.expand(lanes, -1), "time_ids": size.expand(lanes, 6)}
    return x, t, text.prompt_embeds.expand(lanes, -1, -1).contiguous(), added


def _compiled(module: torch.nn.Module) -> torch.nn.Module:
    """Compiled at its first call, for the one shape it sees; its files in a folder of this process alone.

    A process that is killed while it compiles leaves a torn file, which would break every later one.
    """
    folder = tempfile.mkdtemp(prefix="stepthrift-compiled-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"], os.environ["TRITON_CACHE_DIR"] = folder, os.path.join(folder, "triton")
    module.compile(dynamic=False)
    return module


def _readable(prompt: str) -> str:
    """A lone surrogate is no text to a tokenizer: it becomes a question mark."""
    return prompt.encode("utf-8", "replace").decode()


def _truncated(tokenizer: CLIPTokenizer, prompts: list[str], attention_mask: torch.Tensor) -> list[bool]:
    """Which prompts were cut: of those that fill their line, the ones that are longer."""
    full = [i for i in range(len(prompts)) if bool(attention_mask[i, -1])]
    found = [False] * len(prompts)
    if full:
        whole = tokenizer([prompts[i] for i in full], truncation=False, verbose=False).input_ids
        for i, ids in zip(full, whole, strict=True):
            found[i] = len(ids) > tokenizer.model_max_length
    return found
