"""What several tests of texts start from."""

import pytest
from text_corpora import write_tokenizer


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))
