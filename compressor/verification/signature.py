"""The signature of an artifact: who made it, as the OpenSSF `model-signing` package writes and checks it.

Hashes in an artifact find damage; whoever forges an artifact renews them. Only a signature by a key that the forger
does not have tells one from the other. Keys are local files (elliptic curves, PEM); the network is not asked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compressor.errors import ResourceError, UsageError
from compressor.storage.artifact import BESIDE, SIGNATURE
from compressor.verification.verdict import Check, yes

CHECK = "files.signature"


def open_signer(key: Path) -> Any:
    """Return what signs with a private key; nothing is signed yet.

    Raises:
        UsageError: the package is not installed, or the key cannot be used.
    """
    try:
        import model_signing
    except ImportError as error:
        raise _not_installed("--sign") from error
    try:
        config = model_signing.signing.Config().use_elliptic_key_signer(private_key=key)
    except Exception as error:  # the package raises what its libraries raise
        raise _unusable("--sign", key, "private", error) from error
    return config.set_hashing_config(_covering(model_signing))


def sign(folder: Path, signer: Any) -> None:
    """Sign every file of an artifact; the signature lies in it as `model.sig`.

    Raises:
        ResourceError: it cannot be written.
    """
    try:
        signer.sign(folder, folder / SIGNATURE)
    except OSError as error:
        raise ResourceError(f"{folder.name}: cannot write {SIGNATURE}: {error.strerror}") from error


def check_signature(folder: Path, key: Path) -> Check:
    """Check that every file of an artifact is the one that the owner of a key has signed, and that there is no other.

    Raises:
        UsageError: the package is not installed, or the public key cannot be used.
    """
    try:
        import model_signing
    except ImportError as error:
        raise _not_installed("--key") from error
    try:
        config = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=key)
    except Exception as error:
        raise _unusable("--key", key, "public", error) from error
    file = folder / SIGNATURE
    if file.is_symlink() or not file.is_file():
        return yes(CHECK, False, f"there is no {SIGNATURE}: the artifact is not signed")
    try:
        config.set_hashing_config(_covering(model_signing)).verify(folder, file)
    except Exception as error:  # of a damaged signature as well, whatever a library makes of it
        reason = (str(error).strip() or "the key is not the one that signed it").splitlines()[0]
        return yes(CHECK, False, f"{SIGNATURE} does not vouch for these files: {reason}")
    return yes(CHECK, True, "")


def _covering(model_signing: Any) -> Any:
    """Return the choice of files: all but the signature and what version control keeps; no link is followed."""
    paths = [SIGNATURE, *BESIDE]
    return model_signing.hashing.Config().set_ignored_paths(paths=paths).set_allow_symlinks(False)


def _not_installed(option: str) -> UsageError:
    return UsageError(f"{option}: signing needs the package model-signing", hint="pip install 'compressor[sign]'")


def _unusable(option: str, key: Path, kind: str, error: Exception) -> UsageError:
    reason = getattr(error, "strerror", None) or str(error).splitlines()[0] or type(error).__name__
    return UsageError(
        f"{option} {key}: not a {kind} key that can be used: {reason}",
        hint="Give an elliptic-curve key in PEM without a password: openssl ecparam -name prime256v1 -genkey -noout"
        " -out key.pem; openssl ec -in key.pem -pubout -out key.pub",
    )
