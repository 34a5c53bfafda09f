"""Measures the shipped model against the truth: `python -m training.scenes.evaluate --captions 600`.

Renders held-out captions with the plain diffusers pipeline and lets the checker read the pictures; also the
autoencoder's ceiling and CLIP's retrieval. It trains nothing and writes nothing. H = W = 32 px.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from transformers import CLIPModel, CLIPTokenizer

from training.scenes.checker import Verdict, check
from training.scenes.contrastive import altered
from training.scenes.export import MODEL_FOLDER, SCORER_FOLDER
from training.scenes.training_files import held_out_scenes, pixels, token_ids
from training.scenes.world import MAX_RICHNESS, Image, Scene

BATCH = 50


def load(folder: Path = MODEL_FOLDER) -> StableDiffusionPipeline:
    """The pipeline in fp32, quiet."""
    pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def render(pipe: StableDiffusionPipeline, captions: list[str], steps: int, guidance: float) -> list[Image]:
    """One picture a caption, seed = its index."""
    images: list[Image] = []
    for start in range(0, len(captions), BATCH):
        some = captions[start : start + BATCH]
        seeds = [torch.Generator().manual_seed(start + i) for i in range(len(some))]
        out = pipe(some, num_inference_steps=steps, guidance_scale=guidance, generator=seeds, output_type="np")
        images += list((out.images * 255).round().astype(np.uint8))
    return images


@dataclass(frozen=True)
class Tally:
    """Verdicts of scenes; shares are of objects, not of pictures."""

    scenes: list[Scene]
    verdicts: list[Verdict]

    def objects_right(self, richness: int | None = None) -> float:
        """Share of the objects asked for that are there."""
        pairs = [
            (v.right * s.richness, s.richness)
            for s, v in zip(self.scenes, self.verdicts, strict=True)
            if richness in (None, s.richness)
        ]
        return sum(hits for hits, _ in pairs) / max(1, sum(asked for _, asked in pairs))

    def relations_right(self) -> float:
        """Share of the asked relations that hold."""
        asked = [v.relation for v in self.verdicts if v.relation is not None]
        return sum(asked) / max(1, len(asked))

    def exact(self) -> float:
        """Share of pictures with all objects and no more."""
        return sum(v.exact for v in self.verdicts) / len(self.verdicts)

    def line(self) -> str:
        """A row of the table."""
        each = [f"{self.objects_right(n):6.1%}" for n in range(1, MAX_RICHNESS + 1)]
        return " ".join([*each, f"{self.objects_right():6.1%} {self.relations_right():9.1%} {self.exact():6.1%}"])


def tally(scenes: list[Scene], images: list[Image]) -> Tally:
    """The checker's verdict of each picture."""
    return Tally(scenes, [check(image, scene) for image, scene in zip(images, scenes, strict=True)])


@torch.no_grad()
def reconstruct(autoencoder: AutoencoderKL, images: list[Image]) -> list[Image]:
    """Through the latents and back, without noise."""
    x = autoencoder.decode(autoencoder.encode(pixels(np.stack(images))).latent_dist.mean).sample
    return list(x.clamp(-1, 1).add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy())


@torch.no_grad()
def retrieval(clip: CLIPModel, tokenizer: CLIPTokenizer, scenes: list[Scene], images: list[Image], among: int) -> float:
    """Share of pictures whose own caption CLIP ranks first among `among` held-out ones."""
    ids = torch.from_numpy(token_ids(tokenizer, [scene.caption() for scene in scenes]))
    hits = 0
    for start in range(0, len(scenes) - among + 1, among):
        rows = slice(start, start + among)
        logits = clip(input_ids=ids[rows], pixel_values=pixels(np.stack(images[rows]))).logits_per_image
        hits += int((logits.argmax(1) == torch.arange(among)).sum())
    return hits / (len(scenes) // among * among)


@torch.no_grad()
def told_apart(clip: CLIPModel, tokenizer: CLIPTokenizer, scenes: list[Scene], images: list[Image]) -> float:
    """Share of pictures whose caption CLIP prefers to the same caption with one word changed."""
    rng, hits = random.Random(0), 0
    for scene, image in zip(scenes, images, strict=True):
        ids = torch.from_numpy(token_ids(tokenizer, [scene.caption(), altered(rng, scene).caption()]))
        right, wrong = clip(input_ids=ids, pixel_values=pixels(image[None])).logits_per_image[0]
        hits += bool(right > wrong)
    return hits / len(scenes)


@click.command()
@click.option("--captions", default=600, show_default=True, help="Held-out captions, richness 1 to 6 in turn.")
@click.option("--steps", default=50, show_default=True, help="DDIM steps.")
@click.option("--guidance", "guidances", default="1,2,3,5", show_default=True, help="Guidance scales, comma-separated.")
@click.option("--model", default=str(MODEL_FOLDER), show_default=False, help="Folder of the pipeline.")
@click.option("--scorer", default=str(SCORER_FOLDER), show_default=False, help="Folder of the CLIP.")
def main(captions: int, steps: int, guidances: str, model: str, scorer: str) -> None:
    """Objects right by richness and guidance, relations, the autoencoder's ceiling and CLIP's retrieval."""
    pairs = held_out_scenes(captions)
    scenes, drawings = [scene for scene, _ in pairs], [image for _, image in pairs]
    pipe = load(Path(model))
    click.echo("                   1      2      3      4      5      6    all relations  exact")
    click.echo(f"drawings      {tally(scenes, drawings).line()}")
    click.echo(f"autoencoder   {tally(scenes, reconstruct(pipe.vae, drawings)).line()}")
    for guidance in map(float, guidances.split(",")):
        pictures = render(pipe, [scene.caption() for scene in scenes], steps, guidance)
        click.echo(f"guidance {guidance:4g} {tally(scenes, pictures).line()}")
    if (Path(scorer) / "config.json").exists():
        clip = CLIPModel.from_pretrained(scorer, dtype=torch.float32)
        tokenizer = CLIPTokenizer.from_pretrained(scorer)
        click.echo(f"CLIP, right caption among 32:      {retrieval(clip, tokenizer, scenes, drawings, 32):.1%}")
        click.echo(f"CLIP, against one changed word:    {told_apart(clip, tokenizer, scenes, drawings):.1%}")


if __name__ == "__main__":
    main()
