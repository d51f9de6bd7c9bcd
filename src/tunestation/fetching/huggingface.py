"""Hugging Face Hub through huggingface_hub: HF_ENDPOINT, HF_TOKEN, proxies and the stored login work as that library takes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import DatasetInfo, ModelInfo
from huggingface_hub.utils import build_hf_headers

from tunestation.errors import InputError, TunestationError
from tunestation.fetching.hubs import Address, Asked, RemoteFile
from tunestation.fetching.transport import TIMEOUT, patiently, unreachable

REMEDY = "Check the network, set HF_ENDPOINT to a mirror you can reach, or run with --offline if it was fetched before."


def resolve(asked: Asked) -> str:
    """The commit id behind `asked.revision`."""
    return _info(asked, files=False).sha


def list_files(asked: Asked) -> list[RemoteFile]:
    """The repository's files with their sizes and digests."""
    siblings = _info(asked, files=True).siblings
    return [RemoteFile(s.rfilename, s.size, s.lfs and s.lfs.sha256, None if s.lfs else s.blob_id) for s in siblings]


def address(asked: Asked, path: str) -> Address:
    """Plain HTTP address of a file."""
    return Address(hf_hub_url(asked.repo, path, repo_type=asked.kind, revision=asked.revision), build_hf_headers())


def _info(asked: Asked, files: bool) -> ModelInfo | DatasetInfo:
    def ask() -> ModelInfo | DatasetInfo:
        return HfApi().repo_info(asked.repo, repo_type=asked.kind, revision=asked.revision, files_metadata=files, timeout=TIMEOUT)

    with explained(asked):
        return patiently(ask)


@contextmanager
def explained(asked: Asked) -> Iterator[None]:
    """Turn what huggingface_hub raises into a message with the next step."""
    page = f"{constants.ENDPOINT}/{'datasets/' if asked.kind == 'dataset' else ''}{asked.repo}"
    try:
        yield
    except GatedRepoError as error:
        what = f"The {asked.kind} '{asked.repo}' is gated: it is given only to accounts that accepted its licence."
        raise InputError(what, page, "Accept the licence on that page, set HF_TOKEN to a token of that account, and run again.") from error
    except RevisionNotFoundError as error:
        what = f"The {asked.kind} '{asked.repo}' has no revision '{asked.revision}'."
        raise InputError(what, page, "Give a branch, tag or commit that the page lists under 'Files and versions'.") from error
    except RepositoryNotFoundError as error:
        what = f"There is no {asked.kind} '{asked.repo}' at {constants.ENDPOINT}, or it is private."
        raise InputError(what, "", "Check owner and name; for a private one set HF_TOKEN to a token that may read it.") from error
    except HTTPError as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
            remedy = "Set HF_TOKEN to a valid token that may read it, or unset it for public repositories."
            raise InputError(f"{constants.ENDPOINT} refuses access to the {asked}.", page, remedy) from error
        raise unreachable(error, constants.ENDPOINT, REMEDY) from error
    except ValueError as error:
        what = f"{constants.ENDPOINT} gives no usable answer for the {asked} ({str(error).splitlines()[0]})."
        raise TunestationError(what, "", "Check the name and HF_ENDPOINT, and whether a proxy's login page answers instead.") from error
