"""ModelScope through its own package (optional extra `modelscope`), which reads MODELSCOPE_ENDPOINT and MODELSCOPE_API_TOKEN."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import HTTPError

from tunestation.errors import InputError, TunestationError
from tunestation.fetching.hubs import FULL_COMMIT, Address, Asked, RemoteFile
from tunestation.fetching.transport import unreachable

REMEDY = "Check the network, or run with --offline if it was fetched before."


def resolve(asked: Asked) -> str:
    """The newest commit that touched a file which `asked.revision` holds: the listing names no other, and the files are the same."""
    entries = [entry for entry in _entries(asked) if FULL_COMMIT.fullmatch(str(entry.get("Revision")))]
    if not entries:
        raise TunestationError(f"ModelScope names no commit for the {asked}.", "", "Give a full commit id as revision.")
    return max(entries, key=lambda entry: entry.get("CommittedDate") or 0)["Revision"]


def list_files(asked: Asked) -> list[RemoteFile]:
    """The repository's files with their sizes and digests."""
    return [RemoteFile(entry["Path"], int(entry["Size"]), entry.get("Sha256") or None) for entry in _entries(asked)]


def address(asked: Asked, path: str) -> Address:
    """Plain HTTP address of a file."""
    client = _legacy_client()
    headers = {"Authorization": f"Bearer {client.token}"} if client.token else {}
    return Address(client.get_download_url(asked.repo, asked.kind, path, asked.revision), headers)


def _entries(asked: Asked) -> list[dict]:
    client = _legacy_client()
    with explained(asked):
        found = client.list_repo_files(asked.repo, asked.kind, asked.revision, recursive=True)
    return [entry for entry in found if entry.get("Type") != "tree"]


def _legacy_client():
    """The client of the web API that serves repositories; "legacy" is its name in the package, which has no other for this."""
    try:
        from modelscope_hub import HubApi
    except ModuleNotFoundError as error:
        raise InputError("ModelScope needs the package 'modelscope'.", "", "Install it: pip install modelscope") from error
    return HubApi().legacy


@contextmanager
def explained(asked: Asked) -> Iterator[None]:
    """Turn what modelscope raises, or the download itself, into a message with the next step."""
    endpoint = _legacy_client().endpoint
    from modelscope_hub import errors

    try:
        yield
    except errors.NotExistError as error:
        what = f"There is no {asked} at {endpoint}."
        raise InputError(what, "", "Check owner, name and revision; ModelScope's default branch is 'master', not 'main'.") from error
    except (errors.AuthenticationError, errors.PermissionDeniedError) as error:
        what = f"{endpoint} refuses access to the {asked}."
        remedy = "Accept its licence on its page if it has one, and set MODELSCOPE_API_TOKEN to a token of that account."
        raise InputError(what, "", remedy) from error
    except HTTPError as error:
        raise unreachable(error, endpoint, REMEDY) from error
    except errors.NetworkError as error:
        raise TunestationError(f"{endpoint} cannot be reached ({error.message}).", "", REMEDY) from error
    except errors.HubError as error:
        raise TunestationError(
            f"{endpoint} answers with an error ({error.message}).", "", "Run the same command again in a while."
        ) from error
