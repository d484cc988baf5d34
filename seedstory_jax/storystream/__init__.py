"""StoryStream datasets: check them, count them, cut them, build your own.

seedstory data validate|stats|chunk|split|pack|build|features
"""
