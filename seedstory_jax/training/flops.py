"""Operations of one step of each stage, without what rematerialisation computes again: what MFU is computed from."""

from seedstory_jax.config import Config, StageConfig
from seedstory_jax.models import flops
from seedstory_jax.models.training_flops import detokenizer_training, story_training


def story_step_flops(config: Config, rows: int, images: int) -> int:
    """Stage 2: `rows` rows with room for `images` images each; with features online the ViT's forward on top."""
    story, model = config.story, config.model
    row = story_training(
        model.story, story.max_length, images, model.vit.n_queries, trains_base=story.trainable == "all", remat=False
    )
    return rows * (row + images * _encoded(config, "vit"))


def detokenizer_step_flops(config: Config, stage: StageConfig) -> int:
    """Stage 1, and the drawing of stage 3."""
    model = config.model
    side = model.image_size // model.vae.downscale
    picture = detokenizer_training(
        model.detokenizer, side, side, model.vit.n_queries, trains_unet=stage.trainable != "released", remat=False
    )
    return stage.batch_size * (
        picture + _encoded(config, "vae") + (stage is config.detokenizer) * _encoded(config, "vit")
    )


def adapt_step_flops(config: Config) -> int:
    """Stage 3: the frozen story model's forward over its rows, then the drawing of what it regressed."""
    stage, story, model = config.adapt, config.story, config.model
    row = flops.story_forward(model.story, story.max_length, story.max_turns, model.vit.n_queries)
    rows = stage.batch_size // stage.images_per_row
    return rows * (row + story.max_turns * _encoded(config, "vit")) + detokenizer_step_flops(config, stage)


def _encoded(config: Config, part: str) -> int:
    """One picture through a frozen encoder, if that happens in the step."""
    if config.data.features != "online":
        return 0
    model = config.model
    return flops.vit(model.vit) if part == "vit" else flops.vae_encode(model.vae, model.image_size, model.image_size)
