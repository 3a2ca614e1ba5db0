"""Adapters on a model hub: uploading one, and downloading it."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrl.clip.outside import why_not_fetched, without_waiting
from mmrl.engine.adapter import CARD, CONFIG, TENSORS, described, read_config, read_tensors
from mmrl.errors import MmrlError, UsageError, first_line
from mmrl.files import LARGEST_JSON, near_path, parse_json, read_regular, user_path
from mmrl.reports.records import RECORD_NAME, read_record

if TYPE_CHECKING:
    from huggingface_hub import HfApi

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*", re.ASCII)
MESSAGE = "Adapter of mmrl"
OWN = ("method", "backbone", "backbone_hash", "class_names", "sha256")  # in the configuration of an adapter of ours, and of no one else's
NO_LOGIN = "Log in with `hf auth login`, or put a token that may write in the environment variable HF_TOKEN."


def download(given: str) -> Path:
    """The folder of an adapter on the hub, ORG/NAME or ORG/NAME@BRANCH: only its three files, none of which is code.

    Raises:
        UsageError: it is no such name.
        MmrlError: it cannot be fetched.
    """
    name, _, revision = given.partition("@")
    if not NAME.fullmatch(name) or Path(name).parent.is_dir():  # what lies in a folder that is here is no name on a hub
        why = f"it is neither a folder that exists nor a hub name ORG/NAME.{near_path(user_path(given))}"
        raise UsageError(f"no adapter in '{given}': {why}")
    from huggingface_hub import snapshot_download

    asked = True
    try:
        with without_waiting() as asked:
            return Path(snapshot_download(name, revision=revision or None, allow_patterns=[TENSORS, CONFIG, CARD]))
    except Exception as error:
        why = f"{why_not_fetched(error, asked=asked)}.{near_path(user_path(given))}"
        raise MmrlError(f"'{given}' is no folder here, and cannot be fetched from the model hub: {why}") from error


def push(
    adapter: str | Path, name: str, *, private: bool = False, revision: str | None = None, message: str = MESSAGE, licence: str = "",
    token: str | None = None, **options: Any,
) -> str:  # fmt: skip
    """Upload the adapter in a folder to the hub's model `name`, which is made if it is not there; returns the address.

    Three files go there: trained tensors, configuration, and the model card, with the scores of the run where the folder has its record.
    No image, and no name of one. The backbone is not needed.

    Args:
        name: ORG/NAME.
        private: whether a new model is seen by its owners alone.
        revision: a branch, made if it is not there; default: the main one.
        message: of the commit.
        licence: of the adapter, for the card, as model hubs name them: "mit", "cc-by-4.0", ...
        token: of a login that may write; default: that of `hf auth login` or of HF_TOKEN.
        options: other ones of `huggingface_hub.HfApi.upload_folder`.

    Raises:
        UsageError: a bad name or licence, a `repo_type` other than "model", no adapter in the folder, no login, a model of that name that
            is something else, or that is public where `private` was asked for.
        MmrlError: the files are damaged, or the hub cannot be reached or refuses.
    """
    if not NAME.fullmatch(name):
        raise UsageError(f"'{name}' is no name on a model hub: it must be ORG/NAME, of letters, digits, '.', '_' and '-'.")
    if licence and not LICENCE.fullmatch(licence):
        raise UsageError(f"licence is '{licence}'; it must be as model hubs name it: mit, apache-2.0, cc-by-4.0, other, ...")
    if (kind := options.pop("repo_type", None)) not in (None, "model"):
        raise UsageError(f"repo_type is '{kind}', but what is uploaded is a model. Leave it out.")
    files = _files(user_path(adapter), licence)
    with _asking(name, token) as api, tempfile.TemporaryDirectory() as folder:
        _require_free(api, name, private=private)
        for each, content in files.items():
            (Path(folder) / each).write_bytes(content)
        api.create_repo(name, private=private or None, exist_ok=True)
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        done = api.upload_folder(repo_id=name, folder_path=folder, revision=revision, commit_message=message, **options)
    return str(done)


def _files(folder: Path, licence: str) -> dict[str, bytes]:
    """What is uploaded, by name: of a calibration without the names of its images."""
    config = read_config(folder)
    read_tensors(folder, config)  # a damaged adapter is not published
    trust = config.trust and config.trust.model_copy(update={"keys": ()})
    record = read_record(folder / RECORD_NAME) if (folder / RECORD_NAME).is_file() else None
    tensors = read_regular(folder / TENSORS, what="adapter")
    return {TENSORS: tensors, **described(config.model_copy(update={"trust": trust}), record, licence=licence)}


@contextmanager
def _asking(name: str, token: str | None) -> Iterator[HfApi]:
    """The hub's interface with that login, or else this computer's; what goes wrong with it becomes one message."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    if not (token or get_token()):
        raise UsageError(f"'{name}' cannot be uploaded: there is no login to the model hub. {NO_LOGIN}")
    asked = True
    try:
        with without_waiting() as asked:
            if not asked:
                raise ConnectionError
            yield HfApi(token=token or None)
    except (MmrlError, UsageError):
        raise
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status == 401:
            raise UsageError(f"'{name}' cannot be uploaded: the model hub does not accept the login. {NO_LOGIN}") from error
        if status == 403:
            owner = name.partition("/")[0]
            raise UsageError(f"'{name}' cannot be uploaded: this login may not write for '{owner}'. Name one of your own.") from error
        raise MmrlError(f"'{name}' cannot be uploaded: {first_line(error)}") from error
    except Exception as error:
        why = first_line(error) if asked else why_not_fetched(error, asked=False).rpartition("and ")[2]
        raise MmrlError(f"'{name}' cannot be uploaded: {why}.") from error


def _require_free(api: HfApi, name: str, *, private: bool) -> None:
    """Raises UsageError where the hub has a model of that name that is no adapter of ours, or is seen by others than it should."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        found = api.model_info(name)
    except RepositoryNotFoundError:
        return
    if private and not found.private:
        raise UsageError(f"'{name}' is there already, and public: private=True (--private) would not hide it. Choose another name.")
    names = {each.rfilename for each in found.siblings or ()} - {".gitattributes", "README.md"}
    if names and not (CONFIG in names and _is_ours(Path(api.hf_hub_download(name, CONFIG)))):
        listed = ", ".join(sorted(names)[:3])
        raise UsageError(f"'{name}' is there already, and is no adapter of mmrl (it has {listed}). Choose another name.")


def _is_ours(path: Path) -> bool:
    try:
        content = parse_json(read_regular(path, what="configuration", most=LARGEST_JSON))
    except ValueError:
        return False
    return isinstance(content, dict) and all(key in content for key in OWN)
