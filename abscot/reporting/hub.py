"""A finished run -> a hub repository with the layout of a run directory; what goes up is listed
first.

README.md            the model card, its snippets set to final/ as downloaded
config.yaml          the resolved recipe
final/ round1/ ..    the models; the base is the hub's already and stays here
adapters/            with LoRA
teacher_traces/ train_logs/ results/ report/
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from abscot.common.errors import UserError
from abscot.common.files import is_done, verify
from abscot.method.lineage import round_model
from abscot.recipe.run import Run
from abscot.recipe.schema import Recipe
from abscot.reporting import model_card, run_data

DIRECTORIES = ("adapters", "teacher_traces", "train_logs", "results", "report")
CARD = "README.md"


@dataclass(frozen=True)
class Upload:
    """files: paths inside the run directory, in the order of the layout. card: the repository's
    README.md.
    """

    run: Run
    recipe: Recipe
    files: tuple[Path, ...]
    card: str

    def table(self) -> str:
        """Every file with its size, then each top-level name and the whole."""
        sizes = {path: (self.run.root / path).stat().st_size for path in self.files}
        lines = [f"{_size(len(self.card.encode())):>10}  {CARD}"]
        lines += [f"{_size(size):>10}  {path}" for path, size in sizes.items()]
        lines.append("")
        for top in dict.fromkeys(path.parts[0] for path in self.files):
            of_top = [size for path, size in sizes.items() if path.parts[0] == top]
            slash = "/" if (self.run.root / top).is_dir() else ""
            lines.append(f"{_size(sum(of_top)):>10}  {top}{slash} ({len(of_top)} files)")
        return "\n".join(
            [*lines, f"{_size(sum(sizes.values())):>10}  in all, {len(sizes) + 1} files"]
        )


def collect(run: Run, recipe: Recipe, repo: str | None) -> Upload:
    """What of a finished run goes up. Raises UserError for a run without its report."""
    final = round_model(recipe, run, recipe.rounds)
    if not is_done(run.report) or not (final / CARD).is_file():
        raise UserError(f"{run.root}: no report; write it with: python launch/report.py {run.root}")
    models = [round_model(recipe, run, r).name for r in (recipe.rounds, *range(1, recipe.rounds))]
    found = [Path(run.config.name)]
    for name in (*models, *DIRECTORIES):
        inside = sorted(
            path.relative_to(run.root) for path in (run.root / name).rglob("*") if path.is_file()
        )
        found += [path for path in inside if not any(part.startswith(".") for part in path.parts)]
    return Upload(run, recipe, tuple(found), _card(run, recipe, repo or "OWNER/NAME"))


def _card(run: Run, recipe: Recipe, repo: str) -> str:
    """The card of final/ for the repository's front page, where a reader has nothing yet."""
    final = round_model(recipe, run, recipe.rounds)
    positions = json.loads((final / "config.json").read_text())["max_position_embeddings"]
    name = repo.rpartition("/")[2]
    context_tokens = min(positions, recipe.inference.max_model_len_tokens)
    text = model_card.card(run_data.read(run), f"{name}/{final.name}", context_tokens)
    download = f"Download first: `hf download {repo} --include '{final.name}/*' --local-dir {name}`"
    return text.replace("## Usage\n", f"## Usage\n\n{download}\n", 1)


def send(upload: Upload, repo: str, private: bool, api=None) -> str:
    """Uploads and returns the address. A second start goes on where the first one was ended.

    Raises UserError for a name that is none, a damaged model, and for whatever the hub refuses.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise UserError(f"--repo {repo}: expected OWNER/NAME")
    for name in {path.parts[0] for path in upload.files}:
        if is_done(upload.run.root / name):
            verify(upload.run.root / name)
    if api is None:
        import huggingface_hub

        api = huggingface_hub.HfApi()
    files = [str(path) for path in upload.files]
    try:
        address = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=upload.run.root, allow_patterns=files)
        api.upload_file(path_or_fileobj=upload.card.encode(), path_in_repo=CARD, repo_id=repo)
    except (
        OSError,
        ValueError,
    ) as error:  # the hub client's own errors are OSErrors and ValueErrors
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"--repo {repo}: {reason}; the same command goes on") from None
    return str(address)


def _size(count: int) -> str:
    """`3.2 MB`: powers of 1000, as the hub counts."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"
