"""A signature vouches for every file of an artifact; without the package, or with a wrong key, the user is told."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from compressor.errors import UsageError
from compressor.machine.progress import NullProgress
from compressor.verification.signature import check_signature, open_signer, sign


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A folder with the pairs `mine` and `other` (.pem and .pub), and a key of a kind that is not taken (`rsa.pem`)."""
    pytest.importorskip("model_signing", reason="the extra `sign` is not installed; it brings thirty packages")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    def private(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
        return key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    folder = tmp_path / "keys"
    folder.mkdir()
    for name in ("mine", "other"):
        key = ec.generate_private_key(ec.SECP256R1())
        (folder / f"{name}.pem").write_bytes(private(key))
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        (folder / f"{name}.pub").write_bytes(public)
    (folder / "rsa.pem").write_bytes(private(rsa.generate_private_key(65537, 2048)))
    return folder


@pytest.fixture
def signed(tmp_path: Path, keys: Path) -> Path:
    """A signed folder that has got its name afterwards, as an artifact does."""
    folder = tmp_path / "artifact"
    (folder / "verification").mkdir(parents=True)
    for name in ("model.onnx", "README.md", "report.json", "verification/reference.safetensors"):
        (folder / name).write_text(name)
    sign(folder, open_signer(keys / "mine.pem"))
    return folder.rename(tmp_path / "renamed")


def test_a_signature_holds_for_the_folder_as_it_was(signed: Path, keys: Path) -> None:
    assert check_signature(signed, keys / "mine.pub").passed
    (signed / ".git").mkdir()
    (signed / ".git" / "HEAD").write_text("main")
    assert check_signature(signed, keys / "mine.pub").passed
    other = check_signature(signed, keys / "other.pub")
    assert not other.passed and "model.sig does not vouch" in other.reason


@pytest.mark.parametrize(
    "alter",
    [
        *(
            lambda folder, name=name: (folder / name).write_text("x")
            for name in ("model.onnx", "README.md", "report.json", "verification/reference.safetensors", "model.sig")
        ),
        lambda folder: (folder / "model.sig").write_text("{}"),
        lambda folder: (folder / "model.sig").unlink(),
        lambda folder: (folder / "model.onnx").unlink(),
        lambda folder: (folder / "numpy.py").write_text("x"),
        lambda folder: (folder / "link").symlink_to("model.onnx"),
    ],
)
def test_any_change_is_seen(signed: Path, keys: Path, alter: Callable[[Path], object]) -> None:
    alter(signed)
    check = check_signature(signed, keys / "mine.pub")
    assert not check.passed and "model.sig" in check.reason and "\n" not in check.reason


def test_keys_that_cannot_be_used(signed: Path, keys: Path) -> None:
    for name in ("none.pem", "mine.pub", "rsa.pem"):
        with pytest.raises(UsageError, match=f"--sign .*{name}: not a private key") as caught:
            open_signer(keys / name)
        assert "openssl" in str(caught.value.hint)
    with pytest.raises(UsageError, match="--key .*: not a public key"):
        check_signature(signed, keys / "mine.pem")


def test_without_the_package_the_user_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    for call in (lambda: open_signer(tmp_path / "key"), lambda: check_signature(tmp_path, tmp_path / "key")):
        with pytest.raises(UsageError, match="needs the package model-signing") as caught:
            call()
        assert caught.value.hint == "pip install 'compressor[sign]'"


def test_nothing_is_loaded_where_the_signature_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from compressor import pipeline
    from compressor.pipeline import judge
    from compressor.verification.verdict import yes

    failed = yes("files.signature", False, "there is no model.sig: the artifact is not signed")
    monkeypatch.setattr(judge, "check_signature", lambda folder, key: failed)
    monkeypatch.setattr(judge, "run_fresh", lambda job: pytest.fail("the artifact was opened"))
    (tmp_path / "compression.json").write_text("{}")
    report = pipeline.verify(tmp_path, key=tmp_path / "key", progress=NullProgress())
    assert report["verdict"] == "failed" and [c["name"] for c in report["checks"]] == ["files.signature"]
