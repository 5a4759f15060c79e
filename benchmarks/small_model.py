"""A language model with SmolLM2's words and hardly anything behind them: an engine takes milliseconds for its tokens.

Its weights are random. ``python benchmarks/small_model.py``, as a job on a farm, publishes it.
"""

import tempfile
from pathlib import Path

NAME = "small"


def make(parent: Path) -> Path:
    """Write its Hugging Face folder."""
    import torch  # noqa: PLC0415 - seconds
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

    from cloudfarm.training.default_models import SMOLLM2, prepare  # noqa: PLC0415

    like, folder = prepare(SMOLLM2), parent / NAME
    config = AutoConfig.from_pretrained(
        like,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        layer_types=None,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(like).save_pretrained(folder)
    return folder


def main() -> None:
    """Publish it."""
    from cloudfarm.training.default_models import SMOLLM2  # noqa: PLC0415
    from cloudfarm.training.publish import publish_folder  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as parent:
        publish_folder(
            NAME,
            make(Path(parent)),
            kind=SMOLLM2.kind,
            spec=SMOLLM2.spec,
            config={},
            metrics={},
            card=SMOLLM2.card,
        )


if __name__ == "__main__":
    main()
