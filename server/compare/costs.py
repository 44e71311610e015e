"""What a candidate's answers cost: time, memory and forwards."""

import numpy as np

from server.compare.findings import Findings
from server.compare.report import Cost


def cost(findings: Findings, candidate: int) -> Cost:
    """The cost of all of a candidate's answers, of those that came."""
    answers = [row[candidate] for row in findings.answers if row[candidate].error is None]
    num_tokens = sum(len(answer.token_ids) for answer in answers)
    first = [answer.seconds_to_first for answer in answers]
    wall = findings.walls[candidate]
    forwards = sum(answer.num_rows * len(answer.token_ids) for answer in answers)
    return Cost(
        tokens_per_second=num_tokens / wall if wall and num_tokens else None,
        concurrency=min(findings.terms.concurrency, len(findings.cases)),
        seconds_to_first_token=float(np.median(first)) if first else None,
        seconds_to_first_token_p95=float(np.percentile(first, 95)) if first else None,
        kv_bytes=float(np.mean([answer.kv_bytes for answer in answers])) if answers else 0.0,
        forwards_per_token=forwards / num_tokens if num_tokens else 0.0,
        num_tokens=num_tokens,
    )


def cost_ratio(candidate: Cost, reference: Cost) -> float | None:
    """The reference's seconds per token divided by the candidate's: above 1 the candidate is
    cheaper. None where either was not timed.
    """
    if candidate.tokens_per_second is None or reference.tokens_per_second is None:
        return None
    return candidate.tokens_per_second / reference.tokens_per_second
