"""The OpenAI routes. From here follow `Generation.submit` to the engine."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated

from fastapi import Depends, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import JsonValue

from server.api.answering import View, answer, answer_stream
from server.api.body import json_body
from server.api.chat import ChatView
from server.api.completions import CompletionView
from server.api.deadline import Deadline
from server.api.disconnect import unless_disconnected
from server.api.generation import Generation
from server.api.groups import shown_members
from server.api.lifecycle import ServiceDep
from server.api.prompts import EncodedPrompt, encode_messages, encode_prompts
from server.api.router import Router
from server.api.sampling import Limits, chat_sampling, completion_sampling
from server.api.schemas import ChatBody, CompletionBody, GenerationBody
from server.api.service import Service
from server.errors import InvalidRequestError
from server.presets.served import ChatDefaults, Served, ServedMember

router = Router()


@router.post("/v1/completions")
async def create_completion(
    request: Request,
    service: ServiceDep,
    body: Annotated[CompletionBody, Depends(json_body(CompletionBody))],
) -> Response:
    """Continue one or more prompts."""
    _check_num_streams(service, len(body.prompt) * body.num_choices, "prompt")

    async def encode(
        members: Sequence[ServedMember], chat: ChatDefaults
    ) -> Sequence[EncodedPrompt]:
        return await encode_prompts(body.prompt, service.tokenizer, members)

    deadline = service.deadline()
    resolving = _resolve(service, body, encode, deadline)
    served, prompts = await unless_disconnected(request.receive, resolving)
    longest = max(prompt.longest for prompt in prompts)
    limits = _limits(service, served, "prompt", longest)
    sampling = completion_sampling(body, service.defaults_of(served), limits)
    view = CompletionView(
        served,
        service.tokenizer,
        prompts,
        body.num_choices,
        echo=bool(body.echo),
        logprobs=body.logprobs is not None,
        members=shown_members(served, body.members_top_k),
    )
    generation = Generation.submit(
        service, served, prompts, sampling, body.num_choices, deadline, body.overrides
    )
    return await _answer(request, body, generation, view)


@router.post("/v1/chat/completions")
async def create_chat_completion(
    request: Request,
    service: ServiceDep,
    body: Annotated[ChatBody, Depends(json_body(ChatBody))],
) -> Response:
    """Answer a conversation."""
    _check_num_streams(service, body.num_choices, "n")

    async def encode(
        members: Sequence[ServedMember], chat: ChatDefaults
    ) -> Sequence[EncodedPrompt]:
        options = body.template_options(chat)
        return [await encode_messages(body.messages, service.tokenizer, members, options)]

    deadline = service.deadline()
    resolving = _resolve(service, body, encode, deadline)
    served, (prompt,) = await unless_disconnected(request.receive, resolving)
    limits = _limits(service, served, "messages", prompt.longest)
    sampling = chat_sampling(body, service.defaults_of(served), limits)
    members = shown_members(served, body.members_top_k)
    view = ChatView(served, service.tokenizer, logprobs=bool(body.logprobs), members=members)
    generation = Generation.submit(
        service, served, [prompt], sampling, body.num_choices, deadline, body.overrides
    )
    return await _answer(request, body, generation, view)


@router.get("/v1/models")
def list_models(request: Request, service: ServiceDep) -> dict[str, JsonValue]:
    """Everything that can be called as `model`, the base first."""
    cards = service.catalog.models(public=not request.state.is_admin)
    return {"object": "list", "data": [card.to_json() for card in cards]}


@router.get("/v1/models/{model_id:path}")
def get_model(model_id: str, request: Request, service: ServiceDep) -> dict[str, JsonValue]:
    """One thing that can be called as `model`."""
    return service.catalog.model(model_id, public=not request.state.is_admin).to_json()


async def _resolve(
    service: Service,
    body: GenerationBody,
    encode: Callable[[Sequence[ServedMember], ChatDefaults], Awaitable[Sequence[EncodedPrompt]]],
    deadline: Deadline,
) -> tuple[Served, Sequence[EncodedPrompt]]:
    """What the request is pinned to, and its prompts as the members of that read them."""
    overrides = body.overrides
    if overrides is None or overrides.auto is None:
        served = await service.resolve(body.model, overrides, deadline)
        return served, await encode(served.members, served.chat)
    chat = await run_in_threadpool(service.catalog.chat_defaults, body.model)
    prompts = await encode((), chat)
    if len(prompts) > 1:
        raise InvalidRequestError(
            f"mergeserve.weights: are chosen by the prompt, and the request has {len(prompts)}: "
            "send each by itself",
            param="mergeserve.weights",
        )
    served = await service.resolve_for(body.model, overrides, prompts[0], deadline)
    return served, await encode(served.members, served.chat)


async def _answer(
    request: Request, body: CompletionBody | ChatBody, generation: Generation, view: View
) -> Response:
    if body.stream:
        return await answer_stream(request, generation, view, include_usage=body.include_usage)
    return await answer(request, generation, view)


def _check_num_streams(service: Service, num_streams: int, param: str) -> None:
    """Refuse at once what the engine could never take at once."""
    config = service.engine.config
    limit = config.max_rows + config.max_queued
    if num_streams > limit:
        raise InvalidRequestError(
            f"the request asks for {num_streams} completions, prompts times n, and this server "
            f"takes {limit} at once: send fewer",
            param=param,
        )


def _limits(service: Service, served: Served, field: str, prompt_len: int) -> Limits:
    config = service.engine.config
    kv_len = config.num_blocks // len(served.members) * config.block_size
    vocab_size = service.tokenizer.vocab_size
    return Limits(field, prompt_len, service.max_model_len, kv_len, vocab_size)
