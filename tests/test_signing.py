"""Signed pictures: what is stored, what stays comparable, what readers accept, and what is refused at the start."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import c2pa
import pyarrow as pa
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from pipelines.integrity.repair_orders import RepairPlanner
from pipelines.integrity.verification import verify
from pipelines.render import signing
from pipelines.render.marks import MADE_BY_AI
from pipelines.render.provenance import Provenance, ProvenanceConfig, load_provenance
from pipelines.render.repaired_shard import replace_manifest
from pipelines.render.signing import (
    CERTIFICATE_ENV,
    KEY_ENV,
    Signer,
    SigningConfig,
    SigningError,
    check_signing,
    read_credentials,
    signature_fault,
)
from pipelines.render.sink import FORMATS, _chunk, encode_image
from pipelines.run.drivers import claim
from pipelines.run.layout import RunFolder, manifest_key, parquet_bytes
from pipelines.run.plan import read_plan
from pipelines.run.schema import schema_to_json
from tests.certificates import chain, write_chain
from tests.finished import picture
from tests.marked import MARKED, MARKS, SHARD, exiftool, manifest, marked_run, rendered, stored, unpacked
from tests.plans import typed_row

READ = """\
import c2pa, json, sys
with open(sys.argv[1], "rb") as file, c2pa.Reader(sys.argv[2], file) as reader:
    print(json.dumps([reader.get_validation_state(), reader.get_active_manifest()]))
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> SigningConfig:
    return SigningConfig(**write_chain(tmp_path_factory.mktemp("keys")))


@pytest.fixture(scope="module")
def signed(config: SigningConfig) -> Provenance:
    return load_provenance(ProvenanceConfig(MARKS, config))


def seen(run: RunFolder, sample: float = 1) -> set[tuple[str, str | None]]:
    return {(finding.kind, finding.id) for checked in verify(run, sample) for finding in checked.findings}


