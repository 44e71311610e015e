"""The table of llama.cpp's names, with the names of those who are compared."""

from server.compare.report import Report, Table


def fidelity_rows(report: Report, table: Table) -> list[list[str]]:
    """Names and values, with errors where they have some.

    What llama.cpp calls Q is the subject here, and its "base" the reference: a candidate may be
    called base as well, so both get their own names.
    """
    subject, reference = (report.candidates[i].name for i in (report.subject, report.reference))
    rows = []
    for row in table.statistics:
        digits = 3 if row.unit else 6
        error = "" if row.error is None else f" ± {row.error:.{digits}f}"
        parts = row.name.replace("PPL(base)", "PPL(\0)").replace("PPL(Q)", f"PPL({subject})")
        name = parts.replace("\0", reference)
        rows.append([name, f"{row.value:.{digits}f}{error}{row.unit and f' {row.unit}'}"])
    return rows
