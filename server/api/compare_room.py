"""Whether a comparison fits the engine: contexts, rows and the KV cache, before anything runs."""

from collections.abc import Sequence

from fastapi.concurrency import run_in_threadpool

from server.api.compare_candidates import Lineup
from server.api.compare_cases import Inputs
from server.api.compare_schemas import CompareBody
from server.api.compare_voices import ByPrompt, Row, has_own_prompts, rows_of
from server.api.sampling import Limits, comparison_sampling
from server.api.service import Service
from server.compare.case import Case
from server.engine.request import SamplingParams
from server.errors import InvalidRequestError
from server.presets.served import Served

MAX_POSITIONS = 20_000_000
"""Prompts x tokens x candidates of a comparison: some 100 bytes of memory for each."""

MAX_SHOWN_POSITIONS = 5_000_000
"""The same where the result has every position."""


def check_size(body: CompareBody, num_candidates: int) -> None:
    """InvalidRequestError if what is kept until the end could fill the memory."""
    limit = MAX_SHOWN_POSITIONS if body.positions else MAX_POSITIONS
    total = body.num_prompts * body.max_tokens * num_candidates
    if total <= limit:
        return
    field = "prompts" if body.messages is None else "messages"
    way_out = "send them in parts, or ask for fewer max_tokens"
    if body.positions:
        way_out += f', or "positions": false, with which {MAX_POSITIONS} are allowed'
    raise InvalidRequestError(
        f"{field}: {body.num_prompts} {field} of {body.max_tokens} tokens for {num_candidates} "
        f"candidates are {total} positions, of {limit} allowed: {way_out}",
        param=field,
    )


async def check_room(
    service: Service, body: CompareBody, lineup: Lineup, cases: Sequence[Case], inputs: Inputs
) -> SamplingParams:
    """The sampling of all candidates, if everything fits. Probes for which there are no rows are
    dropped, with a note.
    """
    everybody = [candidate.served for candidate in lineup.candidates]
    lengths = await run_in_threadpool(_lengths, cases, _rows(everybody, lineup.by_prompt), inputs)
    field = "prompts" if body.messages is None else "messages"
    longest = max(range(len(cases)), key=lengths.__getitem__)
    config = service.engine.config
    widest = max(_num_rows([served], lineup.by_prompt) for served in everybody)
    limits = Limits(
        f"{field}[{longest}]",
        lengths[longest],
        service.max_model_len,
        config.num_blocks // widest * config.block_size,
        service.tokenizer.vocab_size,
    )
    sampling = comparison_sampling(body, body.max_tokens, limits)
    for case, length in zip(cases, lengths, strict=True):
        _check_reference(service, case, length)
    num_rows = _check_rows(service, lineup, everybody)
    texts = (max(body.max_tokens, len(case.reference_ids)) for case in cases)
    total = max(length + text for length, text in zip(lengths, texts, strict=True))
    _check_cache(service, num_rows, total)
    return sampling


def _rows(everybody: Sequence[Served], by_prompt: Sequence[ByPrompt]) -> list[frozenset[Row]]:
    """The rows that each candidate may run."""
    chosen = {id(item.served): item.rows for item in by_prompt}
    return [chosen.get(id(served), rows_of(served.members)) for served in everybody]


def _lengths(
    cases: Sequence[Case], everybody: Sequence[frozenset[Row]], inputs: Inputs
) -> Sequence[int]:
    """Tokens of the longest prompt that anybody reads for each case."""
    own = {rows for rows in everybody if has_own_prompts(rows)}
    return [
        max(
            len(case.token_ids),
            *(inputs.encode(case.index, tuple(rows)).longest for rows in own),
            0,
        )
        for case in cases
    ]


def _check_reference(service: Service, case: Case, prompt_len: int) -> None:
    total = prompt_len + len(case.reference_ids)
    if total > service.max_model_len:
        raise InvalidRequestError(
            f"references[{case.index}] has {len(case.reference_ids)} tokens and its prompt "
            f"{prompt_len}, and this model's maximum context length is {service.max_model_len} "
            "tokens: shorten it",
            param=f"references[{case.index}]",
            code="context_length_exceeded",
        )


def _check_rows(service: Service, lineup: Lineup, everybody: Sequence[Served]) -> int:
    """Rows that one text takes when all read it."""
    limit = service.engine.config.max_rows
    num_rows = _num_rows(everybody, lineup.by_prompt)
    if num_rows > limit:
        raise InvalidRequestError(
            f"{len(everybody)} candidates read a text in {num_rows} rows at once, and this server "
            f"has {limit}: name fewer candidates, or start it with more --max-rows",
            param="candidates",
        )
    probes = [probe.served for probe in lineup.probes]
    with_probes = _num_rows([*everybody, *probes], lineup.by_prompt)
    if with_probes > limit:
        lineup.probes.clear()
        lineup.notes.append(
            f"sources are not left out, and no twin is read: that would take {with_probes} rows "
            f"at once, and this server has {limit} (--max-rows)"
        )
        return num_rows
    return with_probes


def _num_rows(everybody: Sequence[Served], by_prompt: Sequence[ByPrompt]) -> int:
    """Rows that one text takes at most when all read it.

    Where the prompt chooses the weights, a merge is a row like no other.
    """
    chosen = {id(item.served): item for item in by_prompt}
    rows: set[Row] = set()
    routes: set[frozenset[Row]] = set()
    num_own = 0
    for served in everybody:
        item = chosen.get(id(served))
        if item is None:
            rows |= rows_of(served.members)
        elif item.overrides.auto == "route":
            routes.add(item.rows)
        elif served.mode == "ensemble":
            rows |= item.rows
        else:
            num_own += 1
    return len(rows) + num_own + sum(not route <= rows for route in routes)


def _check_cache(service: Service, num_rows: int, total: int) -> None:
    config = service.engine.config
    num_blocks = num_rows * -(-min(total, config.max_model_len) // config.block_size)
    if num_blocks > config.num_blocks:
        raise InvalidRequestError(
            f"reading one text of {total} tokens, its prompt included, in {num_rows} rows does not "
            f"fit the KV cache of {config.num_blocks * config.block_size} tokens: name fewer "
            "candidates, send shorter prompts, or start the server with more --kv-memory",
            param="candidates",
        )
