"""The tiny pi0.5: its tokenizer, its start, and that it learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("sentencepiece", reason="needs the extra chunkrl[pi]")

from chunkrl.data.normalize import Statistics, compute_statistics
from chunkrl.models.pi import load_pretrained, save_pretrained
from chunkrl.models.pi.config import PiRecipe
from chunkrl.models.pi.policy import PiPolicy
from chunkrl.models.pi.prompt import build_prompt, encode_prompt
from chunkrl.models.pi.tiny import MAX_PROMPT_TOKENS, number_features, tiny_policy, tiny_recipe
from chunkrl.models.pi.tiny_tokenizer import NUM_BINS, TINY_TOKENIZER, train, vocab_size
from chunkrl.models.pi.tokenizer import SentencePieceTokenizer
from chunkrl.types import Observation

torch.set_num_threads(1)
STATE_DIM, ACTION_DIM, HORIZON = 10, 4, 5


def tokenizer() -> SentencePieceTokenizer:
    return SentencePieceTokenizer(TINY_TOKENIZER, vocab_size())


def statistics() -> tuple[Statistics, Statistics]:
    rng = np.random.default_rng(0)
    return (
        compute_statistics(rng.uniform(-1, 1, (500, STATE_DIM)).astype(np.float32)),
        compute_statistics(rng.uniform(-1, 1, (500, ACTION_DIM)).astype(np.float32)),
    )


def make(cameras: tuple[str, ...] = (), seed: int = 0) -> PiPolicy:
    recipe: PiRecipe = tiny_recipe(STATE_DIM, ACTION_DIM, HORIZON, cameras)
    return tiny_policy(recipe, *statistics(), seed)


def observe(batch: int, cameras: tuple[str, ...] = ()) -> Observation:
    generator = torch.Generator().manual_seed(1)
    images = {
        name: torch.randint(0, 256, (batch, 3, 64, 64), generator=generator).to(torch.uint8)
        for name in cameras
    }
    state = torch.rand(batch, STATE_DIM, generator=generator) * 2 - 1
    return Observation(images, state, ("push the puck to the goal",) * batch)


def test_the_tokenizer_is_what_its_script_makes(tmp_path: Path) -> None:
    train(tmp_path / "again.model")
    again = SentencePieceTokenizer(tmp_path / "again.model", vocab_size())
    for text in ("Task: push the puck to the goal, State: -1 0 255;\nAction: ", "é, any 3.5 Text\n"):
        assert again.encode(text, add_bos=True) == tokenizer().encode(text, add_bos=True)


def test_every_bin_is_one_token_and_nothing_is_unknown() -> None:
    bins = list(range(-1, NUM_BINS))
    ids = tokenizer().encode("".join(f" {number}" for number in bins), add_bos=False)
    assert len(ids) == len(set(ids)) == len(bins)
    assert ids == [token for n in bins for token in tokenizer().encode(f" {n}", add_bos=False)]
    unknown = 3
    assert unknown not in tokenizer().encode("Grüße, 猫 — 1024 [x] {y}\tz", add_bos=True)


def test_prompts_are_short() -> None:
    def length(state_dim: int, condition: str) -> int:
        prompt = build_prompt(
            "pi05_state", "push the puck to the goal", torch.zeros(state_dim), 32, condition
        )
        return len(encode_prompt(prompt, tokenizer(), MAX_PROMPT_TOKENS))

    # beginning, "Task:", six words, ", State:", ten bins, ";\nAction: "; the condition is two more
    assert length(10, "") == 20
    assert length(10, "Advantage: positive") == length(10, "Advantage: negative") == 22
    assert length(39, "Advantage: positive") <= MAX_PROMPT_TOKENS


def test_near_numbers_have_near_features() -> None:
    features = torch.nn.functional.normalize(number_features(257, 64), dim=1)
    similarity = features @ features.T
    assert torch.allclose(number_features(257, 64).square().mean(), torch.tensor(1.0))
    for distance in (1, 4, 16, 64):
        nearer, farther = similarity.diagonal(distance), similarity.diagonal(2 * distance)
        assert nearer.min() > farther.max()


@pytest.mark.parametrize("cameras", [(), ("front",)])
def test_the_start_is_plain_blocks_and_a_function_of_the_seed(cameras: tuple[str, ...]) -> None:
    policy = make(cameras)
    assert sum(p.numel() for p in policy.parameters()) < 1_000_000
    model = policy.model
    gates = model.expert.modulations(torch.randn(3, model.config.expert_width)).final.chunk(3, dim=-1)
    assert not gates[0].any() and not gates[1].any() and bool((gates[2] == 1).all())
    same, other = make(cameras).state_dict(), make(cameras, seed=1).state_dict()
    assert all(torch.equal(value, same[name]) for name, value in policy.state_dict().items())
    assert not torch.equal(same["model.action_in_proj.weight"], other["model.action_in_proj.weight"])


@pytest.mark.parametrize("cameras", [(), ("front",)])
def test_it_learns_and_can_be_saved(cameras: tuple[str, ...], tmp_path: Path) -> None:
    policy, observation = make(cameras), observe(16, cameras)
    assert observation.state is not None
    actions = observation.state[:, None, :ACTION_DIM].expand(-1, HORIZON, -1) * 0.5
    trained = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-3)
    generator, losses = torch.Generator().manual_seed(0), []
    for _ in range(30):
        loss = policy.flow_loss(observation, actions, num_noise=4, generator=generator).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:3])
    assert all(p.grad is not None for p in trained)
    folder = save_pretrained(policy, tmp_path / "tiny")
    again = load_pretrained(folder)
    for which in (policy, again):
        which.eval()
    chunks = [p.sample(observation, generator=torch.Generator().manual_seed(3)) for p in (policy, again)]
    assert torch.equal(*chunks)
