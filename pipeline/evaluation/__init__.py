"""How good a student is: measures with intervals, the baselines that keep them honest, and what a student costs."""
