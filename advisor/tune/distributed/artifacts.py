"""Records and files that machines share: JSON in the database, files in an artifact store.

Both are Optuna's. A file is written under a new unique name. Then a JSON record, which the
database updates atomically, is changed to point to it. So a reader finds the old file or the
complete new one, whichever process is killed, and no lock is needed in a folder or a bucket.
"""

import contextlib
import importlib
import io
import shutil
import uuid
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import optuna

from advisor.tune.distributed.database import open_storage, retry_transient
from strategies.core.atomic_files import atomic_file
from strategies.core.errors import StorageError

if TYPE_CHECKING:
    from optuna.artifacts._protocol import ArtifactStore

S3 = "s3://"
_STUDY = "run"
_RETRIES = 3


class Artifacts:
    """Artifact store for files under generated names: a folder, or ``s3://BUCKET/PREFIX``.

    Raises
    ------
    StorageError
        If nothing can be written there, or the extra for S3 is not installed.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._prefix = ""
        self._errors: tuple[type[Exception], ...] = (OSError,)
        with self._storage_errors("used"):
            self._store = self._bucket() if name.startswith(S3) else self._folder()
        self.remove(self.write(io.BytesIO(b"")))  # fail now if the store cannot be written

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
        """Write a file; return its generated name in the store."""
        name = f"{self._prefix}{uuid.uuid4()}"
        with self._storage_errors("written"):
            self._store.write(name, file)
        return name

    def read(self, name: str, path: Path) -> None:
        """Copy a file from the store to `path` atomically.

        Raises
        ------
        optuna.artifacts.exceptions.ArtifactNotFound
            If the store has no such file.
        """
        with (
            self._storage_errors("read"),
            self._store.open_reader(name) as reader,
            atomic_file(path) as file,
        ):
            shutil.copyfileobj(reader, file)

    def remove(self, name: str) -> None:
        """Delete a file; a missing file is not an error."""
        with (
            self._storage_errors("written"),
            contextlib.suppress(optuna.artifacts.exceptions.ArtifactNotFound),
        ):
            self._store.remove(name)

    @contextlib.contextmanager
    def _storage_errors(self, done: str) -> Iterator[None]:
        """Raise StorageError instead of the store's own errors; `done` is a participle."""
        try:
            yield
        except self._errors as error:
            raise StorageError(f"--artifacts {self.name} cannot be {done}: {error}") from error


class SharedRecords:
    """JSON records by name that all processes of a run share, and files that records point to.

    The records are attributes of a separate study without trials: "mine-1a2b3c4d/run".

    Parameters
    ----------
    storage
        SQLAlchemy URL of the database of the trials.
    prefix
        Prefix of the names of the run's studies: "mine-1a2b3c4d/".
    artifacts
        The artifact store: a folder, or ``s3://BUCKET/PREFIX``.
    heartbeat_s
        Seconds between heartbeats.
    new
        Whether to create the study if there is none.

    Raises
    ------
    StorageError
        If there is no such run, or the database or the store cannot be used.
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
        if not new and prefix + _STUDY not in names:
            known = sorted(
                name.removesuffix(f"/{_STUDY}") for name in names if f"/{_STUDY}" in name
            )
            raise StorageError(
                f"The database has no run {prefix.rstrip('/')!r} that shares artifacts. "
                f"Its runs are: {', '.join(known) or 'none'}."
            )
        self.artifacts = Artifacts(artifacts)
        self._study = retry_transient(
            partial(
                optuna.create_study,
                study_name=prefix + _STUDY,
                storage=self._storage,
                load_if_exists=True,
            )
        )

    def get_json(self, name: str) -> Mapping[str, Any] | None:
        """Return a record, or None if there is none."""
        found: Mapping[str, Any] | None = retry_transient(lambda: self._study.user_attrs).get(name)
        return found

    def put_json(self, name: str, record: Mapping[str, Any] | None) -> None:
        """Replace a record atomically, for all processes."""
        retry_transient(lambda: self._study.set_user_attr(name, record))

    def put_file(self, name: str, path: Path, about: Mapping[str, Any] | None = None) -> None:
        """Upload a file, point a record to it, and delete the file that it pointed to before."""
        before = self.get_json(name)
        with path.open("rb") as file:
            self.put_json(name, {**(about or {}), "file": self.artifacts.write(file)})
        self._remove(before)

    def get_file(self, name: str, path: Path) -> bool:
        """Download the file that a record points to; return False if there is none."""
        for _ in range(_RETRIES):  # it may be replaced after its record was read
            found = self.get_json(name)
            if found is None or "file" not in found:
                return False
            with contextlib.suppress(optuna.artifacts.exceptions.ArtifactNotFound):
                self.artifacts.read(found["file"], path)
                return True
        return False

    def drop_file(self, name: str) -> None:
        """Delete the file that a record points to; the other keys of the record stay."""
        found = self.get_json(name)
        if found is not None and "file" in found:
            self.put_json(name, {k: v for k, v in found.items() if k != "file"} or None)
            self._remove(found)

    def drop_files(self) -> None:
        """Delete the files of all records, after the run."""
        for name in retry_transient(lambda: self._study.user_attrs):
            self.drop_file(name)

    def delete(self) -> None:
        """Delete all records of a run that could not begin."""
        retry_transient(
            lambda: optuna.delete_study(study_name=self._study.study_name, storage=self._storage)
        )

    def _remove(self, record: Mapping[str, Any] | None) -> None:
        if record is not None and "file" in record:
            self.artifacts.remove(record["file"])
