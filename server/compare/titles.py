"""What a report is called: enough to tell it from another one."""

from server.compare.about import head
from server.compare.report import Report


def title(report: Report) -> str:
    """`tutor@3: merge against ensemble on held_out.jsonl, 2026-12-01 10:20 UTC`."""
    about = report.about
    subject, reference = (report.candidates[i].name for i in (report.subject, report.reference))
    whose = f"{about.preset}: " if about.preset else ""
    what = subject if subject == reference else f"{subject} against {reference}"
    where = f" on {about.prompts_file}" if about.prompts_file else ""
    when = f", {about.date}" if about.created else ""
    return f"{whose}{what}{where}{when}"


def origin_line(report: Report) -> str:
    """Base and prompts, with the heads of their digests."""
    about = report.about
    base = f"base {about.base} ({head(about.base_digest)})" if about.base else "base unknown"
    prompts = f"{about.prompts_file or 'prompts'} ({head(about.prompts_digest)})"
    return f"{base}; {prompts if about.prompts_digest else 'prompts unknown'}"
