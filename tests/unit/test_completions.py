"""A language model that cannot be opened leaves nothing behind."""

from types import SimpleNamespace

import pytest
import transformers

from cloudfarm.inference import completions
from cloudfarm.inference.completions import Completions


def test_a_tokenizer_that_cannot_be_loaded_leaves_no_engine_and_no_files(tmp_path, monkeypatch):
    opened = []
    folder = tmp_path / "model-1"

    def scratch_folder():
        folder.mkdir()
        return folder

    def fail(*_args, **_how):
        raise OSError("no tokenizer")

    spec = {"context_tokens": 128, "architecture": "Llama", "licence": "none"}
    for name, value in {
        "scratch_folder": scratch_folder,
        "fetch_model": lambda *_args: SimpleNamespace(spec=spec),
        "Adapters": lambda *_args: None,
        "open_engine": lambda *args: opened.append(args),
    }.items():
        monkeypatch.setattr(completions, name, value)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(OSError, match="no tokenizer"):
        Completions("/models/small")
    assert opened == []
    assert not folder.exists()
