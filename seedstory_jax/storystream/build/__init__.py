"""A StoryStream dataset from videos or folders of frames, as section 4.1 of the paper does it.

keyframes -> near-duplicates out -> a description of each -> groups of 30 -> a narrative -> stories.jsonl and images/
"""
