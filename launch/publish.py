"""Uploads a finished run to a hub repository: models, adapters, traces, logs, results, report,
model card. Only what the run sealed or wrote goes up, compared with its checksums; what else lies
there is left out and named. Credentials in config.yaml are left out as well.

  python launch/publish.py runs/tiny-cpu --dry-run           what would be uploaded, how large it is
  python launch/publish.py runs/tiny-cpu --repo OWNER/NAME   uploads it; log in first: hf auth login
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from abscot import cli
from abscot.common.errors import UserError
from abscot.pipeline.stages import require_finished
from abscot.recipe.run import Run, open_run
from abscot.reporting import hub


def main() -> None:
    parser = cli.recipe_parser(__doc__)
    parser.add_argument(
        "run",
        nargs="?",
        metavar="RUN",
        help="run directory, e.g. runs/tiny-cpu (default: the recipe's)",
    )
    parser.add_argument(
        "--repo", metavar="OWNER/NAME", help="the repository; made if it is not there"
    )
    parser.add_argument("--private", action="store_true", help="make it a private one")
    parser.add_argument("--dry-run", action="store_true", help="only list what would be uploaded")
    args = parser.parse_args()
    if not args.repo and not args.dry_run:
        raise UserError("--repo: expected OWNER/NAME, or --dry-run to see what would be uploaded")
    if args.repo:
        hub.check_repo(args.repo)
    run, recipe = open_run(args.run or Run.of(cli.recipe_of(args)).root)
    hub.check_results(run)  # a damaged one is named, and no stage that is not done
    require_finished(run, recipe)
    upload = hub.collect(run, recipe, args.repo)
    print(upload.table())
    if args.dry_run:
        command = f"python launch/publish.py {run.root} --repo {args.repo or 'OWNER/NAME'}"
        print(f"nothing was uploaded; to do so: {command}")
        return
    print(hub.send(upload, args.repo, args.private))


cli.run(main)
