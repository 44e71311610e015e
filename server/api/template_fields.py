"""How a request wants its conversation written: fields of chat and of `/tokenize`."""

from typing import Annotated, Self

from pydantic import BaseModel, JsonValue, model_validator

from server.api.fields import neutral, refuse
from server.engine.conversation import TemplateOptions
from server.presets.served import ChatDefaults
from server.presets.template_variables import TemplateVariables


class TemplateFields(BaseModel):
    """As in vLLM. None: not given; an answer then begins anew, unless the last message goes on."""

    chat_template_kwargs: TemplateVariables | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: Annotated[JsonValue, neutral()] = None
    documents: Annotated[JsonValue, neutral([])] = None

    def template_options(self, chat: ChatDefaults) -> TemplateOptions:
        """The same on top of a model's own way."""
        continues = bool(self.continue_final_message)
        begins = self.add_generation_prompt
        return TemplateOptions(
            conversation=chat.conversation,
            variables={**chat.variables, **(self.chat_template_kwargs or {})},
            add_generation_prompt=not continues if begins is None else begins,
            continue_final_message=continues,
        )

    @model_validator(mode="after")
    def _check_ending(self) -> Self:
        if self.add_generation_prompt and self.continue_final_message:
            refuse("continue_final_message", "excludes add_generation_prompt: send one of them")
        return self
