"""Makes the embedded model: `python -m training.scenes.train` draws, trains, and writes the shipped folders.

Every stage leaves its files in the work folder, where a later run finds them and goes on: stop it at any time. The
shipped weights alone cannot be trained on; the checkpoints of that folder hold what is needed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from transformers import CLIPTokenizer

from training.scenes import architecture, autoencoding, contrastive, denoising, export, prompts, training_files
from training.scenes.fit import FitSettings, averages
from training.scenes.threads import ThreadTuner


@dataclass(frozen=True)
class Recipe:
    """What one run of the command was asked for."""

    work: Path
    out: Path
    scenes: int
    autoencoder_steps: int
    denoiser_steps: int
    decay_steps: int
    clip_steps: int
    threads: int

    def tokenizer(self) -> CLIPTokenizer:
        """The one that the tokenizer stage made."""
        return CLIPTokenizer.from_pretrained(self.work / "tokenizer")


def data(recipe: Recipe) -> None:
    """Drawings and their captions."""
    if not (recipe.work / "captions.json").exists():
        training_files.draw_all(recipe.work, recipe.scenes, recipe.threads)


def tokenizer(recipe: Recipe) -> None:
    """The tokenizer and the captions' tokens."""
    if not (recipe.work / "tokens.npy").exists():
        training_files.train_tokenizer(recipe.work, recipe.work / "tokenizer")
        training_files.encode_captions(recipe.work, recipe.tokenizer())


def autoencoder(recipe: Recipe) -> None:
    """The autoencoder; once made it stays, since the latents rest on it."""
    if (recipe.work / "vae").exists():
        return
    steps = recipe.autoencoder_steps
    plan = FitSettings(steps, lr=2e-3, warmup=100, decay_steps=steps // 4, ema_decay=0.998, muon=False)
    autoencoding.train(recipe.work, plan, ThreadTuner(recipe.threads)).save_pretrained(recipe.work / "vae")


def latents(recipe: Recipe) -> None:
    """The drawings' latents."""
    if not (recipe.work / "latents.npy").exists():
        training_files.encode_images(recipe.work, AutoencoderKL.from_pretrained(recipe.work / "vae"))


def denoiser(recipe: Recipe) -> None:
    """The denoiser and its text encoder."""
    plan = FitSettings(recipe.denoiser_steps, lr=2e-3, warmup=100, decay_steps=recipe.decay_steps, ema_decay=0.999)
    denoising.train(recipe.work, recipe.tokenizer(), plan, ThreadTuner(recipe.threads))


def clip(recipe: Recipe) -> None:
    """The scorer."""
    steps = recipe.clip_steps
    plan = FitSettings(steps, lr=2e-3, warmup=100, decay_steps=steps // 3, ema_decay=0.998)
    contrastive.train(recipe.work, recipe.tokenizer(), plan, ThreadTuner(recipe.threads))


def export_folders(recipe: Recipe) -> None:
    """Folders and prompts, from the checkpoints as they are: also while the training goes on."""
    tokenizer = recipe.tokenizer()
    unet, text_encoder = architecture.denoiser(), architecture.text_encoder(tokenizer)
    unet.load_state_dict(averages(recipe.work / "denoiser.ckpt", "unet"))
    text_encoder.load_state_dict(averages(recipe.work / "denoiser.ckpt", "text_encoder"))
    vae = AutoencoderKL.from_pretrained(recipe.work / "vae")
    export.save_model(export.pipeline(vae, unet, text_encoder, tokenizer), recipe.out / "model")
    if (recipe.work / "clip.ckpt").exists():
        model = architecture.clip(tokenizer)
        model.load_state_dict(averages(recipe.work / "clip.ckpt", "clip"))
        export.save_scorer(model, tokenizer, recipe.out / "scorer")
    prompts.write(recipe.out / "prompts.csv")


STAGES: dict[str, Callable[[Recipe], None]] = {
    "data": data,
    "tokenizer": tokenizer,
    "autoencoder": autoencoder,
    "latents": latents,
    "denoiser": denoiser,
    "clip": clip,
    "export": export_folders,
}


@click.command(epilog="Stages, in this order: " + " ".join(STAGES))
@click.argument("stages", nargs=-1, type=click.Choice(list(STAGES)))
@click.option(
    "--work", default=".cache/scenes", show_default=True, type=click.Path(path_type=Path), help="Work folder."
)
@click.option(
    "--out", default=Path(__file__).parent, type=click.Path(path_type=Path), help="Where model/ and scorer/ go."
)
@click.option("--scenes", default=160_000, show_default=True, help="Drawings to train on.")
@click.option("--autoencoder-steps", default=4450, show_default=True, help="Batches of 16.")
@click.option("--denoiser-steps", default=20_000, show_default=True, help="Batches of 64; more than before goes on.")
@click.option("--decay-steps", default=3000, show_default=True, help="The last of them, with a falling learning rate.")
@click.option("--clip-steps", default=2500, show_default=True, help="Batches of 96.")
@click.option("--threads", default=2, show_default=True, help="At most; fewer are used where that is faster.")
def main(stages: tuple[str, ...], work: Path, **options: object) -> None:
    """Runs STAGES, or all of them, in their order."""
    work.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(work=work, **options)  # type: ignore[arg-type]
    for name, stage in STAGES.items():
        if not stages or name in stages:
            click.echo(f"{name}: {stage.__doc__}")
            stage(recipe)


if __name__ == "__main__":
    main()
