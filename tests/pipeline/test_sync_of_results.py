"""A rented machine is lost in mid-training; another one goes on from what was brought home."""

import shutil

from fsspec.implementations.local import LocalFileSystem
from station import Station, recipe, sums

from tunestation.syncing.copying import bring
from tunestation.syncing.units import Tree


def test_training_goes_on_elsewhere_to_the_bytes_of_an_undisturbed_run(station, trained, tmp_path):
    station.write(recipe(name="rented"))
    station.kill("checkpoint-4", name="rented")
    rented = station.open(name="rented").shelf.folder
    elsewhere = Station(tmp_path)
    elsewhere.write(recipe(name="rented"))
    home = elsewhere.open(name="rented").shelf.folder
    lines = list(bring(Tree(LocalFileSystem(), str(rented)), Tree(LocalFileSystem(), str(home))))
    assert any(line.endswith("/checkpoint-4 arrived") for line in lines)
    shutil.rmtree(rented)
    (partial,) = home.glob("train-*.partial/checkpoints/checkpoint-4")
    assert sums(elsewhere.make("train", name="rented")) == sums(trained)
    assert not partial.exists()
