"""StoryStream datasets: check them, count them, cut them, build your own.

python -m seedstory_jax.storystream validate|stats|chunk|split|pack|build|features
"""
