"""The demo: small rule-driven agents on real files, watched, stopped and checked.

Nothing is drawn here: `play` tells a `Stage` what happened, and the command line shows it.
"""
