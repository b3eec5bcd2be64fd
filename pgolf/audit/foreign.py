"""The audit of somebody else's folder, in the order of the reviewers: files, sizes, logs, relations, static signs."""

from collections.abc import Sequence
from pathlib import Path

from pgolf.audit.files import check_files
from pgolf.audit.folder import read_folder
from pgolf.audit.log_checks import check_logs
from pgolf.audit.programs import programs
from pgolf.audit.readme import check_readme
from pgolf.audit.relations import check_equal, check_submission
from pgolf.audit.sizes import check_keys, check_sizes
from pgolf.audit.static import check_static
from pgolf.audit.verdict import Audit
from pgolf.rules import Rules


def audit_folder(root: Path, rules: Rules, base: Sequence[float] = ()) -> Audit:
    """Judge a submission folder; `base` are the losses, nats per token, of the record that it must beat."""
    folder = read_folder(root)
    texts = programs(folder.sources)
    findings = [
        *check_files(folder, texts),
        *check_sizes(folder, texts, rules),
        *check_logs(folder.runs, rules, folder.record),
        *check_submission(folder, rules, base),
        *check_readme(folder),
        *check_equal(folder.runs),
        check_keys(folder, texts),
        *check_static(texts),
    ]
    about = f"version {rules.version}, {rules.snapshot}"
    return Audit(subject=str(root), kind="folder", rules=about, findings=tuple(findings))
