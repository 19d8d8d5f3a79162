"""What processes on several machines share: facts in the database, files in an artifact store.

Both are Optuna's. A file is written under a name of its own that nobody has seen yet; then one
fact, which a database changes at once or not at all, points to it. So a reader finds the old file
or the whole new one, whoever is killed, and nothing is ever locked in a folder or a bucket.
"""

import contextlib
import importlib
import io
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import optuna

from advisor.tune.distributed.database import open_storage, retry_transient
from strategies.core.errors import StorageError

if TYPE_CHECKING:
    from optuna.artifacts._protocol import ArtifactStore

S3 = "s3://"
_RUN = "run"
_RETRIES = 3


class Artifacts:
    """A folder, or ``s3://BUCKET/PREFIX``: files by names that are made here.

    Raises
    ------
    StorageError
        If nothing can be written there, or the extra for S3 is not installed.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._prefix = ""
        self._errors: tuple[type[Exception], ...] = (OSError,)
        with self._telling("used"):
            self._store = self._bucket() if name.startswith(S3) else self._folder()
        self.remove(self.write(io.BytesIO(b"")))  # what cannot be written is better known now

    def _folder(self) -> "ArtifactStore":
        Path(self.name).mkdir(parents=True, exist_ok=True)
        return optuna.artifacts.FileSystemArtifactStore(self.name)

    def _bucket(self) -> "ArtifactStore":
        bucket, _, prefix = self.name.removeprefix(S3).partition("/")
        if not bucket:
            raise StorageError(
                f"--artifacts {self.name} names no bucket. Give s3://BUCKET/PREFIX."
            )
        try:
            boto3 = importlib.import_module("boto3.exceptions")
            botocore = importlib.import_module("botocore.exceptions")
        except ImportError as error:
            raise StorageError(
                f"--artifacts {self.name} needs an extra: pip install 'tl-advisor[s3]'."
            ) from error
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._errors = (boto3.Boto3Error, botocore.BotoCoreError, botocore.ClientError, OSError)
        return optuna.artifacts.Boto3ArtifactStore(bucket)

    def write(self, file: BinaryIO) -> str:
        """Write a file; return what it is called there."""
        name = f"{self._prefix}{uuid.uuid4()}"
        with self._telling("written"):
            self._store.write(name, file)
        return name

    def read(self, name: str, path: Path) -> None:
        """Copy a file to `path`, whole or not at all.

        Raises
        ------
        optuna.artifacts.exceptions.ArtifactNotFound
            If it is not there.
        """
        part = path.with_name(path.name + ".part")
        with self._telling("read"):
            with self._store.open_reader(name) as reader, part.open("wb") as file:
                shutil.copyfileobj(reader, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)

    def remove(self, name: str) -> None:
        """Delete a file; one that is gone already is no error."""
        with (
            self._telling("written"),
            contextlib.suppress(optuna.artifacts.exceptions.ArtifactNotFound),
        ):
            self._store.remove(name)

    @contextlib.contextmanager
    def _telling(self, done: str) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            raise StorageError(f"--artifacts {self.name} cannot be {done}: {error}") from error


class Board:
    """What all processes of a run see: facts by name, and files that facts point to.

    The facts are attributes of a study of its own, which has no trials: "mine-1a2b3c4d/run".

    Parameters
    ----------
    storage
        SQLAlchemy's name of the database of the trials.
    prefix
        What the names of the run's studies begin with: "mine-1a2b3c4d/".
    new
        Whether to put it up where there is none.

    Raises
    ------
    StorageError
        If there is none, or database or store cannot be used.
    """

    def __init__(
        self,
        storage: str,
        prefix: str,
        artifacts: str,
        *,
        heartbeat_s: int = 10,
        new: bool = False,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.prefix = prefix
        self._storage = open_storage(storage, heartbeat_s)
        names = retry_transient(lambda: optuna.get_all_study_names(self._storage))
        if not new and prefix + _RUN not in names:
            known = sorted(name.removesuffix(f"/{_RUN}") for name in names if f"/{_RUN}" in name)
            raise StorageError(
                f"The database knows of no run {prefix.rstrip('/')!r} that shares artifacts. "
                f"It knows: {', '.join(known) or 'none'}."
            )
        self.artifacts = Artifacts(artifacts)
        self._study = retry_transient(
            partial(
                optuna.create_study,
                study_name=prefix + _RUN,
                storage=self._storage,
                load_if_exists=True,
            )
        )

    def fact(self, name: str) -> Mapping[str, Any] | None:
        """Return a fact, or None."""
        found: Mapping[str, Any] | None = retry_transient(lambda: self._study.user_attrs).get(name)
        return found

    def set(self, name: str, fact: Mapping[str, Any] | None) -> None:
        """Change a fact, at once for all."""
        retry_transient(lambda: self._study.set_user_attr(name, fact))

    def put(self, name: str, path: Path, about: Mapping[str, Any] | None = None) -> None:
        """Share a file in the place of the one that a fact points to, and change the fact."""
        before = self.fact(name)
        with path.open("rb") as file:
            self.set(name, {**(about or {}), "file": self.artifacts.write(file)})
        self._remove(before)

    def get(self, name: str, path: Path) -> bool:
        """Fetch the file that a fact points to; False if there is none."""
        for _ in range(_RETRIES):  # it may be replaced between the two looks
            found = self.fact(name)
            if found is None or "file" not in found:
                return False
            with contextlib.suppress(optuna.artifacts.exceptions.ArtifactNotFound):
                self.artifacts.read(found["file"], path)
                return True
        return False

    def drop(self, name: str) -> None:
        """Delete the file that a fact points to; what else the fact says stays."""
        found = self.fact(name)
        if found is not None and "file" in found:
            self.set(name, {k: v for k, v in found.items() if k != "file"} or None)
            self._remove(found)

    def clear(self) -> None:
        """Delete all files, once the run is over."""
        for name in retry_transient(lambda: self._study.user_attrs):
            self.drop(name)

    def take_down(self) -> None:
        """Forget all facts: the run could not even begin."""
        retry_transient(
            lambda: optuna.delete_study(study_name=self._study.study_name, storage=self._storage)
        )

    def _remove(self, fact: Mapping[str, Any] | None) -> None:
        if fact is not None and "file" in fact:
            self.artifacts.remove(fact["file"])
