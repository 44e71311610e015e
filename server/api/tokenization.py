"""`/tokenize` and `/detokenize`, in vLLM's shapes."""

from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.concurrency import run_in_threadpool
from pydantic import JsonValue

from server.api.body import json_body
from server.api.lifecycle import ServiceDep
from server.api.prompts import encode_messages
from server.api.sampling import check_token_ids
from server.api.schemas import DetokenizeBody, TokenizeBody
from server.api.service import Service
from server.presets.served import ChatDefaults

router = APIRouter()


@router.post("/tokenize")
async def tokenize(
    service: ServiceDep, body: Annotated[TokenizeBody, Depends(json_body(TokenizeBody))]
) -> dict[str, JsonValue]:
    """The token ids that a prompt or a conversation becomes."""
    await _check_model(service, body.model)
    chat = ChatDefaults()
    if body.model is not None:
        chat = await run_in_threadpool(service.catalog.chat_defaults, body.model)
    token_ids = await _encode(service, body, chat)
    texts = [service.tokenizer.token_name(token_id) for token_id in token_ids]
    return {
        "count": len(token_ids),
        "max_model_len": service.max_model_len,
        "tokens": list(token_ids),
        "token_strs": list(texts) if body.return_token_strs else None,
    }


@router.post("/detokenize")
async def detokenize(
    service: ServiceDep, body: Annotated[DetokenizeBody, Depends(json_body(DetokenizeBody))]
) -> dict[str, JsonValue]:
    """The text of token ids, special ones included."""
    await _check_model(service, body.model)
    check_token_ids(body.tokens, service.tokenizer.vocab_size, "tokens")
    return {"prompt": await run_in_threadpool(service.tokenizer.decode, body.tokens)}


async def _encode(service: Service, body: TokenizeBody, chat: ChatDefaults) -> list[int]:
    if body.messages is None:
        assert body.prompt is not None
        return await run_in_threadpool(
            service.tokenizer.encode,
            body.prompt,
            add_special_tokens=body.add_special_tokens is not False,
        )
    prompt = await encode_messages(
        body.messages,
        service.tokenizer,
        options=body.template_options(chat),
    )
    return list(prompt.token_ids)


async def _check_model(service: Service, model: str | None) -> None:
    """All models share the base's tokenizer; one that does not exist is an error all the same."""
    if model is not None:
        await run_in_threadpool(service.catalog.model, model)
