"""The dataset of drawn animals: its section, the bodies of the animals, and the scene."""
