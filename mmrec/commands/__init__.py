"""What each command of the command line does, as a function to call from Python."""
