"""Lists the tensors that a model needs, name and shape, by its config alone: UNet, VAE, CLIP.

Not the models: nothing is built and torch is not imported. The tests hold every list against the model that diffusers
or transformers builds from the same config.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Shapes = dict[str, tuple[int, ...]]
UNET_DEFAULTS: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "cross_attention_dim": 1280,
    "transformer_layers_per_block": 1,
    "reverse_transformer_layers_per_block": None,
    "attention_head_dim": 8,
    "use_linear_projection": False,
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "projection_class_embeddings_input_dim": None,
    "sample_size": None,
}
VAE_DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "block_out_channels": [64],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
    "scaling_factor": 0.18215,
}
CLIP_TEXT_DEFAULTS: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "projection_dim": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
}
CLIP_VISION_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
}


class _Layers:
    """Collects layers under dotted names. ValueError where a group norm cannot be made."""

    def __init__(self, groups: int) -> None:
        self.shapes: Shapes = {}
        self.groups = groups

    def linear(self, name: str, inputs: int, outputs: int, bias: bool = True) -> None:
        self.shapes[f"{name}.weight"] = (outputs, inputs)
        if bias:
            self.shapes[f"{name}.bias"] = (outputs,)

    def conv(self, name: str, inputs: int, outputs: int, kernel: int = 3) -> None:
        self.shapes[f"{name}.weight"] = (outputs, inputs, kernel, kernel)
        self.shapes[f"{name}.bias"] = (outputs,)

    def norm(self, name: str, channels: int) -> None:
        self.shapes[f"{name}.weight"] = self.shapes[f"{name}.bias"] = (channels,)

    def group_norm(self, name: str, channels: int) -> None:
        if channels % self.groups:
            raise ValueError(f"norm_num_groups {self.groups} does not divide the {channels} channels of {name}")
        self.norm(name, channels)

    def resnet(self, name: str, inputs: int, outputs: int, time: int | None) -> None:
        self.group_norm(f"{name}.norm1", inputs)
        self.conv(f"{name}.conv1", inputs, outputs)
        if time is not None:
            self.linear(f"{name}.time_emb_proj", time, outputs)
        self.group_norm(f"{name}.norm2", outputs)
        self.conv(f"{name}.conv2", outputs, outputs)
        if inputs != outputs:
            self.conv(f"{name}.conv_shortcut", inputs, outputs, 1)

    def cross_attention(self, name: str, width: int, context: int) -> None:
        self.linear(f"{name}.to_q", width, width, bias=False)
        self.linear(f"{name}.to_k", context, width, bias=False)
        self.linear(f"{name}.to_v", context, width, bias=False)
        self.linear(f"{name}.to_out.0", width, width)

    def transformer(self, name: str, width: int, context: int, depth: int, linear: bool) -> None:
        self.group_norm(f"{name}.norm", width)
        for end in ("proj_in", "proj_out"):
            if linear:
                self.linear(f"{name}.{end}", width, width)
            else:
                self.conv(f"{name}.{end}", width, width, 1)
        for i in range(depth):
            block = f"{name}.transformer_blocks.{i}"
            for n in (1, 2, 3):
                self.norm(f"{block}.norm{n}", width)
            self.cross_attention(f"{block}.attn1", width, width)
            self.cross_attention(f"{block}.attn2", width, context)
            self.linear(f"{block}.ff.net.0.proj", width, 8 * width)
            self.linear(f"{block}.ff.net.2", 4 * width, width)

    def encoder_layer(self, name: str, width: int, inner: int) -> None:
        for end in ("k_proj", "v_proj", "q_proj", "out_proj"):
            self.linear(f"{name}.self_attn.{end}", width, width)
        self.norm(f"{name}.layer_norm1", width)
        self.norm(f"{name}.layer_norm2", width)
        self.linear(f"{name}.mlp.fc1", width, inner)
        self.linear(f"{name}.mlp.fc2", inner, width)


def per_block(value: Any, count: int, name: str) -> list[Any]:
    """One value a block. ValueError where a list has another length."""
    values = list(value) if isinstance(value, list | tuple) else [value] * count
    if len(values) != count:
        raise ValueError(f"{name} has {len(values)} entries for {count} blocks")
    return values


def unet_shapes(config: Mapping[str, Any]) -> Shapes:
    """UNet2DConditionModel with the block types of Stable Diffusion. ValueError where none can be built."""
    c = UNET_DEFAULTS | dict(config)
    widths, cross = list(c["block_out_channels"]), c["cross_attention_dim"]
    count, first, time = len(widths), widths[0], 4 * widths[0]
    layers, made = per_block(c["layers_per_block"], count, "layers_per_block"), _Layers(c["norm_num_groups"])
    depths = per_block(c["transformer_layers_per_block"], count, "transformer_layers_per_block")
    made.conv("conv_in", c["in_channels"], first)
    made.linear("time_embedding.linear_1", first, time)
    made.linear("time_embedding.linear_2", time, time)
    if c["addition_embed_type"] == "text_time":
        made.linear("add_embedding.linear_1", c["projection_class_embeddings_input_dim"], time)
        made.linear("add_embedding.linear_2", time, time)
    linear = bool(c["use_linear_projection"])
    skips = _unet_down(made, c["down_block_types"], widths, layers, depths, time, cross, linear)
    _unet_mid(made, c["mid_block_type"], widths[-1], depths[-1], time, cross, linear)
    upward = c["reverse_transformer_layers_per_block"] or list(reversed(depths))
    _unet_up(made, c["up_block_types"], widths[::-1], layers[::-1], upward, skips, time, cross, linear)
    made.group_norm("conv_norm_out", first)
    made.conv("conv_out", first, c["out_channels"])
    return made.shapes


def _unet_down(
    made: _Layers,
    kinds: Sequence[str],
    widths: list[int],
    layers: list[int],
    depths: list[Any],
    time: int,
    cross: int,
    linear: bool,
) -> list[int]:
    """Adds the blocks; returns the channels of every skip connection, in the order of their making."""
    skips, width = [widths[0]], widths[0]
    for i, kind in enumerate(kinds):
        deep = per_block(depths[i], layers[i], "transformer_layers_per_block")
        for j in range(layers[i]):
            made.resnet(f"down_blocks.{i}.resnets.{j}", width, widths[i], time)
            width = widths[i]
            if kind == "CrossAttnDownBlock2D":
                made.transformer(f"down_blocks.{i}.attentions.{j}", width, cross, deep[j], linear)
            skips.append(width)
        if i < len(kinds) - 1:
            made.conv(f"down_blocks.{i}.downsamplers.0.conv", width, width)
            skips.append(width)
    return skips


def _unet_mid(made: _Layers, kind: str | None, width: int, depth: Any, time: int, cross: int, linear: bool) -> None:
    if kind is None:
        return
    made.resnet("mid_block.resnets.0", width, width, time)
    if kind == "UNetMidBlock2DCrossAttn":
        made.transformer("mid_block.attentions.0", width, cross, per_block(depth, 1, "mid_block")[0], linear)
        made.resnet("mid_block.resnets.1", width, width, time)


def _unet_up(
    made: _Layers,
    kinds: Sequence[str],
    widths: list[int],
    layers: list[int],
    depths: Sequence[Any],
    skips: list[int],
    time: int,
    cross: int,
    linear: bool,
) -> None:
    width = widths[0]
    for i, kind in enumerate(kinds):
        deep = per_block(depths[i], layers[i] + 1, "transformer_layers_per_block")
        for j in range(layers[i] + 1):
            made.resnet(f"up_blocks.{i}.resnets.{j}", width + skips.pop(), widths[i], time)
            width = widths[i]
            if kind == "CrossAttnUpBlock2D":
                made.transformer(f"up_blocks.{i}.attentions.{j}", width, cross, deep[j], linear)
        if i < len(kinds) - 1:
            made.conv(f"up_blocks.{i}.upsamplers.0.conv", width, width)


def vae_shapes(config: Mapping[str, Any]) -> Shapes:
    """AutoencoderKL. ValueError where none can be built."""
    c = VAE_DEFAULTS | dict(config)
    widths, layers, latent = list(c["block_out_channels"]), c["layers_per_block"], c["latent_channels"]
    made, attention = _Layers(c["norm_num_groups"]), bool(c["mid_block_add_attention"])
    made.conv("encoder.conv_in", c["in_channels"], widths[0])
    width = widths[0]
    for i, out in enumerate(widths):
        for j in range(layers):
            made.resnet(f"encoder.down_blocks.{i}.resnets.{j}", width, out, None)
            width = out
        if i < len(widths) - 1:
            made.conv(f"encoder.down_blocks.{i}.downsamplers.0.conv", width, width)
    _vae_mid(made, "encoder", widths[-1], attention)
    made.group_norm("encoder.conv_norm_out", widths[-1])
    made.conv("encoder.conv_out", widths[-1], 2 * latent)
    made.conv("decoder.conv_in", latent, widths[-1])
    _vae_mid(made, "decoder", widths[-1], attention)
    for i, out in enumerate(reversed(widths)):
        for j in range(layers + 1):
            made.resnet(f"decoder.up_blocks.{i}.resnets.{j}", width, out, None)
            width = out
        if i < len(widths) - 1:
            made.conv(f"decoder.up_blocks.{i}.upsamplers.0.conv", width, width)
    made.group_norm("decoder.conv_norm_out", widths[0])
    made.conv("decoder.conv_out", widths[0], c["out_channels"])
    if c["use_quant_conv"]:
        made.conv("quant_conv", 2 * latent, 2 * latent, 1)
    if c["use_post_quant_conv"]:
        made.conv("post_quant_conv", latent, latent, 1)
    return made.shapes


def _vae_mid(made: _Layers, part: str, width: int, attention: bool) -> None:
    for n in (0, 1):
        made.resnet(f"{part}.mid_block.resnets.{n}", width, width, None)
    if attention:
        made.group_norm(f"{part}.mid_block.attentions.0.group_norm", width)
        for end in ("to_q", "to_k", "to_v", "to_out.0"):
            made.linear(f"{part}.mid_block.attentions.0.{end}", width, width)


def clip_text_shapes(config: Mapping[str, Any], projection: bool = False) -> Shapes:
    """CLIPTextModel without its prefix `text_model.`; with projection: CLIPTextModelWithProjection."""
    c, made = CLIP_TEXT_DEFAULTS | dict(config), _Layers(1)
    width = c["hidden_size"]
    made.shapes["embeddings.token_embedding.weight"] = (c["vocab_size"], width)
    made.shapes["embeddings.position_embedding.weight"] = (c["max_position_embeddings"], width)
    for i in range(c["num_hidden_layers"]):
        made.encoder_layer(f"encoder.layers.{i}", width, c["intermediate_size"])
    made.norm("final_layer_norm", width)
    if projection:
        made.linear("text_projection", width, c["projection_dim"], bias=False)
    return made.shapes


def clip_shapes(text: Mapping[str, Any], vision: Mapping[str, Any], projection_dim: int) -> Shapes:
    """CLIPModel."""
    v, made = CLIP_VISION_DEFAULTS | dict(vision), _Layers(1)
    width, patch = v["hidden_size"], v["patch_size"]
    made.shapes["embeddings.class_embedding"] = (width,)
    made.shapes["embeddings.patch_embedding.weight"] = (width, v["num_channels"], patch, patch)
    made.shapes["embeddings.position_embedding.weight"] = ((v["image_size"] // patch) ** 2 + 1, width)
    made.norm("pre_layrnorm", width)  # so it is spelt there
    for i in range(v["num_hidden_layers"]):
        made.encoder_layer(f"encoder.layers.{i}", width, v["intermediate_size"])
    made.norm("post_layernorm", width)
    shapes = {f"text_model.{name}": shape for name, shape in clip_text_shapes(text).items()}
    shapes |= {f"vision_model.{name}": shape for name, shape in made.shapes.items()}
    text_width = (CLIP_TEXT_DEFAULTS | dict(text))["hidden_size"]
    shapes |= {"visual_projection.weight": (projection_dim, width), "logit_scale": ()}
    return shapes | {"text_projection.weight": (projection_dim, text_width)}