def edit(run: RunFolder, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
    table = run.read_manifest(SHARD)
    rows = change(table.to_pylist())
    run.write(manifest_key(SHARD), parquet_bytes([pa.Table.from_pylist(rows, schema=table.schema)]))


def tell(run: RunFolder, data: bytes) -> None:
    """Puts other bytes in the place of the first row's picture, and into its manifest row: only a reader sees it."""
    first = manifest(run)[0]
    run.write(first["uri"], data)
    told = {"signed_bytes": len(data), "signed_sha256": hashlib.sha256(data).hexdigest()}
    edit(run, lambda rows: [rows[0] | told, *rows[1:]])


@pytest.mark.parametrize("layout", ["files", "webdataset"])
@pytest.mark.parametrize("image_format", FORMATS)
def test_another_process_accepts_the_signature_and_reads_the_source(
    tmp_path: Path, signed: Provenance, layout: str, image_format: str
) -> None:
    run = marked_run(tmp_path / "run", signed, layout, image_format)
    files = unpacked(run, layout, tmp_path / "out")
    command = [sys.executable, "-c", READ, str(files["r0000"]), FORMATS[image_format]]
    state, found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert state == "Valid"
    (created,) = [each for each in found["assertions"] if each["label"].startswith("c2pa.actions")]
    (action,) = created["data"]["actions"]
    assert (action["action"], action["digitalSourceType"]) == ("c2pa.created", MADE_BY_AI)
    assert found["signature_info"]["common_name"] == "signer"
    assert "a fox" not in json.dumps(found)  # a prompt is in no claim
    read = exiftool(files["r0000"])
    assert read["XMP-iptcExt:DigitalSourceType"] == MADE_BY_AI
    if image_format != "webp":  # which this exiftool does not look into for a claim
        assert read["CBOR:ActionsDigitalSourceType"] == MADE_BY_AI


@pytest.mark.parametrize("layout", ["files", "webdataset", "parquet"])
@pytest.mark.parametrize("image_format", FORMATS)
def test_the_unsigned_hash_is_compared_and_the_signed_one_is_stored(
    tmp_path: Path, signed: Provenance, layout: str, image_format: str
) -> None:
    plain = manifest(marked_run(tmp_path / "plain", MARKED, layout, image_format))
    runs = [marked_run(tmp_path / name, signed, layout, image_format) for name in ("one", "two")]
    one, two = (manifest(run) for run in runs)
    for name in ("sha256", "bytes", "render_class", "render_key"):
        assert [row[name] for row in one] == [row[name] for row in two] == [row[name] for row in plain]
    assert not {row["signed_sha256"] for row in one} & {row["signed_sha256"] for row in two}
    for run, rows in zip(runs, (one, two), strict=True):
        data = stored(run)
        assert [(len(data[row["id"]]), hashlib.sha256(data[row["id"]]).hexdigest()) for row in rows] == [
            (row["signed_bytes"], row["signed_sha256"]) for row in rows
        ]
        assert all(row["signed_bytes"] > row["bytes"] for row in rows)
        checked = list(verify(run, 1))
        assert [each.findings for each in checked if each.findings] == []
        assert sum(each.equal for each in checked) == 3


def forged(data: bytes, image_format: str) -> bytes:
    """The first picture with another source in its mark; its pixels, and all checksums of its format, are whole."""
    mark = MARKS.of(typed_row(0, prompt="a fox", negative_prompt=None)).xmp
    other = mark.replace(b"trainedAlgorithmicMedia", b"digitalCaptureMediaFile")
    if image_format == "png":
        head = b"XML:com.adobe.xmp\0\0\0\0\0"
        mark, other = (_chunk(b"iTXt", head + each) for each in (mark, other))
    assert data.count(mark) == 1
    return data.replace(mark, other)


@pytest.mark.parametrize("image_format", FORMATS)
def test_a_tampered_picture_is_told_by_its_hash_and_by_its_signature(
    tmp_path: Path, signed: Provenance, image_format: str
) -> None:
    run = marked_run(tmp_path / "run", signed, "files", image_format)
    first = manifest(run)[0]
    data = forged(run.read(first["uri"]), image_format)
    run.write(first["uri"], data)
    assert seen(run) == {("image_wrong_hash", "r0000")}
    assert c2pa.Reader(FORMATS[image_format], io.BytesIO(data)).get_validation_state() == "Invalid"
    tell(run, data)  # and its manifest, too
    assert seen(run) == {("signature_invalid", "r0000")}


def test_a_picture_without_its_signature_is_told_with_full_alone(tmp_path: Path, signed: Provenance) -> None:
    run = marked_run(tmp_path / "run", signed)
    row = typed_row(0, prompt="a fox", negative_prompt=None)
    tell(run, encode_image(picture(row).image, "png", MARKS.of(row)))
    assert seen(run) == {("signature_invalid", "r0000")}
    assert seen(run, 0.999) == set()


def test_a_certificate_that_ran_out_since_is_told_and_signed_anew_by_repair(
    tmp_path: Path, signed: Provenance, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = marked_run(tmp_path / "run", signed)
    before, data = manifest(run), stored(run)
    monkeypatch.setattr(
        "pipelines.integrity.images.signature_fault",
        lambda found, media_type: (
            "the signature does not hold: signingCredential.expired" if found in data.values() else None
        ),
    )
    (checked,) = [each for each in verify(run, 1) if each.shard]
    assert [finding.kind for finding in checked.findings] == ["signature_invalid"] * 3
    order = RepairPlanner(read_plan(run)).order(SHARD, checked.findings)
    assert order is not None
    (place,) = run.shard_index(1).to_pylist()
    repair = order.repaired_shard(run, place["part"], place["row_group"], read_plan(run).manifest_schema)
    replace_manifest(run, claim(run).id, SHARD, repair.manifest(rendered(run, list(repair.again), signed)))
    after = manifest(run)
    assert {row["id"]: row["sha256"] for row in after} == {row["id"]: row["sha256"] for row in before}
    assert not {row["signed_sha256"] for row in after} & {row["signed_sha256"] for row in before}
    assert {kind for kind, _ in seen(run)} == {"attempt_orphan"}


def test_manifests_without_the_new_columns_are_read_as_before(tmp_path: Path) -> None:
    run = marked_run(tmp_path / "run", Provenance())
    table = run.read_manifest(SHARD).drop_columns(["signed_bytes", "signed_sha256"])
    run.write(manifest_key(SHARD), parquet_bytes([table]))
    document = run.read_plan(1)
    run.write("plan/0001/plan.json", json.dumps(document | {"manifest_schema": schema_to_json(table.schema)}).encode())
    assert seen(run) == set()
    assert len(stored(run)) == 3


def test_threads_share_a_signer(signed: Provenance) -> None:
    assert signed.signer is not None
    image = encode_image(picture(typed_row(1)).image, "png")
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: signed.signer.sign(image, "image/png"), range(64)))  # type: ignore[union-attr]
    assert len(set(made)) == 64
    assert {signature_fault(data, "image/png") for data in made} == {None}


