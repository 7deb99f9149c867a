"""A finished run -> a hub repository with the layout of a run directory; what goes up is listed
first.

README.md            the model card, its snippets set to final/ as downloaded
config.yaml          the resolved recipe, without credentials
final/ round1/ ..    the models; the base is the hub's already and stays here
adapters/            with LoRA
teacher_traces/ train_logs/ results/ report/

Of a sealed directory only the files that its DONE lists go up, each with that checksum; elsewhere
only files that the run itself writes. What else lies there is left out and named.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from abscot.common import files
from abscot.common.errors import UserError, shown
from abscot.evaluation.results import read_result, rows_file
from abscot.method.lineage import baseline_trainings, round_model, trainings
from abscot.model.shape import max_position
from abscot.recipe.run import Run
from abscot.recipe.schema import Recipe
from abscot.reporting import model_card, run_data
from abscot.reporting.run_data import RunData

DIRECTORIES = ("adapters", "teacher_traces", "train_logs", "results", "report")
CARD = "README.md"
SHOWN_LEFT_OUT = 20
# Unfinished, or a note of the run to itself: in no need of a word.
WORKING = (".partial", ".tmp", ".lock", ".parts", ".read.json")
ANSWER_S = 20  # until a hub that does not answer is given up
SEARCHED_SUFFIXES = (".json", ".jsonl", ".md", ".html", ".txt", ".jinja", "")


@dataclass(frozen=True)
class Upload:
    """files: path inside the run directory -> its checksum in DONE, None where nothing is sealed;
    in the order of the layout. left_out: what lies beside them. texts: path in the repository ->
    content, of what goes up otherwise than it lies there.
    """

    run: Run
    files: dict[Path, str | None]
    left_out: tuple[Path, ...]
    texts: dict[str, str]

    def table(self) -> str:
        """Every file with its size, then each top-level name and the whole, and what is left
        out.
        """
        sizes = {Path(name): len(text.encode()) for name, text in self.texts.items()}
        sizes |= {path: (self.run.root / path).stat().st_size for path in self.files}
        lines = [f"{_size(size):>10}  {path}" for path, size in sizes.items()]
        lines.append("")
        for top in dict.fromkeys(path.parts[0] for path in self.files):
            of_top = [size for path, size in sizes.items() if path.parts[0] == top]
            lines.append(f"{_size(sum(of_top)):>10}  {top}/ ({len(of_top)} files)")
        lines.append(f"{_size(sum(sizes.values())):>10}  in all, {len(sizes)} files")
        if self.left_out:
            named = ", ".join(shown(str(path)) for path in self.left_out[:SHOWN_LEFT_OUT])
            more = len(self.left_out) - SHOWN_LEFT_OUT
            named += f" and {more} more" if more > 0 else ""
            lines.append(f"left out, not sealed or written by the run: {named}")
        return "\n".join(lines)


def check_repo(repo: str) -> None:
    """Raises UserError for a name that the hub would not take."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"--repo {shown(repo)}: {shown(str(error), 200)}") from None
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise UserError(f"--repo {shown(repo)}: expected OWNER/NAME")


def collect(run: Run, recipe: Recipe, repo: str | None) -> Upload:
    """What of a finished run goes up, every sealed file compared with its checksum.

    Raises UserError for a run without its report, for a damaged or linked file, and for one that
    holds a secret of the recipe.
    """
    final = round_model(recipe, run, recipe.rounds)
    if not files.is_done(run.report) or not (final / CARD).is_file():
        raise UserError(f"{run.root}: no report; write it with: python launch/report.py {run.root}")
    models = [round_model(recipe, run, r) for r in (recipe.rounds, *range(1, recipe.rounds))]
    trained = [*trainings(recipe, run), *baseline_trainings(recipe, run)]
    adapters = [t.adapter for t in trained if t.adapter and files.is_done(t.adapter)]
    traces = [t.traces for t in trained if files.is_done(t.traces)]
    logs = [t.train_log for t in trained if t.train_log.is_file()]
    found = {
        **_sealed(run, *models),
        final.relative_to(run.root) / CARD: None,
        **_sealed(run, *adapters, *traces),
        **dict.fromkeys(path.relative_to(run.root) for path in logs),
        **dict.fromkeys(path.relative_to(run.root) for path in _results(run)),
        **_sealed(run, run.report),
    }
    for path in found:
        _refuse_link(run, path)
    files.verify(*models, *adapters, *traces, run.report)
    data = run_data.read(run)
    _refuse_secrets(data, found)
    tops = [*(model.name for model in models), *DIRECTORIES]
    left_out = tuple(path for top in tops for path in _inside(run, top) if path not in found)
    texts = {CARD: _card(data, final, repo or "OWNER/NAME"), run.config.name: data.config_text}
    return Upload(run, found, left_out, texts)


