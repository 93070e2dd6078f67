"""What the stages share. Nothing here reads a global configuration: values come in as arguments."""
