"""A problem for PPO whose optimum is known: a one-layer model over five tokens, answers of one token."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from burnish.config.ppo import PPOConfig
from burnish.models.backbone import Backbone, TrainableLayers
from burnish.models.heads import ScalarHead
from burnish.models.load import Codec, make_codec
from burnish.models.logprobs import make_policy
from burnish.policy.kl_control import AdaptiveKLController
from burnish.policy.ppo import PPO
from burnish.records import Prompt, Rollout, Scores

VOCABULARY = {"<pad>": 0, "<eos>": 1, "p": 2, "a": 3, "b": 4}


def toy() -> tuple[Backbone, Codec]:
    """A one-layer model over five tokens."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="p"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    config = LlamaConfig(
        vocab_size=5,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    lm = LlamaForCausalLM(config)
    codec = make_codec(fast, lm, None)
    return Backbone(lm), codec


def make_ppo(
    base: Backbone,
    codec: Codec,
    *,
    coef: float = 0.5,
    rate: float = 0.01,
    adaptive: bool = False,
    where: str = "reward",
    **config: object,
) -> PPO:
    """PPO whose score is 1 for the token `a` and 0 for any other, responses one token long."""

    def score(rollout: Rollout) -> Scores:
        hit = torch.tensor([float(VOCABULARY["a"] in r) for r in rollout.response_ids])
        return Scores(hit, hit[:, None], torch.zeros_like(hit))

    settings = {
        "updates": 10,
        "batch_size": 64,
        "epochs": 2,
        "whiten_advantages": False,
        "missing_eos_penalty": 0.0,
    }
    full = PPOConfig(**{**settings, **config, "kl": {"adaptive": adaptive, "target": 1.0, "where": where}})  # type: ignore[arg-type]
    head = nn.Linear(base.hidden_size, 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    ppo = PPO(
        policy=make_policy(TrainableLayers(base), codec.pad_id),
        reference=make_policy(TrainableLayers(base, trainable=False), codec.pad_id),
        value=ScalarHead(TrainableLayers(base), head),
        codec=codec,
        score=score,
        prompts=[Prompt("p"), Prompt("p p"), Prompt("p p p")],
        config=full,
        controller=AdaptiveKLController(coef=coef, target=1.0, horizon=640),
        max_tokens=1,
        learning_rate=rate,
        value_learning_rate=0.01,
        seed=1,
    )

    if full.advantage in ("rloo", "grpo"):
        ppo.value, ppo.value_parameters = None, []
        ppo.__post_init__()
    return ppo
