"""A request without Ray: prompts go to the sampler one by one, and share UNet calls whatever their steps are."""

from pathlib import Path

from PIL import Image

from actors.rows import Row, SamplerConfig
from actors.sampler import DDIMSampler

MODEL = "training/scenes/model"
REQUESTS = (("a red circle above a blue square", 4), ("two green triangles", 8))


def main(folder: str = "runs/one_request") -> list[Path]:
    """Render the requests; the paths of the pictures."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    sampler = DDIMSampler(SamplerConfig(MODEL))
    rows = [Row(f"r{seed}", prompt, None, seed, 1.5, 32, 32, steps) for seed, (prompt, steps) in enumerate(REQUESTS)]
    pictures = [sampler.submit(row) for row in rows]  # futures: a row may join between two calls
    paths = []
    for row, picture in zip(rows, pictures, strict=True):
        paths.append(Path(folder) / f"{row.id}.png")
        Image.fromarray(picture.result().image).save(paths[-1])
    sampler.close()
    return paths


if __name__ == "__main__":
    print(*main(), sep="\n")
