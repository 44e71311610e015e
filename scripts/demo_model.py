"""The demo model as the adapter scripts use it: encode, measure the loss, answer prompts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from scripts.demo_data import Example, Skill

IGNORED = -100  # the label of every token that no loss falls on


@dataclass(frozen=True, slots=True)
class Score:
    """What one model does on one skill's held-out examples."""

    loss: float  # mean cross entropy per answer token, in nats
    score: float  # mean of the skill's own score of the greedy answers, 0 to 1
    num_words: float  # mean words of an answer, cut off at the skill's token limit


class DemoModel:
    """The base in bf16 with its tokenizer. `network` may be wrapped or its weights be changed."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        # Eager attention: on CPU the backward of torch's fused one takes a quarter of a step.
        self.network: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.bfloat16, attn_implementation="eager"
        )
        self.network.requires_grad_(False)

    def encode(self, prompt: str) -> list[int]:
        """Token ids of one user turn up to where the assistant begins."""
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def batch(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """Right-padded `(input_ids, labels)`, where only the answer and its end have labels."""
        end = self.tokenizer.eos_token_id
        prompts = [self.encode(example.prompt) for example in examples]
        answers = [
            [*self.tokenizer(example.answer, add_special_tokens=False).input_ids, end]
            for example in examples
        ]
        longest = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
        input_ids = torch.full((len(examples), longest), end)
        labels = torch.full((len(examples), longest), IGNORED)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            input_ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
            labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
        return input_ids, labels

    def answer_loss(self, examples: Sequence[Example]) -> tuple[Tensor, int]:
        """Summed cross entropy of the answer tokens, and how many they are.

        Padding is on the right and causal, so it needs no mask. The head, a third of the model, is
        computed only where a label is.
        """
        input_ids, labels = self.batch(examples)
        hidden = self.network.model(input_ids=input_ids, use_cache=False).last_hidden_state
        wanted = labels[:, 1:] != IGNORED
        logits = self.network.lm_head(hidden[:, :-1][wanted]).float()  # [answer tokens, vocab]
        loss = functional.cross_entropy(logits, labels[:, 1:][wanted], reduction="sum")
        return loss, int(wanted.sum())

    @torch.inference_mode()
    def answers(self, prompts: Sequence[str], max_tokens: int) -> list[str]:
        """Greedy answers, all prompts in one left-padded batch."""
        encoded = [self.encode(prompt) for prompt in prompts]
        longest, end = max(map(len, encoded)), self.tokenizer.eos_token_id
        input_ids = torch.tensor([[end] * (longest - len(ids)) + ids for ids in encoded])
        lengths = torch.tensor([len(ids) for ids in encoded])
        mask = (torch.arange(longest) >= longest - lengths[:, None]).long()
        output = self.network.generate(
            input_ids=input_ids,
            attention_mask=mask,
            max_new_tokens=max_tokens,
            do_sample=False,
            pad_token_id=end,
        )
        decoded = self.tokenizer.batch_decode(output[:, longest:], skip_special_tokens=True)
        return [text.strip() for text in decoded]

    @torch.inference_mode()
    def held_out_loss(self, skill: Skill) -> float:
        """Mean loss per answer token over the skill's held-out examples."""
        parts = [self.answer_loss(part) for part in chunks(skill.held_out, 16)]
        return sum(loss.item() for loss, _ in parts) / sum(count for _, count in parts)

    def evaluate(self, skill: Skill) -> Score:
        """Loss, score and answer length on the skill's held-out examples."""
        outputs = self.answers([example.prompt for example in skill.held_out], skill.max_tokens)
        scores = [
            skill.score(example.prompt, example.answer, output)
            for example, output in zip(skill.held_out, outputs, strict=True)
        ]
        num_words = sum(len(output.split()) for output in outputs) / len(outputs)
        return Score(self.held_out_loss(skill), sum(scores) / len(scores), num_words)


def chunks(examples: Sequence[Example], size: int) -> Iterator[Sequence[Example]]:
    """Consecutive parts of at most `size` examples."""
    return (examples[start : start + size] for start in range(0, len(examples), size))
