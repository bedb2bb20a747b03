"""A store that several machines share, at any fsspec address; each keeps its own folder as a read-through cache."""

import shutil
from pathlib import Path

import fsspec

from tasks.mechanism.store import Manifest, Store, digest_directory, list_files


class Mirror:
    """Artifacts and manifests under one address, laid out as in the local store."""

    def __init__(self, address: str) -> None:
        """Connect.

        Raises:
            ValueError: the address has an unknown protocol or cannot be reached.
        """
        try:
            self.files, self.root = fsspec.core.url_to_fs(address)
            self.files.makedirs(self.root, exist_ok=True)
        except (ValueError, ImportError, OSError) as error:
            raise ValueError(
                f"The shared store {address} cannot be used: {error}. Expected a folder or an fsspec address such as "
                "s3://bucket/folder, with its package installed (pip install 'bessemer[s3]') and credentials set."
            ) from error

    def push(self, store: Store, manifest: Manifest) -> None:
        """Upload an artifact, then its manifest: whoever sees the manifest finds the bytes."""
        target = f"{self.root}/objects/{manifest.digest}"
        path = store.objects / manifest.digest
        if not self.files.exists(f"{target}.complete"):
            for file in list_files(path):
                name = file.relative_to(path).as_posix()
                self.files.makedirs(f"{target}/{name}".rpartition("/")[0], exist_ok=True)
                self.files.put_file(str(file), f"{target}/{name}")
            # Last: object stores rename no folder, so an upload that was cut off would look whole.
            self.files.pipe_file(f"{target}.complete", b"")
        local = store.manifest_path(manifest.stage, manifest.key)
        for file in (local.with_suffix(".curve.jsonl"), local):  # the manifest last: it makes the key a hit
            if file.exists():
                self.files.makedirs(f"{self.root}/keys/{manifest.stage}", exist_ok=True)
                self.files.put_file(str(file), f"{self.root}/keys/{manifest.stage}/{file.name}")

    def look(self, stage: str, key: str) -> Manifest | None:
        """The manifest of this key, if the mirror holds its artifact too; brings nothing home."""
        remote = f"{self.root}/keys/{stage}/{key}.json"
        if not self.files.exists(remote):
            return None
        manifest = Manifest.model_validate_json(self.files.cat_file(remote))
        return manifest if self.files.exists(f"{self.root}/objects/{manifest.digest}.complete") else None

    def pull(self, store: Store, stage: str, key: str) -> Manifest | None:
        """Bring an artifact and its manifest into the local store; None where the mirror lacks it or holds damage."""
        manifest = self.look(stage, key)
        # Bytes first, as in push: a manifest without them would be reported as damage.
        if manifest is None or not self._bring_object(store, manifest.digest):
            return None
        remote = f"{self.root}/keys/{stage}/{key}"
        curve = store.manifest_path(stage, key).with_suffix(".curve.jsonl")
        if self.files.exists(f"{remote}.curve.jsonl"):
            curve.parent.mkdir(parents=True, exist_ok=True)
            self.files.get_file(f"{remote}.curve.jsonl", str(curve))
        store.record(manifest)
        return manifest

    def _bring_object(self, store: Store, digest: str) -> bool:
        """Download to one side, and publish only what has the digest that was asked for.

        Under a lock: gc removes unfinished work that nobody holds, and two stages that need the same bytes take turns.
        """
        with store.lock("mirror", digest):
            aside = store.scratch("mirror", digest)
            shutil.rmtree(aside)  # what a download that was cut off left
            intact = self._download(digest, aside) and digest_directory(aside)[0] == digest
            if intact:
                store.publish(aside)
            shutil.rmtree(aside, ignore_errors=True)
        return intact

    def _download(self, digest: str, folder: Path) -> bool:
        """Whether there was something, and all of it belongs into the folder: a name may not lead out of it."""
        source = f"{self.root}/objects/{digest}"
        for name in self.files.find(source):
            target = folder / name.rpartition(f"objects/{digest}/")[2]  # the rest of its address differs by protocol
            if not target.resolve().is_relative_to(folder.resolve()):
                return False
            target.parent.mkdir(parents=True, exist_ok=True)
            self.files.get_file(name, str(target))
        return folder.is_dir()
