"""What the stages share. Nothing here reads a global configuration: values come in as arguments."""

import sys

from pipeline.run.interruption import end_in_one_sentence

sys.excepthook = end_in_one_sentence  # a stage imports this package first