@pytest.mark.parametrize("kind", ["P-256", "P-384", "Ed25519", "RSA"])
def test_kinds_of_keys(tmp_path: Path, kind: str) -> None:
    check_signing(SigningConfig(**write_chain(tmp_path, kind=kind)))


def test_a_key_in_the_older_form_is_taken_too(tmp_path: Path) -> None:
    paths = write_chain(tmp_path)
    key = serialization.load_pem_private_key(Path(paths["private_key"]).read_bytes(), None)
    form = serialization.PrivateFormat.TraditionalOpenSSL
    Path(paths["private_key"]).write_bytes(
        key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    )
    check_signing(SigningConfig(**paths))


def test_key_and_certificate_may_be_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = chain()
    monkeypatch.setenv(CERTIFICATE_ENV, certificate)
    monkeypatch.setenv(KEY_ENV, key)
    check_signing(SigningConfig())
    paths = write_chain(tmp_path)
    monkeypatch.setenv(CERTIFICATE_ENV, paths["certificate"])
    monkeypatch.setenv(KEY_ENV, paths["private_key"])
    check_signing(SigningConfig())


def encrypted(paths: dict[str, str]) -> None:
    key = serialization.load_pem_private_key(Path(paths["private_key"]).read_bytes(), None)
    locked = serialization.BestAvailableEncryption(b"word")
    form = serialization.PrivateFormat.PKCS8
    Path(paths["private_key"]).write_bytes(key.private_bytes(serialization.Encoding.PEM, form, locked))


def issuer_first(paths: dict[str, str]) -> None:
    text = Path(paths["certificate"]).read_text()
    parts = [f"{part}-----END CERTIFICATE-----\n" for part in text.split("-----END CERTIFICATE-----\n") if part]
    Path(paths["certificate"]).write_text("".join(reversed(parts)))


