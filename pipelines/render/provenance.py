"""Holds what a worker does to a picture on its way into its file: stamps pixels, words marks, signs bytes.

The settings travel to the worker; `Provenance` is made there, once, with the key that lies on that machine.
"""

from dataclasses import dataclass, field

from pipelines.render.marks import SOFTWARE, VERSION, Marks
from pipelines.render.signing import Signer, SigningConfig, read_credentials
from pipelines.render.stamp import Stamp, StampConfig


@dataclass(frozen=True)
class ProvenanceConfig:
    """What the job asks for; the default: nothing, as in runs of versions without marks."""

    marks: Marks = field(default_factory=Marks)
    signing: SigningConfig | None = None
    stamp: StampConfig | None = None

    @property
    def key_parts(self) -> tuple[str, ...]:
        """What is done to a picture, in words for a key; () where nothing is: such keys stay what they were."""
        named = {"iptc": self.marks.iptc, "parameters": self.marks.parameters, "c2pa": self.signing is not None}
        stamp = (f"stamp {self.stamp.name}",) if self.stamp else ()
        return (*(name for name, done in named.items() if done), *stamp)


@dataclass(frozen=True)
class Provenance:
    """A worker's own. stamp, signer: None where the job asks for none."""

    marks: Marks = field(default_factory=Marks)
    stamp: Stamp | None = None
    signer: Signer | None = None

    @property
    def byte_class(self) -> str:
        """What the unsigned bytes depend on beside pixels and encoder, as the end of a render class."""
        return f"/marks-{SOFTWARE}-{VERSION}" if self.marks.iptc or self.marks.parameters else ""

    @property
    def stamp_name(self) -> str | None:
        """Of the function that changes pixels; None: they are as they were rendered."""
        return self.stamp.config.name if self.stamp else None


def load_provenance(config: ProvenanceConfig) -> Provenance:
    """Raises SigningError where the key or the certificate is not here, or cannot sign."""
    signer = Signer(read_credentials(config.signing)) if config.signing else None
    return Provenance(config.marks, Stamp(config.stamp) if config.stamp else None, signer)
