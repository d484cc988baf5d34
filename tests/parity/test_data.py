import json

import numpy as np

from seedstory_jax.parity.data import KINDS


def test_story_sample_is_reproduced(fixtures_dir):
    folder = fixtures_dir / "story_sample"
    config = json.loads((folder / "config.json").read_text())
    ours = KINDS["story_sample"](folder, config, {}, {})
    reference = np.load(folder / "outputs.npz")
    assert sorted(ours) == sorted(reference.files)
    for name in reference.files:
        assert ours[name].dtype == reference[name].dtype, name
        if reference[name].dtype.kind == "f":
            np.testing.assert_allclose(ours[name], reference[name], atol=1e-6, err_msg=name)
        else:
            np.testing.assert_array_equal(ours[name], reference[name], err_msg=name)
    expected = json.loads((folder / "outputs_text.json").read_text())
    assert [line for line in range(len(config["num_image_given"])) if line not in ours["kept_lines"]] == expected[
        "dropped_lines"
    ]
