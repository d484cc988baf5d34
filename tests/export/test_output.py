import pytest

from seedstory_jax.errors import UserError
from seedstory_jax.export.output import refuse_existing, replacing


def test_a_target_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "new" / "book.pdf"
    with replacing(target) as path:
        path.write_text("whole")
        assert not target.exists() and path.suffix == ".pdf"
    assert target.read_text() == "whole"
    with pytest.raises(RuntimeError), replacing(target) as path:
        path.write_text("half")
        raise RuntimeError
    assert target.read_text() == "whole" and [file.name for file in target.parent.iterdir()] == ["book.pdf"]


def test_what_exists_is_refused(tmp_path):
    (tmp_path / "book.pdf").write_text("old")
    refuse_existing(tmp_path / "new" / "book.pdf", overwrite=False)
    refuse_existing(tmp_path / "book.pdf", overwrite=True)
    with pytest.raises(UserError, match="--overwrite"):
        refuse_existing(tmp_path / "book.pdf", overwrite=False)
    with pytest.raises(UserError, match="is a folder"):
        refuse_existing(tmp_path, overwrite=True)
    with pytest.raises(UserError, match="is a file"):
        refuse_existing(tmp_path / "book.pdf" / "x.pdf", overwrite=True)


def test_a_disk_that_refuses_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"), replacing(tmp_path / "file" / "book.pdf"):
        pass
