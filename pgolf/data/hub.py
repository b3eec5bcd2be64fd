"""One dataset repository on the hub, through huggingface_hub, which no other module imports.

It lists, authenticates, and streams with retries. Its own downloader starts a file over after an interruption (since
2.4 every process has a temporary file of its own); hence its `http_get`, which takes an offset.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pgolf.data.hub_files import RemoteFile
from pgolf.errors import InputError

KEPT = "complete files are kept, and the same command goes on where it was"


class Hub:
    """One dataset repository through huggingface_hub, with its errors as one message each."""

    def __init__(self, repo: str) -> None:
        try:
            from huggingface_hub import constants
        except ImportError:
            raise InputError("package huggingface_hub is missing: pip install huggingface_hub") from None
        self.repo = repo
        self.endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")

    def listing(self, revision: str | None) -> tuple[str, list[RemoteFile]]:
        """The commit of a revision (None: the main branch), and all files of it."""
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        api = HfApi(endpoint=self.endpoint)
        with self._explained(revision):
            commit = api.repo_info(self.repo, repo_type="dataset", revision=revision).sha
            assert commit is not None
            tree = api.list_repo_tree(self.repo, repo_type="dataset", revision=commit, recursive=True)
            files = [entry for entry in tree if isinstance(entry, RepoFile)]
        return commit, [
            RemoteFile(file.path, file.size, file.lfs.sha256 if file.lfs else None, file.blob_id) for file in files
        ]

    def download(self, remote: RemoteFile, revision: str, partial: Path, received: Callable[[int], None]) -> None:
        """Append to `partial` what is missing of a file."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        url = hf_hub_url(self.repo, remote.path, repo_type="dataset", revision=revision, endpoint=self.endpoint)
        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
        with self._explained(revision, remote), partial.open("ab") as file:
            http_get(
                url,
                file,
                resume_size=file.tell(),
                headers=headers,
                expected_size=remote.size,
                tqdm_class=_bar(received),
            )

    @contextlib.contextmanager
    def _explained(self, revision: str | None, remote: RemoteFile | None = None) -> Iterator[None]:
        """Turn the library's errors into InputError."""
        from huggingface_hub import errors

        where = f"{self.repo}" + (f" at revision {revision}" if revision else "")
        try:
            yield
        except errors.HFValidationError as error:
            raise InputError(f"--repo is {self.repo!r}: it must be OWNER/NAME ({error})") from None
        except errors.GatedRepoError:
            raise InputError(
                f"{self.repo} is gated: accept its terms on the hub and log in (`hf auth login`)"
            ) from None
        except errors.RepositoryNotFoundError:
            raise InputError(f"the hub has no dataset {self.repo}, or it is private: check --repo, or log in") from None
        except errors.RevisionNotFoundError:
            raise InputError(f"{self.repo} has no revision {revision!r}: check --revision") from None
        except errors.OfflineModeIsEnabled:
            raise InputError("HF_HUB_OFFLINE forbids downloads: unset it") from None
        except errors.HfHubHTTPError as error:
            what = f"{remote.path} of {where}" if remote else where
            raise InputError(f"the hub does not give {what} ({_first_line(error)}): {KEPT}") from None
        except errors.HTTPError as error:  # type: ignore[attr-defined]  # the base of all errors of the connection
            raise InputError(
                f"{self.endpoint} cannot be reached ({_first_line(error)}): check the network; {KEPT}"
            ) from None
        except OSError as error:
            if error.errno is not None:  # the disk's, not the hub's
                raise
            assert remote is not None
            raise InputError(f"the hub cut {remote.path} of {where} short ({_first_line(error)}): {KEPT}") from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _bar(received: Callable[[int], None]) -> Any:
    """The class that `http_get` reports to instead of a progress bar of its own."""

    class Bar:
        def __init__(self, **options: Any) -> None:
            pass

        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *error: Any) -> None:
            pass

        def update(self, size: int) -> None:
            received(size)

    return Bar
