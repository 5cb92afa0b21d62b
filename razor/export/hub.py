"""Exports on the Hugging Face hub.

What is pushed is exactly what an export's manifest lists, and only after its checksums were found right: nothing
that happens to lie in the folder leaves the machine. A folder above several exports becomes one repository with a
folder for each format. Repositories are private unless somebody says otherwise; one that is public already is not
taken for a private one.

The token is the one that `hf auth login` or HF_TOKEN left (`huggingface_hub.get_token`). It is never asked for,
never shown, and is cut out of error texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from razor.errors import RazorError
from razor.export.manifest import MANIFEST, check_files

if TYPE_CHECKING:
    from huggingface_hub import HfApi

FRONT = "README.md"


@dataclass(frozen=True)
class Push:
    """What was pushed, or would be.

    Attributes:
        target: address of the repository, or of its branch.
        private: as it was asked for.
        files: bytes of each file, by its path in the repository.
        done: False after a dry run.
    """

    target: str
    private: bool
    files: Mapping[str, int]
    done: bool

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(self.files.values())


def push(
    folder: Path,
    repo: str,
    private: bool = True,
    dry_run: bool = False,
    revision: str | None = None,
    message: str | None = None,
) -> Push:
    """Upload an export, or all exports in a folder, to a repository of the hub, made if there is none.

    Args:
        folder: an export, or the folder above several.
        repo: NAME/REPO.
        private: whether only you can see a new repository; an existing one has to be so already, if True.
        dry_run: check everything that can be checked here, and send nothing.
        revision: branch, made if there is none; None: main.
        message: of the commit.

    Returns:
        What was sent, and where.

    Raises:
        RazorError: no export or a damaged one; a name that the hub does not have; no token; a public repository
            where a private one was asked for; whatever the hub answered.
    """
    from huggingface_hub import HfApi, constants, get_token

    check_repo(repo)
    exports = exports_in(folder)
    files = {path: local.stat().st_size for path, local in _files(exports).items()}
    branch = f"/tree/{revision}" if revision else ""
    planned = Push(
        f"{_shown(constants.ENDPOINT)}/{repo}{branch}",
        private,
        files,
        False,
    )
    if dry_run:
        return planned
    with no_secrets(token := get_token(), repo):
        if token is None:
            raise RazorError(
                "No token for the Hugging Face hub: set HF_TOKEN, or log in once with `hf auth login`; the token "
                "must be one that may write. dry_run=true needs none."
            )
        _send(HfApi(token=token), exports, planned, repo, revision, message)
    return Push(planned.target, private, files, True)


def check_repo(repo: str) -> None:
    """Raise RazorError for a name that no repository of the hub can have."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
        if repo.count("/") != 1:
            raise HFValidationError("the user or organisation comes first, then a slash")
    except HFValidationError as error:
        reason = " ".join(str(error).split())
        raise RazorError(f"repo='{repo}' is no name on the hub, as in repo=NAME/REPO: {reason}") from error


def exports_in(folder: Path) -> dict[str, tuple[dict[str, Any], Path]]:
    """Exports by their place in a repository, "" for a folder that is one: manifest and folder, checksums compared.

    Raises:
        RazorError: there is none, or a damaged one.
    """
    if (folder / MANIFEST).is_file():
        return {"": (check_files(folder), folder)}
    inner = sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))
    if not inner:
        raise RazorError(
            f"folder='{folder}' is no export and holds none (no {MANIFEST}): razor export run=RUN makes them."
        )
    return {path.name: (check_files(path), path) for path in inner}


def _files(exports: Mapping[str, tuple[dict[str, Any], Path]]) -> dict[str, Path]:
    """Where every file that is sent lies, by its path in the repository."""
    return {
        f"{place}/{name}".lstrip("/"): folder / name
        for place, (content, folder) in exports.items()
        for name in (*content["sha256"], MANIFEST)
    }


def _send(
    api: HfApi,
    exports: Mapping[str, tuple[dict[str, Any], Path]],
    planned: Push,
    repo: str,
    revision: str | None,
    message: str | None,
) -> None:
    api.create_repo(repo, private=planned.private, exist_ok=True)
    if planned.private and not api.repo_info(repo).private:
        raise RazorError(
            f"repo='{repo}' is there already and everybody can see it: nothing was sent. Say private=false to push "
            "into it, or choose another name."
        )
    if revision is not None:
        api.create_branch(repo, branch=revision, exist_ok=True)
    for place, (content, folder) in exports.items():
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            path_in_repo=place or None,
            allow_patterns=[*content["sha256"], MANIFEST],
            revision=revision,
            commit_message=message or f"Add {content['format']}, written by Razor",
        )
    if "" not in exports:
        api.upload_file(
            path_or_fileobj=front_page(exports).encode(),
            path_in_repo=FRONT,
            repo_id=repo,
            revision=revision,
            commit_message=message or "Add a front page",
        )


def front_page(exports: Mapping[str, tuple[dict[str, Any], Path]]) -> str:
    """README.md of a repository of several formats: the head of their cards, and where each one lies."""
    cards = {place: (folder / FRONT).read_text(encoding="utf-8") for place, (_, folder) in exports.items()}
    first = next(iter(cards.values()))
    head = first.split("---\n")[1] if first.startswith("---\n") else ""
    about = next(iter(exports.values()))[0]["about"]
    title = "-".join(about[key] for key in ("model", "quant") if key in about) or "A compressed model"
    lines = [f"- [{place}]({place}/{FRONT}): {content['format']}" for place, (content, _) in exports.items()]
    front = f"---\n{head}---\n\n" if head else ""
    return (
        f"{front}# {title}\n\nOne model in {len(exports)} formats, each with a card of its own:\n\n"
        + "\n".join([*lines, ""])
    )


@contextmanager
def no_secrets(token: str | None, repo: str) -> Iterator[None]:
    """Turn what the hub or the network answers into one line, without the token."""
    try:
        yield
    except RazorError:
        raise
    except Exception as error:  # of the hub's client, and of the HTTP library that it happens to use
        causes: list[str] = []
        cause: BaseException | None = error
        while cause is not None:  # the answer of the server may lie below
            causes.append(f"{type(cause).__name__}: {' '.join(str(cause).split())}")
            cause = cause.__cause__
        text = " <- ".join(causes)
        text = text if token is None else text.replace(token, "***")
        raise RazorError(f"repo='{repo}' could not be pushed ({text[:600]}).") from None


def _shown(endpoint: str) -> str:
    """An address without the name and password that may stand in it."""
    scheme, _, rest = endpoint.rpartition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
