"""What an audit says: one finding per check, each with its evidence and the rule that it was judged by.

A check that would need a judgement, or something that is not there, says "cannot tell" and names the place to look.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["pass", "fail", "cannot tell"]
WORST: tuple[Verdict, ...] = ("fail", "cannot tell", "pass")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of one check."""

    check: str
    """Its name, family first: `bytes.rho`."""
    verdict: Verdict
    evidence: str
    """What was found, and where."""
    source: str
    """The rule or the precedent that it was judged by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """All findings about one subject."""

    subject: str
    """What was audited, as it was named."""
    kind: Literal["run", "artifact", "folder", "preset"]
    rules: str
    """Version and snapshot of the rules."""
    findings: tuple[Finding, ...]

    @property
    def failed(self) -> bool:
        """Whether any check found a violation; "cannot tell" is none."""
        return any(finding.verdict == "fail" for finding in self.findings)

    def verdict(self, check: str) -> Verdict | None:
        """The worst verdict under a check's name; None where it did not run."""
        found = {finding.verdict for finding in self.findings if finding.check == check}
        return next((verdict for verdict in WORST if verdict in found), None)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "subject": self.subject,
            "kind": self.kind,
            "rules": self.rules,
            "failed": self.failed,
            "counts": {verdict: sum(f.verdict == verdict for f in self.findings) for verdict in WORST},
            "findings": [asdict(finding) for finding in self.findings],
        }

    def rows(self) -> list[tuple[str, str, str]]:
        """The table: what failed, then what is open, both with the rule; then what passed, by its evidence."""
        rows: list[tuple[str, str, str]] = [
            (f.verdict, f.check, f"{f.evidence}\n(rule: {f.source})")
            for verdict in ("fail", "cannot tell")
            for f in self.findings
            if f.verdict == verdict
        ]
        passed: dict[str, list[str]] = {}
        for finding in self.findings:
            if finding.verdict == "pass":
                passed.setdefault(finding.evidence, []).append(finding.check)
        for evidence, checks in passed.items():
            if len(checks) > 2:
                rows.append(("pass", f"{len(checks)} checks", f"{evidence}: {', '.join(checks)}"))
            else:
                rows.append(("pass", "\n".join(checks), evidence))
        return rows

    @property
    def summary(self) -> str:
        """`1 fail, 4 cannot tell, 20 pass`."""
        return ", ".join(f"{sum(f.verdict == verdict for f in self.findings)} {verdict}" for verdict in WORST)


def judge(check: str, right: bool | None, evidence: str, source: str) -> Finding:
    """A finding from True (pass), False (fail) or None (cannot tell)."""
    verdict: Verdict = "cannot tell" if right is None else "pass" if right else "fail"
    return Finding(check=check, verdict=verdict, evidence=evidence, source=source)


def first_few(items: Iterable[str], count: int = 4) -> str:
    """`a, b, c, d and 3 more`."""
    listed = list(items)
    more = f" and {len(listed) - count} more" if len(listed) > count else ""
    return ", ".join(listed[:count]) + more