def _sealed(run: Run, *directories: Path) -> dict[Path, str | None]:
    """The files that the DONE of each directory lists, and DONE itself."""
    found: dict[Path, str | None] = {}
    for directory in directories:
        inside = directory.relative_to(run.root)
        sums = files.Done.of_directory(directory).files
        found |= {inside / name: checksum for name, checksum in sums.items()}
        found[inside / files.DONE] = None
    return found


def check_results(run: Run) -> None:
    """Raises UserError for a result that is not whole."""
    for meta in sorted(run.results.glob("*.meta.json")):
        read_result(run, meta.name.removesuffix(".meta.json"))


def _results(run: Run) -> Iterator[Path]:
    """Each cell's meta file, its rows, and its answers as AlpacaEval reads them."""
    for meta in sorted(run.results.glob("*.meta.json")):
        rows = rows_file(run, meta.name.removesuffix(".meta.json"))
        yield from (meta, rows)
        if (answers := rows.with_suffix(".answers.json")).is_file():
            yield answers


def _inside(run: Run, top: str) -> list[Path]:
    """Files and links below a directory of the run, but those that it works with; links are not
    followed.
    """
    paths = (run.root / top).rglob("*")
    found = (p.relative_to(run.root) for p in paths if p.is_symlink() or not p.is_dir())
    return sorted(p for p in found if not any(part.endswith(WORKING) for part in p.parts))


def _refuse_link(run: Run, path: Path) -> None:
    for part in (path, *path.parents[:-1]):  # the last one is the run itself
        if (run.root / part).is_symlink():
            raise UserError(
                f"{run.root / part}: a link; only what lies in the run itself is published: put "
                "there what it points to"
            )


def _refuse_secrets(data: RunData, found: dict[Path, str | None]) -> None:
    """A report that an earlier version wrote may still show them."""
    secrets = [secret.encode() for secret in data.secrets]
    for path in found if secrets else ():
        if path.suffix in SEARCHED_SUFFIXES:
            content = (data.run.root / path).read_bytes()
            if any(secret in content for secret in secrets):
                raise UserError(
                    f"{data.run.root / path}: holds a credential of {data.run.config.name}; write "
                    f"it again: python launch/report.py {data.run.root}"
                )


def _card(data: RunData, final: Path, repo: str) -> str:
    """The card of final/ for the repository's front page, where a reader has nothing yet."""
    name = repo.rpartition("/")[2]
    context_tokens = min(max_position(final), data.recipe.inference.max_model_len_tokens)
    text = model_card.card(data, f"{name}/{final.name}", context_tokens)
    download = f"Download first: `hf download {repo} --include '{final.name}/*' --local-dir {name}`"
    return text.replace("## Usage\n", f"## Usage\n\n{download}\n", 1)


def send(upload: Upload, repo: str, private: bool, api=None) -> str:
    """Uploads all in one commit and returns the address. A second start goes on where the first one
    was ended: the hub keeps what has arrived.

    api: a huggingface_hub.HfApi; None makes one. Raises UserError for a file that has changed since
    it was sealed, and for whatever the hub refuses.
    """
    check_repo(repo)
    from huggingface_hub import CommitOperationAdd, HfApi

    api = api or HfApi()
    try:
        _log_in(api)
        operations = [CommitOperationAdd(n, text.encode()) for n, text in upload.texts.items()]
        for path, checksum in upload.files.items():
            operation = CommitOperationAdd(path.as_posix(), upload.run.root / path)
            if checksum not in (None, operation.upload_info.sha256.hex()):
                raise UserError(f"{upload.run.root / path}: has just changed; nothing was uploaded")
            operations.append(operation)
        address = api.create_repo(repo, private=private, exist_ok=True)
        message = f"Upload {upload.run.root.name} with abscot"
        api.create_commit(repo, operations, commit_message=message)
    except UserError:
        raise
    except Exception as error:  # of the client, its transports (httpx, xet) and the disk
        reason = shown(" ".join(str(error).split()), 300) or type(error).__name__
        raise UserError(f"--repo {repo}: {reason}; the same command goes on") from None
    return str(address)


def _log_in(api) -> None:
    """Raises, within ANSWER_S, where the hub does not answer or does not know the user: the client
    itself would wait and try again for minutes.
    """
    from huggingface_hub import get_token
    from huggingface_hub.utils import build_hf_headers, get_session

    token = api.token or get_token()
    if not token:
        raise UserError("not logged in at the hub: run hf auth login, or set HF_TOKEN")
    headers = build_hf_headers(token=token)
    answer = get_session().get(f"{api.endpoint}/api/whoami-v2", headers=headers, timeout=ANSWER_S)
    if answer.status_code == 401:
        raise UserError("the hub does not know this token: run hf auth login, or set HF_TOKEN")
    answer.raise_for_status()


def _size(count: int) -> str:
    """`3.2 MB`: powers of 1000, as the hub counts."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"
