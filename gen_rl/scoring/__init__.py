"""How far what was found in a picture is what was asked for: pure numbers.

No network, no prompt file and no world: oracles, detectors, rewards and readers
of prompt files share these rules, and stand above them.
"""