REFUSED: dict[str, tuple[dict[str, Any], Callable[[dict[str, str]], object], str]] = {
    "expired": ({"days": (-9, -1)}, lambda paths: None, "the certificate expired on 20"),
    "not yet valid": ({"days": (1, 9)}, lambda paths: None, "the certificate is not valid before 20"),
    "no right to sign": ({"signs": False}, lambda paths: None, "has no right to sign: it needs the key usage"),
    "no purpose": ({"purposes": ()}, lambda paths: None, "has no right to sign: it needs the key usage"),
    "a server's purpose": ({"purposes": (ExtendedKeyUsageOID.SERVER_AUTH,)}, lambda paths: None, "certificate"),
    "another curve": ({"kind": "secp256k1"}, lambda paths: None, "C2PA takes keys of P-256"),
    "another's key": (
        {},
        lambda p: Path(p["private_key"]).write_text(chain()[1]),
        "private_key is not the certificate's",
    ),
    "issuer first": ({}, issuer_first, "the private_key is not the certificate's: the signer's certificate must"),
    "encrypted": ({}, encrypted, "the private_key is encrypted"),
    "no key": ({}, lambda p: Path(p["private_key"]).write_text("secret words"), "the private_key is no key in PEM"),
    "no chain": ({}, lambda p: Path(p["certificate"]).write_text("words"), "the certificate is no PEM chain"),
    "missing": ({}, lambda p: os.remove(p["private_key"]), "private_key.pem cannot be read: No such file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_sign_is_refused_in_one_line_without_its_secret(tmp_path: Path, case: str) -> None:
    options, spoil, said = REFUSED[case]
    paths = write_chain(tmp_path, **options)
    secret = Path(paths["private_key"]).read_text().splitlines()[1]
    spoil(paths)
    with pytest.raises(SigningError) as error:
        check_signing(SigningConfig(**paths))
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert secret not in str(error.value)
    assert "secret words" not in str(error.value)


def test_a_key_without_the_right_to_read_it() -> None:
    as_root = os.geteuid() == 0  # who may read all: then the test is nobody for a moment
    with tempfile.TemporaryDirectory() as folder:
        paths = write_chain(Path(folder))
        os.chmod(folder, 0o755)
        os.chmod(paths["private_key"], 0)
        try:
            if as_root:
                os.seteuid(65534)
            with pytest.raises(SigningError, match=r"^the private_key at .*\.pem cannot be read: Permission denied"):
                check_signing(SigningConfig(**paths))
        finally:
            if as_root:
                os.seteuid(0)


def test_nothing_named_and_nothing_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CERTIFICATE_ENV, raising=False)
    with pytest.raises(SigningError, match=f"no certificate: set provenance.c2pa.certificate .* or {CERTIFICATE_ENV}"):
        check_signing(SigningConfig())


def test_without_the_package_it_is_named(config: SigningConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signing, "c2pa", None)
    for call in (lambda: check_signing(config), lambda: signature_fault(b"", "image/png")):
        with pytest.raises(SigningError, match="c2pa-python: pip install"):
            call()


def test_a_key_is_in_no_representation(config: SigningConfig) -> None:
    found = read_credentials(config)
    assert found.key.splitlines()[1] not in repr(found)
    assert found.key.splitlines()[1] not in repr(config)


TSA = """\
[tsa]
default_tsa = tsa_config
[tsa_config]
serial = {folder}/serial
crypto_device = builtin
signer_cert = {folder}/certificate.pem
certs = {folder}/certificate.pem
signer_key = {folder}/private_key.pem
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256, sha384, sha512
accuracy = secs:1
ordering = yes
tsa_name = no
ess_cert_id_chain = no
"""


@contextmanager
def time_stamps(folder: Path) -> Iterator[tuple[str, list[int]]]:
    """(URL of a time stamp server, which is OpenSSL's; its answers so far)."""
    write_chain(folder, kind="RSA", purposes=(ExtendedKeyUsageOID.TIME_STAMPING,), critical=True)
    (folder / "tsa.cnf").write_text(TSA.format(folder=folder))
    (folder / "serial").write_text("01\n")
    answers: list[int] = []

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            (folder / "query").write_bytes(self.rfile.read(int(self.headers["Content-Length"])))
            command = ["openssl", "ts", "-reply", "-config", "tsa.cnf", "-queryfile", "query", "-out", "reply"]
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
            self.send_response(200)
            self.send_header("Content-Type", "application/timestamp-reply")
            self.end_headers()
            self.wfile.write((folder / "reply").read_bytes())
            answers.append(1)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", answers
    finally:
        server.shutdown()
        server.server_close()


def test_a_time_stamp_is_asked_for_and_kept(tmp_path: Path) -> None:
    with time_stamps(tmp_path / "tsa") as (url, answers):
        given = SigningConfig(**write_chain(tmp_path / "keys"), timestamps=url)
        check_signing(given)
        assert answers == []  # the check before the start needs no server
        data = Signer(read_credentials(given)).sign(encode_image(picture(typed_row(1)).image, "png"), "image/png")
        assert answers == [1]
    reader = c2pa.Reader("image/png", io.BytesIO(data))
    assert reader.get_validation_state() == "Valid"
    assert reader.get_active_manifest()["signature_info"]["time"]


def test_a_time_stamp_server_that_is_away_ends_the_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signing, "PAUSES_S", (0.0, 0.0))
    given = SigningConfig(**write_chain(tmp_path / "keys"), timestamps="http://127.0.0.1:9/")
    provenance = load_provenance(ProvenanceConfig(MARKS, given))
    run = RunFolder(str(tmp_path / "run"))
    with pytest.raises(SigningError, match="a picture could not be signed"):
        rendered(run, [typed_row(i) for i in range(3)], provenance)
    assert list(run.walk("images")) == []
