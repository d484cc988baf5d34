from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = {}
exec((HERE / "seedstory_jax" / "__init__.py").read_text(), VERSION)

TORCH_FREE_TESTS = ["pytest>=8", "pytest-xdist>=3.5", "jaxtyping>=0.3", "beartype>=0.19", "ruff>=0.8", "hypothesis>=6"]

EVALUATION = ["openai>=1.40", "scipy>=1.11"]

setup(
    name="seedstory_jax",
    version=VERSION["__version__"],
    description="SEED-Story in JAX: write and draw long multimodal stories",
    long_description=(HERE / "README.md").read_text() if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["seedstory_jax", "seedstory_jax.*"]),
    include_package_data=True,
    package_data={"seedstory_jax": ["**/*.css", "**/*.js", "**/*.html", "**/*.md", "**/*.txt"]},
    python_requires=">=3.11",
    install_requires=[
        "jax>=0.10",
        "flax>=0.12.6",
        "optax>=0.2.7",
        "orbax-checkpoint>=0.11.20",
        "transformers>=4.45",
        "diffusers>=0.30",
        "grain>=0.2.3",
        "tensorflow-datasets>=4.9.6",
        "ml_collections>=0.1.1",
        "jaxtyping>=0.3",
        "tokenizers>=0.20",
        "safetensors>=0.4.5",
        "numpy>=1.26",
        "pillow>=10",
        "tensorboardX>=2.6",
        "tqdm>=4.66",
    ],
    extras_require={
        "test": [*TORCH_FREE_TESTS, "torch==2.13.0", "peft>=0.12"],
        "test-torch-free": TORCH_FREE_TESTS,
        "convert": ["torch>=2.4"],
        "small": ["gguf>=0.17"],
        "eval": [*EVALUATION, "torchmetrics>=1.4"],
        "eval-torch-free": EVALUATION,
        "gpu": ["jax[cuda12]>=0.10"],
        "tpu": ["jax[tpu]>=0.10"],
    },
)
