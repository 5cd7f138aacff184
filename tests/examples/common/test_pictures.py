"""Pictures are written where they are asked for, and nothing stays open."""

import matplotlib.image
import matplotlib.pyplot as plt

from examples.common.pictures import panels, save


def test_a_picture_is_written_in_a_folder_that_is_made_and_closed(tmp_path):
    figure, axes = panels(1, 2, 4.0, 3.0)
    assert axes.shape == (1, 2)
    path = tmp_path / "made" / "when missing" / "picture.png"
    assert save(figure, path, dpi=50) == path
    assert matplotlib.image.imread(path).shape[:2] == (150, 200)
    assert not plt.fignum_exists(figure.number)
