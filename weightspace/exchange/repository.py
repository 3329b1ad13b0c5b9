"""Repositories on the Hub: names that can be one, and failures of its client as one line with the way out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

# HTTPError of the HTTP library that the installed release uses, which differs between releases.
from huggingface_hub.errors import HFValidationError, HTTPError, LocalTokenNotFoundError  # type: ignore[attr-defined]
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented, but not in an `__all__`


def is_repository(repo: str) -> bool:
    """Whether `repo` can be the name of a repository, OWNER/NAME."""
    try:
        validate_repo_id(repo)
    except HFValidationError:
        return False
    return repo.count("/") == 1


def refuse_repository(repo: str, option: str = "push") -> None:
    """Raise ValueError unless `repo`, the value of `option`, can be the name of a repository."""
    if not is_repository(repo):
        raise ValueError(
            f"`{option}` (={repo!r}) is no name of a repository; expected OWNER/NAME, such as me/zoo, each of letters, "
            "digits, '-', '_' and '.'."
        )


def refuse_license(license: str) -> None:
    """Raise ValueError unless `license` looks like an identifier of the Hub."""
    if not re.fullmatch(r"[a-z0-9.+-]+", license):
        raise ValueError(f"`license` (={license!r}) must be an identifier of the Hub, such as apache-2.0 or cc-by-4.0.")


@contextmanager
def reaching(failed: str, *, writes: bool) -> Iterator[None]:
    """Turn a failure of the Hub's client into a ValueError of one line that begins with `failed`."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, HTTPError) as error:
        # Without a network the client raises errors of its HTTP library, which has changed between releases.
        reason = (str(error).strip() or type(error).__name__).split("\n")[0].rstrip(".")
        way_out = _way_out(error, writes)
        raise ValueError(f"{failed}: {reason}. {way_out} and run the same command again.") from error


def _way_out(error: Exception, writes: bool) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403) or isinstance(error, LocalTokenNotFoundError):
        # A repository that is not there has the status of one that may not be read.
        login = "Log in by `hf auth login` with a token that may write there"
        return login if writes else "Make sure of its name, log in by `hf auth login` if it is private,"
    if status == 404:
        return "Make sure that OWNER is you or an organisation of yours" if writes else "Make sure of its name"
    return "Make sure that the Hub can be reached"
