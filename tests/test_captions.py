"""More captions than there are is said, not searched for for ever."""

import pytest

from training.scenes import captions as made


def test_more_captions_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made, "MOST_DRAWS", 3)
    with pytest.raises(ValueError, match=r"there are not 5000 different captions of this kind; about \d+ can be had"):
        made.captions(5000, 0, for_judging=True)
