"""Upload of an exported classifier to the Hugging Face hub."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils._validators import validate_repo_id

from advisor.report.files import CARD_NAME
from strategies.core.atomic_files import write_text
from strategies.core.errors import TransferError

_HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
"""Base of all errors of the hub's HTTP client, also of those without an answer."""


@dataclass(frozen=True)
class Repository:
    """A repository of the hub: its name, OWNER/NAME, and whether everybody may read it."""

    name: str
    is_public: bool = False

    def __post_init__(self) -> None:
        """Check the name.

        Raises
        ------
        TransferError
            If it is none.
        """
        try:
            validate_repo_id(self.name)
            if self.name.count("/") != 1:
                raise ValueError("it needs one slash.")
        except ValueError as error:
            raise TransferError(
                f"--push-to-hub must be OWNER/NAME, got {self.name!r}: {error}"
            ) from error


def push(target: Path, card: str, repository: Repository) -> str:
    """Upload a file, or the files of a folder, with a model card; return the address.

    The repository is created if it does not exist. The token is the one of ``hf auth login``, or
    ``HF_TOKEN``. ``HF_ENDPOINT`` names another hub.

    Raises
    ------
    TransferError
        If the hub cannot be reached or refuses, or if a private repository is asked for, and it
        exists and is public.
    """
    api = HfApi()
    with tempfile.TemporaryDirectory() as folder:
        staged = Path(folder) / "repository"
        if target.is_dir():
            shutil.copytree(target, staged)
        else:
            staged.mkdir()
            shutil.copy2(target, staged)
        write_text(staged / CARD_NAME, card)
        try:
            private = not repository.is_public
            url = api.create_repo(repository.name, private=private, exist_ok=True)
            if private and not api.model_info(repository.name).private:
                raise TransferError(
                    f"{repository.name} exists on the hub and is public. Nothing was uploaded. "
                    "Give --public to publish the classifier there, or another name."
                )
            api.upload_folder(
                repo_id=repository.name, folder_path=staged, commit_message="Upload classifier"
            )
        except (OSError, ValueError, _HTTP_ERROR) as error:
            reason = (str(error).strip() or repr(error)).splitlines()[0].rstrip(".")
            raise TransferError(
                f"{repository.name} cannot be pushed to {api.endpoint}: {reason}. Check the "
                f"network and the token (hf auth login). The export is at {target}; upload it "
                f"later with hf upload {repository.name} {target}."
            ) from error
    return str(url)
