"""Exports on the Hugging Face hub.

What is pushed is exactly what an export's manifest lists, and only after its checksums were found right: nothing
that happens to lie in the folder leaves the machine. A folder above several exports becomes one repository with a
folder for each format. All of it is one commit, and what an earlier push left and this one lacks goes with it:
yesterday's weights beside a new config would be loaded, by some readers first. Repositories are private unless
somebody says otherwise; one that is public already is not taken for a private one.

The token is the one that `hf auth login` or HF_TOKEN left (`huggingface_hub.get_token`). It is never asked for,
never shown, and is cut out of error texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from razor.errors import RazorError
from razor.export.manifest import MANIFEST, check_files, read_manifest

if TYPE_CHECKING:
    from huggingface_hub import HfApi

FRONT = "README.md"
Exports = dict[str, tuple[dict[str, Any], Path]]
"""By place in the repository: manifest and folder."""


@dataclass(frozen=True)
class Push:
    """What was pushed, or would be.

    Attributes:
        target: address of the repository, or of its branch.
        private: as it was asked for; after a push, as the repository is.
        files: bytes of each file, by its path in the repository.
        done: False after a dry run.
        removed: files of an earlier push that are no longer there.
    """

    target: str
    private: bool
    files: Mapping[str, int]
    done: bool
    removed: tuple[str, ...] = ()

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
    token = get_token()
    if token is None and not dry_run:
        raise RazorError(
            "No token for the Hugging Face hub: set HF_TOKEN, or log in once with `hf auth login`; the token "
            "must be one that may write. dry_run=true needs none."
        )
    exports = exports_in(folder)
    branch = f"/tree/{revision}" if revision else ""
    sizes = {
        path: len(c) if isinstance(c, bytes) else c.stat().st_size for path, c in _files(exports).items()
    }
    planned = Push(f"{_shown(constants.ENDPOINT)}/{repo}{branch}", private, sizes, False)
    if dry_run:
        return planned
    with no_secrets(token, repo):
        return _send(HfApi(token=token), exports, planned, repo, revision, message)


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


def exports_in(folder: Path) -> Exports:
    """Exports by their place in a repository, "" for a folder that is one: manifest and folder, checksums compared.

    Raises:
        RazorError: there is none, or a damaged one; or several, of different models.
    """
    if (folder / MANIFEST).is_file():
        return {"": (check_files(folder), folder)}
    inner = sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))
    if not inner:
        raise RazorError(
            f"folder='{folder}' is no export and holds none (no {MANIFEST}): razor export run=RUN makes them."
        )
    found = {path.name: (check_files(path), path) for path in inner}
    sources = {name: content["source"] for name, (content, _) in found.items() if content.get("source")}
    (first, own), *others = sources.items() or [("", "")]
    if strange := [name for name, source in others if source != own]:
        raise RazorError(
            f"'{folder / first}' and '{folder / strange[0]}' are exports of different models, and a repository has "
            "one: export them again from one run, or push each folder by itself."
        )
    return found


def _files(exports: Exports) -> dict[str, Path | bytes]:
    """Every file that is sent, or what it holds, by its path in the repository."""
    files: dict[str, Path | bytes] = {
        _inside(place, name): folder / name
        for place, (content, folder) in exports.items()
        for name in (*content["sha256"], MANIFEST)
    }
    return files if "" in exports else files | {FRONT: front_page(exports).encode()}


def _inside(place: str, name: str) -> str:
    return f"{place}/{name}" if place else name


def _send(
    api: HfApi, exports: Exports, planned: Push, repo: str, revision: str | None, message: str | None
) -> Push:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    api.create_repo(repo, private=planned.private, exist_ok=True)
    private = bool(api.repo_info(repo).private)
    if planned.private and not private:
        raise RazorError(
            f"repo='{repo}' is there already and everybody can see it: nothing was sent. Say private=false to push "
            "into it, or choose another name."
        )
    if revision is not None:
        api.create_branch(repo, branch=revision, exist_ok=True)
    files = _files(exports)
    removed = sorted(_listed(api, exports, repo, revision) - set(files))
    formats = ", ".join(str(content["format"]) for content, _ in exports.values())
    api.create_commit(
        repo_id=repo,
        operations=[
            *(CommitOperationAdd(path, content) for path, content in files.items()),
            *(CommitOperationDelete(path) for path in removed),
        ],
        revision=revision,
        commit_message=message or f"Add {formats}, written by Razor",
    )
    return replace(planned, private=private, done=True, removed=tuple(removed))


def _listed(api: HfApi, exports: Exports, repo: str, revision: str | None) -> set[str]:
    """Files that an earlier push sent to the places of these exports, and that are still there."""
    there = set(api.list_repo_files(repo, revision=revision))
    found: set[str] = set()
    for place in exports:
        if _inside(place, MANIFEST) in there:
            path = api.hf_hub_download(repo, _inside(place, MANIFEST), revision=revision)
            with suppress(RazorError):  # one that somebody else made says nothing about us
                found |= {_inside(place, name) for name in read_manifest(Path(path).parent)["sha256"]}
    return found & there


def front_page(exports: Exports) -> str:
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
