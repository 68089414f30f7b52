"""The dataset of drawn animals: its section, the body plans, the scene, and the canvas."""
