"""What the parity command runs: one module a corner of the house, each with `KINDS`, kind -> run.

`run(folder, config, inputs, weights) -> {name: array}`: `folder` is the fixture's, for files beside the usual ones and
for fixtures that name another; `config` its `config.json`; `inputs` the arrays of `inputs.npz`; `weights` the tensors
of `weights.safetensors` under their published names. The result holds our value for every array of `outputs.npz`.
"""
