"""Teacher forcing through the engine: how well true stories are predicted, turn by turn, from what a policy kept.

Captions and images are all given, so nothing is sampled and every policy is asked the same. Each turn's caption is
scored and its image predicted from the very buffer that generation would have; then the true image is appended and the
policy evicts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from seedstory_jax.generation import decode
from seedstory_jax.generation.engine import StoryEngine, StorySession
from seedstory_jax.models.kv_buffer import Kind
from seedstory_jax.models.story_mllm import cosine_distance


@dataclass(frozen=True)
class TurnScore:
    """How well one true turn was predicted.

    Attributes:
        next_token_loss: mean cross entropy of the caption's tokens, its [INST] and the `<img>` after it included, in
            nats: the training loss of stage `story` for this turn.
        tokens: how many these are.
        feature_distance: mean of 1 - cosine between the image's predicted and true features: the other training loss.
    """

    next_token_loss: float
    tokens: int
    feature_distance: float


@decode.jitted(donate=(2,))
def score_text(
    spec: decode.EngineSpec,
    parameters: dict,
    state: decode.GenerationState,
    ids: Int[Array, "b t"],
    count: Int[Array, " b"],
) -> tuple[decode.GenerationState, Float[Array, " b"]]:
    """`decode.prefill_text`, and the summed cross entropy of each row's `count[b]` tokens and the `<img>` behind."""
    model = decode.model_of(spec, parameters)
    before = state.hidden[:, None]
    kind = jnp.full(ids.shape, int(Kind.TEXT), jnp.int32)
    state, hidden = decode.extend(spec, model, state, model.llama.embed(ids), kind, count)
    predictors = jnp.concatenate([before, hidden.astype(before.dtype)], axis=1)
    step = jnp.arange(ids.shape[1] + 1)
    targets = jnp.where(step < count[:, None], jnp.pad(ids, ((0, 0), (0, 1))), spec.tokens.boi)

    def loss_at(place):  # one place at a time: logits of a whole caption are a large array
        logits = model.llama.logits(predictors[:, place][:, None])[:, 0]
        chosen = jnp.take_along_axis(logits, targets[:, place][:, None], axis=1)[:, 0]
        return jnp.where(place <= count, jax.nn.logsumexp(logits, axis=1) - chosen, 0.0)

    return state, jnp.sum(jax.lax.map(loss_at, step), axis=0)


class _ScoredSession(StorySession):
    """A session whose given captions are scored, and whose given images are predicted before they are appended."""

    def _prefill_text(self, ids: list[list[int]], active: np.ndarray) -> None:
        self.losses = self.predicted = None
        if not any(row.turns for row in self.rows):  # the prompt
            return super()._prefill_text(ids, active)
        spec, parameters = self.engine.spec, self.engine.parameters
        rows, count = self._text_rows(ids, active)
        self._state, losses = score_text(spec, parameters, self._state, rows, count)
        self._state, predicted = decode.predict_image(spec, parameters, self._state, active)
        self.losses, self.predicted, self.tokens = np.asarray(losses), predicted, count + 1


def score_stories(
    engine: StoryEngine, texts: Sequence[Sequence[str]], image_features: Sequence[Float[np.ndarray, "_ q d"]]
) -> list[list[TurnScore | None]]:
    """Scores of true stories, read together; None for the first turn of each, which is the prompt.

    Args:
        engine: under the policy in question; stories are cut to its config's length.
        texts: the captions of each story.
        image_features: the true features of each story's images, as many as it has captions.

    Raises UserError for a caption that is longer than the engine's limit.
    """
    lengths = [min(len(captions), engine.config.length) for captions in texts]
    session = _ScoredSession(engine, len(texts), engine.config.length, [0] * len(texts))
    features = np.zeros((len(texts), *image_features[0].shape[1:]), np.float32)
    scores: list[list[TurnScore | None]] = [[None] for _ in texts]
    for turn in range(max(lengths)):
        for row, length in enumerate(lengths):
            if turn < length:
                features[row] = image_features[row][turn]
            else:
                session.end(row, "length")
        active = session.active
        session.append([captions[turn] if on else "" for captions, on in zip(texts, active)], features)
        if turn:
            distance = np.asarray(cosine_distance(session.predicted, jnp.asarray(features))).mean(1)
            for row in np.flatnonzero(active):
                tokens = int(session.tokens[row])
                scores[row].append(TurnScore(float(session.losses[row]) / tokens, tokens, float(distance[row])))
    return scores
